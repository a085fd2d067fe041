"""Packs any source into webdataset tars with an index; tars that exist are indexed where they are."""

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .files import read_json, sha256_of, write_json
from .image_files import in_order
from .index_builder import IndexBuilder, heldout_mask, joined, with_split
from .remote import is_remote, shown, without_secrets
from .shard_cache import Content, ShardCache, ShardCacheConfig
from .shard_images import ShardFormat, encode, shape_of
from .shard_index import MANIFEST, SPLITS, ShardIndex
from .source_images import SourceImages, named_classes
from .sources import DataConfig, ImageFolder, Shards, Stamp, Stream, can_grow
from .stream import reference_images
from .tar_members import TarSample, read_samples
from .tar_writer import write_tar

OnProgress = Callable[[int, int], None]
"""Called with images done and images in all, from time to time."""

Indices = npt.NDArray[np.int64]

_TEMPORARY = ".packing-"
_JOURNAL = "fetched.json"
_FILES = "files.json"
"""Which files of the source were packed or indexed."""


def pack(data: DataConfig, folder: Path, on_progress: OnProgress) -> ShardIndex:
    """Fill `folder` with shards and their index, which comes last: without it, nothing there counts."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if data.base is not None:
        index = _grown(data, data.base.expanduser().absolute(), folder, on_progress)
    elif isinstance(data.source, Shards) and data.source.index is not None:
        index = _split_index(data.source.index.expanduser().absolute(), data, folder)
    elif isinstance(data.source, Shards):
        index = _index_existing(data.source, data.source.locations(), data, folder, on_progress)
    else:
        images = _open(data)
        index = _pack_images(images, range(len(images)), data, folder, on_progress)
    if can_grow(data.source):
        write_json(folder / _FILES, _known(data.source))
    return _saved(index)


def new_files(data: DataConfig, base: Path) -> list[int]:
    """Which files of the source have come since `base` was prepared of it, by their numbers in order.

    DataError where some that were there are gone or have changed, where there are other classes now, or where `base` is
    no folder of stage prepare that says which files it is of.
    """
    assert can_grow(data.source)
    remedy = "leave data.base out, and all is prepared anew"
    if not (base / _FILES).exists():
        raise DataError(f"{base}: no {_FILES}, which says of which files stage prepare has made it; {remedy}")
    before, now = (list(map(json.dumps, stamps)) for stamps in (read_json(base / _FILES), _known(data.source)))
    if lost := set(before) - set(now):
        raise DataError(
            f"{base}: {len(lost)} of its {len(before)} files are gone or have changed, such as {min(lost)}; {remedy}"
        )
    if isinstance(data.source, ImageFolder):
        names = {"there": ShardIndex.load(base).class_names, "now": _open(data).class_names}
        if names["there"] != names["now"]:
            first, second = (", ".join(found) or "none" for found in names.values())
            raise DataError(f"{base}: its classes are {first}, and those of the source are now {second}; {remedy}")
    known = set(before)
    return [number for number, stamp in enumerate(now) if stamp not in known]


def _known(source: ImageFolder | Shards) -> list[Stamp]:
    """By which its files are known again: remote ones without what a URL may hold of secrets, which changes."""
    return [without_secrets(stamp) if isinstance(stamp, str) else stamp for stamp in source.stamps()]


def _grown(data: DataConfig, base_folder: Path, folder: Path, on_progress: OnProgress) -> ShardIndex:
    """The shards of an earlier set where they are, and those of what has come since."""
    base = ShardIndex.load(base_folder)
    if (base.image_size, base.channels) != (data.image_size, data.channels):
        raise DataError(
            f"{base_folder}: images of size {base.image_size} with {base.channels} channels, but data.image_size is "
            f"{data.image_size} and data.channels {data.channels}; leave data.base out"
        )
    numbers = new_files(data, base_folder)
    if not numbers:
        return replace(joined(base, replace(base, folder=folder, shards=(), _tables={})), digest=base.digest)
    if isinstance(data.source, Shards):
        source = data.source.model_copy(update={"class_names": base.class_names})
        locations = source.locations()
        new = _index_existing(source, [locations[number] for number in numbers], data, folder, on_progress)
    else:
        new = _pack_images(_open(data), numbers, data, folder, on_progress)
    return joined(base, new)


def _open(data: DataConfig) -> SourceImages:
    source = data.source
    assert not isinstance(source, Shards)
    if isinstance(source, Stream):
        return reference_images(source, data.shard_cache, data.image_size, data.channels)
    return source.open(data.image_size, data.channels)


def _pack_images(
    images: SourceImages, chosen: Sequence[int], data: DataConfig, folder: Path, on_progress: OnProgress
) -> ShardIndex:
    """chosen: the numbers of those that are packed."""
    numbers, split = np.array(chosen, np.int64), _split(len(chosen), data)
    _remove_earlier(folder)
    builder = IndexBuilder(data.image_size, data.channels, folder)
    tick = _ticks(on_progress, len(chosen))
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder) as temporary:
        for name, number, ids in _planned_shards(split, data.shard_images):
            tar = _write_tar(Path(temporary), name, number, numbers[ids], images, data.shard_format, tick)
            builder.add(tar, tar.name, read_samples(tar), split[ids], lambda: None)
        for tar in sorted(Path(temporary).iterdir()):
            tar.replace(folder / tar.name)
    return builder.finish(images.class_names)


def _index_existing(
    source: Shards, locations: Sequence[str], data: DataConfig, folder: Path, on_progress: OnProgress
) -> ShardIndex:
    """Headers and labels of all tars first: which images are held out depends on their number."""
    tars = _Tars(data.shard_cache, folder)
    labels = LabelCheck(source.class_names, "data.source.urls")
    samples = []
    for location in locations:
        with tars.open(location) as tar:
            samples.append(read_samples(tar, shown(location)))
        labels.add(shown(location), samples[-1])
    split = _split(sum(map(len, samples)), data)
    builder = IndexBuilder(data.image_size, data.channels, folder)
    tick = _ticks(on_progress, len(split))
    first = 0
    for location, some in zip(locations, samples, strict=True):
        with tars.open(location) as tar:
            builder.add(tar, location, some, split[first : first + len(some)], tick)
        first += len(some)
    return builder.finish(labels.names)


def _split_index(source: Path, data: DataConfig, folder: Path) -> ShardIndex:
    """An index that is there already, with the images that are held out here."""
    index = ShardIndex.load(source)
    if (index.image_size, index.channels) != (data.image_size, data.channels):
        raise DataError(
            f"{source}: images of size {index.image_size} with {index.channels} channels, but data.image_size is "
            f"{data.image_size} and data.channels {data.channels}; correct them"
        )
    split = _split(sum(entry.samples for entry in index.shards), data)
    return with_split(index, folder, split.astype(np.bool_))


def _saved(index: ShardIndex) -> ShardIndex:
    index.save()
    (index.folder / _JOURNAL).unlink(missing_ok=True)
    return index


class _Tars:
    """Local tars where they are, remote ones in the shard cache; a journal says which those are until the index is.

    So an indexing that was interrupted goes on by what it had fetched, and a new one fetches what may have changed.
    """

    def __init__(self, config: ShardCacheConfig, folder: Path) -> None:
        self._cache = ShardCache(config)
        self._journal = folder / _JOURNAL
        self._fetched: dict[str, Any] = read_json(self._journal) if self._journal.exists() else {}

    @contextmanager
    def open(self, location: str) -> Iterator[Path]:
        """The whole tar, which stays until this is left."""
        if not is_remote(location):
            yield Path(location)
            return
        key = hashlib.sha256(location.encode()).hexdigest()
        known = Content(**self._fetched[key]) if key in self._fetched else None
        with self._cache.open(location, known) as file:
            path = Path(file.name)
            yield path
            if known is None:  # and what was read of it was right
                self._fetched[key] = asdict(Content(path.stat().st_size, sha256_of(path)))
                write_json(self._journal, self._fetched)


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
    opened, labels = _Tars(cache, folder), LabelCheck(tars.class_names, "--class-names")
    builder, done = None, itertools.count(1)
    for location in tars.locations:
        with opened.open(location) as tar:
            samples = read_samples(tar, shown(location))
            labels.add(shown(location), samples)
            builder = builder or IndexBuilder(*_shape(tars, tar, samples[0]), folder)
            kept = tar.name if tar.parent == folder else location  # then the folder can be moved
            builder.add(tar, kept, samples, np.zeros(len(samples), np.uint8), lambda: on_progress(next(done)))
    assert builder is not None  # there is no index of no tar
    return _saved(builder.finish(labels.names))


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


def _ticks(on_progress: OnProgress, total: int) -> Callable[[], None]:
    """A function that tells of one more image at each call."""
    done = itertools.count(1)
    return lambda: on_progress(next(done), total)


def _split(count: int, data: DataConfig) -> npt.NDArray[np.uint8]:
    mask = heldout_mask(count, data.heldout_fraction, data.split_seed)
    if mask.all():
        raise DataError(
            f"{count} images, of which heldout_fraction {data.heldout_fraction} leaves none to train on; "
            f"lower data.heldout_fraction or give more images"
        )
    return mask.astype(np.uint8)


def _remove_earlier(folder: Path) -> None:
    """What a former or a killed packing left; its index first."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for stale in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(stale)
    for name in SPLITS:
        for stale in folder.glob(f"{name}-*.tar"):
            stale.unlink()


def _planned_shards(split: npt.NDArray[np.uint8], shard_images: int) -> Iterator[tuple[str, int, Indices]]:
    """(split, number in that split, source indices) of each shard; no shard mixes the splits."""
    for code, name in enumerate(SPLITS):
        ids = np.flatnonzero(split == code)
        for number, first in enumerate(range(0, len(ids), shard_images)):
            yield name, number, ids[first : first + shard_images]


def _write_tar(
    folder: Path,
    name: str,
    number: int,
    ids: Indices,
    images: SourceImages,
    form: ShardFormat,
    tick: Callable[[], None],
) -> Path:
    """One shard of these images."""
    indices: list[int] = ids.tolist()

    def samples() -> Iterator[dict[str, str | bytes]]:
        encoded = in_order(lambda index: encode(images.read(index), form), indices)
        for index, content in zip(indices, encoded, strict=True):
            label = int(images.labels[index])
            classes = {} if label < 0 else {"cls": str(label).encode()}
            yield {"__key__": f"{index:08d}", form: content, **classes}
            tick()

    tar = folder / f"{name}-{number:06d}.tar"
    write_tar(tar, samples())
    return tar


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
