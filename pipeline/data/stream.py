"""Training without an index: tars are drawn at random, one after another, and their images through a shuffle buffer.

The draws and the buffer are webdataset's (`ResampledShards`, `shuffle`). The tars are read by our own strict reader,
for webdataset's takes a damaged one for a short one. The promise is weaker than by an index: in an epoch some images
come twice and some not at all, and which ones a batch holds depends on the number of workers and on where training was
started again. Noise, times and flips still depend on the seed and the position alone, and weights, averages and
optimizer go on exactly. Every worker always has images, however few or uneven the tars are.
"""

import hashlib
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from webdataset import DataPipeline, ResampledShards, shuffle

from ..errors import DataError
from ..runfile.data_config import DataConfig
from ..runfile.keyroles import identity
from .feed import ready_for
from .image_files import Pixels
from .reader import ShardReader
from .remote import shown
from .shard_cache import ShardCacheConfig
from .shard_images import decode
from .shard_index import ShardIndex
from .source_images import SourceImages, named_classes
from .sources import Source, Stream
from .tar_members import read_samples
from .whole_tars import WholeTars

_PATIENCE = 100  # rounds of the held-out images, in which chance alone never draws no other


@dataclass(frozen=True, slots=True)
class StreamedImage:
    """One image of a tar, not yet decoded."""

    name: str
    """Of its tar and its member, for a message."""
    encoded: bytes
    label: int
    """-1: without a class."""

    def decoded(self, image_size: int, channels: int) -> Pixels:
        """uint8 [H, W, C]. DataError, with its name, where it is not of this size and mode."""
        try:
            return decode(self.encoded, image_size, channels)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from error


class TarStream:
    """The images of tars, one tar after another. Remote ones are fetched whole, by the shard cache of the node."""

    def __init__(self, cache: ShardCacheConfig) -> None:
        self._tars = WholeTars(cache)

    def images(self, locations: Iterable[str]) -> Iterator[StreamedImage]:
        """Every image in order. DataError names the tar, and the member, that is damaged, hostile or without images."""
        for location in locations:
            name = shown(location)
            with self._tars.open(location) as tar, tar.open("rb") as file:
                for sample in read_samples(tar, name):
                    encoded = os.pread(file.fileno(), sample.size_bytes, sample.offset_bytes)
                    yield StreamedImage(f"{name}: member {sample.member}", encoded, sample.label)


def reference_images(source: Stream, cache: ShardCacheConfig, image_size: int, channels: int) -> SourceImages:
    """The first images of a stream, or all if there are fewer, not yet decoded."""
    images = list(islice(TarStream(cache).images(source.locations()), source.reference_images))
    labels = np.array([image.label for image in images], np.int64)
    names = named_classes(labels, source.class_names, "the first images of data.source.urls")
    return SourceImages(labels, names, lambda index: images[index].decoded(image_size, channels))


@dataclass(frozen=True)
class StreamPlan:
    """What training streams, and how."""

    locations: tuple[str, ...]
    """Of the tars: absolute paths or URLs."""
    shuffle_buffer: int

    @classmethod
    def of(cls, source: Source) -> "StreamPlan | None":
        """None: training goes by the index."""
        return cls(tuple(source.locations()), source.shuffle_buffer) if isinstance(source, Stream) else None


def order_identity(data: DataConfig) -> Mapping[str, Any]:
    """All that decides, beside the prepared images and the seed, which images training sees, and when."""
    if isinstance(data.source, Stream):
        return {**data.source.fingerprint(), "shuffle_buffer": data.source.shuffle_buffer}
    return identity(data.order)


class StreamFeed:
    """Images from drawn tars. One after the other: a worker's reads go forwards, from wherever it begins.

    Held-out images, and others of the same pixels, are left out.
    """

    shortages: tuple[str, ...] = ()

    def __init__(
        self, plan: StreamPlan, reference: ShardIndex, cache: ShardCacheConfig, seed: int, device: torch.device
    ) -> None:
        self._plan, self._seed, self._device = plan, seed, device
        self._class_names = reference.class_names
        self._shape = (reference.image_size, reference.image_size, reference.channels)
        heldout = ShardReader(reference, "heldout", "none")
        self._heldout = {_digest(image) for start in range(0, len(heldout), 256) for image in _some(heldout, start)}
        self._tars = TarStream(cache)
        self._stream: Iterator[tuple[Pixels, int]] | None = None

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The next images uint8 [n, H, W, C], and their classes int64 [n] (-1: none), for the positions [start, stop).

        The first position that is asked for, with the seed, says which tars are drawn from then on.
        """
        if self._stream is None:
            self._stream = self._open(start)
        images = np.empty((stop - start, *self._shape), np.uint8)
        labels = np.empty(stop - start, np.int64)
        for number in range(stop - start):
            images[number], labels[number] = next(self._stream)
        return ready_for(self._device, torch.from_numpy(images)), ready_for(self._device, torch.from_numpy(labels))

    def _open(self, position: int) -> Iterator[tuple[Pixels, int]]:
        words = hashlib.sha256(f"{self._seed} {position}".encode()).digest()
        seed = int.from_bytes(words[:8])
        locations = list(self._plan.locations)
        buffered = self._plan.shuffle_buffer
        drawn = DataPipeline(
            # its own seed of a worker is made of RANK in the environment, which Ray sets; the position has it already
            ResampledShards(locations, deterministic=True, seed=seed, worker_seed=lambda: 0),
            self._images,
            shuffle(buffered, initial=buffered, rng=random.Random(seed)),
        )
        left_out = 0
        for image in drawn:
            pixels = image.decoded(*self._shape[1:])
            left_out = left_out + 1 if _digest(pixels) in self._heldout else 0
            if not left_out:
                yield pixels, self._label(image)
            elif left_out > _PATIENCE * len(self._heldout):
                raise DataError(
                    f"data.source.urls: {left_out:,} images in a row are held out, or copies of such, and there seem "
                    "to be no others to train on; give more tars, or set data.heldout_fraction to 0"
                )

    def _images(self, drawn: Iterable[Mapping[str, str]]) -> Iterator[StreamedImage]:
        """A stage of webdataset's pipeline: drawn tars -> their images."""
        return self._tars.images(tar["url"] for tar in drawn)

    def _label(self, image: StreamedImage) -> int:
        names = self._class_names
        if (image.label < 0) != (not names):
            raise DataError(
                f"{image.name}: its sample has {'no' if image.label < 0 else 'a'} .cls member, unlike the first images "
                "of data.source.urls; give every sample a class or none"
            )
        if image.label >= len(names) > 0:
            raise DataError(
                f"{image.name}: class {image.label}, and the first images of data.source.urls have {len(names)} "
                "classes; give data.source.class_names, more reference_images, or correct the label"
            )
        return image.label


def _some(reader: ShardReader, start: int) -> Pixels:
    return reader.read(np.arange(start, min(start + 256, len(reader))))


def _digest(pixels: Pixels) -> bytes:
    return hashlib.blake2b(pixels.data, digest_size=16).digest()
