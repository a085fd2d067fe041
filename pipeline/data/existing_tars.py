"""Tars that exist already get an index where they are: read whole, their labels checked, nothing copied."""

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import DataError
from ..runfile.data_config import DataConfig
from .index_builder import IndexBuilder, split_of
from .remote import shown
from .shard_cache import ShardCacheConfig
from .shard_images import shape_of
from .shard_index import ShardIndex
from .source_images import named_classes
from .sources import Shards
from .tar_members import TarSample, read_samples
from .whole_tars import WholeTars

OnProgress = Callable[[int, int], None]
"""Called with images done and images in all, from time to time."""

_JOURNAL = "fetched.json"  # which remote tars have been fetched, until the index says so


def index_existing(
    source: Shards, locations: Sequence[str], data: DataConfig, folder: Path, on_progress: OnProgress
) -> ShardIndex:
    """Index these tars of the source into `folder`, not yet saved.

    Headers and labels of all of them first: which images are held out depends on their number.
    """
    tars = WholeTars(data.shard_cache, folder / _JOURNAL)
    labels = LabelCheck(source.class_names, "data.source.urls")
    samples = []
    for location in locations:
        with tars.open(location) as tar:
            samples.append(read_samples(tar, shown(location)))
        labels.add(shown(location), samples[-1])
    split = split_of(sum(map(len, samples)), data)
    builder = IndexBuilder(data.image_size, data.channels, folder)
    tick = ticks(on_progress, len(split))
    first = 0
    for location, some in zip(locations, samples, strict=True):
        with tars.open(location) as tar:
            builder.add(tar, location, some, split[first : first + len(some)], tick)
        first += len(some)
    return builder.finish(labels.names)


@dataclass(frozen=True)
class Tars:
    """Tars that someone else wrote, to be indexed; what is None is found in the first image."""

    locations: Sequence[str]
    class_names: tuple[str, ...] = ()
    image_size: int | None = None
    channels: Literal[1, 3] | None = None


def index_tars(tars: Tars, folder: Path, cache: ShardCacheConfig, on_progress: Callable[[int], None]) -> ShardIndex:
    """Index these tars into `folder`, each read once, nothing held out. on_progress: with the images done so far."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    opened, labels = WholeTars(cache, folder / _JOURNAL), LabelCheck(tars.class_names, "--class-names")
    builder, done = None, itertools.count(1)
    for location in tars.locations:
        with opened.open(location) as tar:
            samples = read_samples(tar, shown(location))
            labels.add(shown(location), samples)
            builder = builder or IndexBuilder(*_shape(tars, tar, samples[0]), folder)
            kept = tar.name if tar.parent == folder else location  # then the folder can be moved
            builder.add(tar, kept, samples, np.zeros(len(samples), np.uint8), lambda: on_progress(next(done)))
    assert builder is not None  # there is no index of no tar
    return saved(builder.finish(labels.names))


def _shape(tars: Tars, tar: Path, first: TarSample) -> tuple[int, Literal[1, 3]]:
    """Image size and channels as given, or else those of the first image."""
    if tars.image_size and tars.channels:
        return tars.image_size, tars.channels
    where = f"{shown(tars.locations[0])}: member {first.member}"
    with tar.open("rb") as file:
        encoded = os.pread(file.fileno(), first.size_bytes, first.offset_bytes)
    try:
        width, height, channels = shape_of(encoded)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if width != height:
        raise DataError(f"{where}: a {width}x{height} image, expected as many pixels in height as in width")
    return tars.image_size or width, tars.channels or channels


def saved(index: ShardIndex) -> ShardIndex:
    """The index, written into its folder; what was noted there of tars on the way has served."""
    index.save()
    (index.folder / _JOURNAL).unlink(missing_ok=True)
    return index


def ticks(on_progress: OnProgress, total: int) -> Callable[[], None]:
    """A function that tells of one more image at each call."""
    done = itertools.count(1)
    return lambda: on_progress(next(done), total)


class LabelCheck:
    """Refuses labels that some samples have and others do not, or that have no name."""

    def __init__(self, class_names: tuple[str, ...], where: str) -> None:
        self._given, self._where = class_names, where
        self._first: tuple[str, TarSample] | None = None
        self.names: tuple[str, ...] = ()
        """Of all classes so far; () for images without classes."""

    def add(self, tar: str, samples: Sequence[TarSample]) -> None:
        """The samples of the next tar."""
        where, first = self._first = self._first or (tar, samples[0])
        for sample in samples:
            if (sample.label < 0) != (first.label < 0):
                raise DataError(
                    f"{tar}: sample {sample.key} has {'no' if sample.label < 0 else 'a'} .cls member, unlike "
                    f"{first.key} of {where}; give every sample a class or none"
                )
        found = named_classes(np.array([sample.label for sample in samples]), self._given, f"{tar} ({self._where})")
        self.names = max(self.names, found, key=len)
