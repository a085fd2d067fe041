"""Builds the index of a shard set: every tar read, every image decoded, checked and hashed once."""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .files import sha256_of
from .image_files import Pixels, decode, in_order
from .shard_index import DTYPES, SPLITS, ShardEntry, ShardIndex
from .sources import DataConfig
from .tar_members import TarSample


def heldout_mask(count: int, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which images are held out: bool [count], ceil(count * fraction) of them true.

    A function of these three numbers alone, whatever the version of NumPy.
    """
    heldout = math.ceil(count * Fraction(str(fraction)))  # 100 * 0.07 is a little above 7 in binary
    mask = np.zeros(count, np.bool_)
    draws = np.random.PCG64(seed).random_raw(count)  # unlike Generator's methods, promised never to change
    mask[np.argsort(draws, kind="stable")[:heldout]] = True
    return mask


class IndexBuilder:
    """Takes the tars of a set one after another; `finish` gives the index of them all."""

    def __init__(self, data: DataConfig, folder: Path) -> None:
        self._data, self._folder = data, folder
        self._shards: list[ShardEntry] = []
        self._arrays: list[dict[str, npt.NDArray[Any]]] = []
        self._pixel_hashes = [hashlib.sha256() for _ in SPLITS]

    def add(
        self,
        tar: Path,
        location: str,
        samples: Sequence[TarSample],
        split: npt.NDArray[np.uint8],
        on_image: Callable[[], None],
    ) -> None:
        """The next tar, to be found at `location`, and the split of each of its samples."""
        sha256 = sha256_of(tar)  # first, so that the images are then read from the page cache
        crc32 = []
        for number, (pixels, checksum) in zip(split.tolist(), self._decoded(tar, samples), strict=True):
            self._pixel_hashes[number].update(pixels)
            crc32.append(checksum)
            on_image()
        columns = {
            "shard": [len(self._shards)] * len(samples),
            "offset": [sample.offset_bytes for sample in samples],
            "size": [sample.size_bytes for sample in samples],
            "crc32": crc32,
            "label": [sample.label for sample in samples],
            "split": split,
        }
        self._arrays.append({name: np.array(column, DTYPES[name]) for name, column in columns.items()})
        size_bytes = tar.stat().st_size
        self._shards.append(ShardEntry(location=location, samples=len(samples), bytes=size_bytes, sha256=sha256))

    def finish(self, class_names: tuple[str, ...]) -> ShardIndex:
        """The index of the tars so far, not yet saved."""
        arrays = {name: np.concatenate([some[name] for some in self._arrays]) for name in DTYPES}
        return ShardIndex(
            folder=self._folder,
            shards=tuple(self._shards),
            image_size=self._data.image_size,
            channels=self._data.channels,
            class_names=class_names,
            digest=self._digest(class_names, arrays["label"], arrays["split"]),
            **arrays,
        )

    def _decoded(self, tar: Path, samples: Sequence[TarSample]) -> Iterator[tuple[Pixels, int]]:
        """Pixels and CRC-32 of every image, in order."""
        image_size, channels = self._data.image_size, self._data.channels
        with tar.open("rb") as file:

            def read(sample: TarSample) -> tuple[Pixels, int]:
                encoded = os.pread(file.fileno(), sample.size_bytes, sample.offset_bytes)
                return decode(encoded, image_size, channels, f"{tar}: sample {sample.key}"), zlib.crc32(encoded)

            yield from in_order(read, samples)

    def _digest(self, class_names: tuple[str, ...], label: npt.NDArray[np.int64], split: npt.NDArray[np.uint8]) -> str:
        """Split by split, so that it is the same whether a tar holds one split or both."""
        form = [self._data.image_size, self._data.channels, class_names]
        digest = hashlib.sha256(json.dumps(form).encode())
        for number, pixel_hash in enumerate(self._pixel_hashes):
            digest.update(pixel_hash.digest())
            digest.update(label[split == number].astype("<i8").tobytes())
        return digest.hexdigest()
