"""Builds the index of a shard set: every tar read, every image decoded, checked and hashed once."""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..files import sha256_of
from ..redaction import without_secrets
from ..runfile.data_config import DataConfig
from .image_files import Pixels, in_order
from .remote import is_remote
from .shard_images import decode
from .shard_index import SPLITS, ShardEntry, ShardIndex
from .shard_table import BLOCK_BYTES, ShardTable
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


def split_of(count: int, data: DataConfig) -> npt.NDArray[np.uint8]:
    """Of each of so many images, 0 for training, 1 held out. DataError where none would be trained on."""
    mask = heldout_mask(count, data.heldout_fraction, data.split_seed)
    if mask.all():
        raise DataError(
            f"{count} images, of which heldout_fraction {data.heldout_fraction} leaves none to train on; "
            f"lower data.heldout_fraction or give more images"
        )
    return mask.astype(np.uint8)


class IndexBuilder:
    """Takes the tars of a set one after another; `finish` gives the index of them all."""

    def __init__(self, image_size: int, channels: Literal[1, 3], folder: Path) -> None:
        self._image_size, self._channels, self._folder = image_size, channels, folder
        self._shards: list[ShardEntry] = []
        self._tables: dict[int, ShardTable] = {}
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
        for number, (pixels, checksum) in zip(split.tolist(), self._decoded(tar, location, samples), strict=True):
            self._pixel_hashes[number].update(pixels)
            crc32.append(checksum)
            on_image()
        table = ShardTable.of(
            block=[sample.offset_bytes // BLOCK_BYTES for sample in samples],
            size=[sample.size_bytes for sample in samples],
            crc32=crc32,
            label=[sample.label for sample in samples],
            split=split,
        )
        self._tables[len(self._shards)] = table
        self._shards.append(entry_of(table, location, tar.stat().st_size, sha256))

    def finish(self, class_names: tuple[str, ...]) -> ShardIndex:
        """The index of the tars so far, not yet saved."""
        return ShardIndex(
            folder=self._folder,
            shards=tuple(self._shards),
            image_size=self._image_size,
            channels=self._channels,
            class_names=class_names,
            digest=self._digest(class_names),
            _tables=self._tables,
        )

    def _decoded(self, tar: Path, location: str, samples: Sequence[TarSample]) -> Iterator[tuple[Pixels, int]]:
        """Pixels and CRC-32 of every image, in order."""
        name = without_secrets(location) if is_remote(location) else tar
        with tar.open("rb") as file:

            def read(sample: TarSample) -> tuple[Pixels, int]:
                encoded = os.pread(file.fileno(), sample.size_bytes, sample.offset_bytes)
                try:
                    return decode(encoded, self._image_size, self._channels), zlib.crc32(encoded)
                except DataError as error:
                    raise DataError(f"{name}: member {sample.member}: {error}") from error

            yield from in_order(read, samples)

    def _digest(self, class_names: tuple[str, ...]) -> str:
        """Split by split, so that it is the same whether a tar holds one split or both."""
        digest = hashlib.sha256(json.dumps([self._image_size, self._channels, class_names]).encode())
        for number, pixel_hash in enumerate(self._pixel_hashes):
            digest.update(pixel_hash.digest())
            for table in self._tables.values():
                digest.update(table.label[table.rows[number]].astype("<i8").tobytes())
        return digest.hexdigest()


def entry_of(table: ShardTable, location: str, size_bytes: int, sha256: str) -> ShardEntry:
    """What the manifest says of a tar with this table."""
    return ShardEntry(
        location=location,
        samples=len(table),
        heldout=int((table.split == SPLITS.index("heldout")).sum()),
        bytes=size_bytes,
        sha256=sha256,
        table_sha256=hashlib.sha256(table.to_bytes()).hexdigest(),
    )


def joined(base: ShardIndex, new: ShardIndex) -> ShardIndex:
    """The samples of `base` and after them those of `new`, as an index of the latter's folder, not yet saved.

    No image of the base is read, so the digest is one of both digests.
    """
    shards, tables = [], {}
    for index, first in ((base, 0), (new, len(base.shards))):
        for number, entry in enumerate(index.shards):
            near = index is new or is_remote(entry.location)
            location = entry.location if near else str(index.shard_path(number))
            shards.append(entry.model_copy(update={"location": location}))
            tables[first + number] = index.table(number)
    digest = hashlib.sha256(f"{base.digest} {new.digest}".encode()).hexdigest()
    return replace(new, shards=tuple(shards), digest=digest, _tables=tables)


def with_split(index: ShardIndex, folder: Path, heldout: npt.NDArray[np.bool_]) -> ShardIndex:
    """The same samples with these held out, bool [samples], as an index of `folder`, not yet saved.

    No image is read, so where other images are held out than before, the digest is one of the digest and of those.
    """
    shards, tables, first, same = [], {}, 0, True
    for number, entry in enumerate(index.shards):
        split = heldout[first : first + entry.samples].astype(np.uint8)
        first += entry.samples
        same &= np.array_equal(index.table(number).split, split)
        tables[number] = replace(index.table(number), split=split)
        location = entry.location if is_remote(entry.location) else str(index.shard_path(number))
        shards.append(entry_of(tables[number], location, entry.bytes, entry.sha256))
    digest = index.digest if same else hashlib.sha256(index.digest.encode() + heldout.tobytes()).hexdigest()
    return replace(index, folder=folder, shards=tuple(shards), digest=digest, _tables=tables)
