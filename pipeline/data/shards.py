"""Any source as webdataset tars with an index: packed, or, where it is tars already, left where they are."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..files import read_json, write_json
from ..redaction import without_secrets
from ..runfile.data_config import DataConfig
from .existing_tars import OnProgress, index_existing, saved, ticks
from .image_files import in_order
from .index_builder import IndexBuilder, joined, split_of, with_split
from .shard_images import ShardFormat, encode
from .shard_index import MANIFEST, SPLITS, ShardIndex
from .source_images import SourceImages
from .sources import ImageFolder, Shards, Stamp, Stream, can_grow
from .stream import reference_images
from .tar_members import read_samples
from .tar_writer import write_tar

Indices = npt.NDArray[np.int64]

_TEMPORARY = ".packing-"
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
        index = index_existing(data.source, data.source.locations(), data, folder, on_progress)
    else:
        images = _open(data)
        index = _pack_images(images, range(len(images)), data, folder, on_progress)
    if can_grow(data.source):
        write_json(folder / _FILES, _known(data.source))
    return saved(index)


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
    base = _index_of_like_images(base_folder, data, "leave data.base out")
    numbers = new_files(data, base_folder)
    if not numbers:
        return replace(joined(base, replace(base, folder=folder, shards=(), _tables={})), digest=base.digest)
    if isinstance(data.source, Shards):
        source = data.source.model_copy(update={"class_names": base.class_names})
        locations = source.locations()
        new = index_existing(source, [locations[number] for number in numbers], data, folder, on_progress)
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
    numbers, split = np.array(chosen, np.int64), split_of(len(chosen), data)
    _remove_earlier(folder)
    builder = IndexBuilder(data.image_size, data.channels, folder)
    tick = ticks(on_progress, len(chosen))
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder) as temporary:
        for name, number, ids in _planned_shards(split, data.shard_images):
            tar = _write_tar(Path(temporary), name, number, numbers[ids], images, data.shard_format, tick)
            builder.add(tar, tar.name, read_samples(tar), split[ids], lambda: None)
        for tar in sorted(Path(temporary).iterdir()):
            tar.replace(folder / tar.name)
    return builder.finish(images.class_names)


def _split_index(source: Path, data: DataConfig, folder: Path) -> ShardIndex:
    """An index that is there already, with the images that are held out here."""
    index = _index_of_like_images(source, data, "correct them")
    split = split_of(sum(entry.samples for entry in index.shards), data)
    return with_split(index, folder, split.astype(np.bool_))


def _index_of_like_images(folder: Path, data: DataConfig, remedy: str) -> ShardIndex:
    """The index in this folder. DataError where its images are of another size, or have other channels."""
    index = ShardIndex.load(folder)
    if (index.image_size, index.channels) != (data.image_size, data.channels):
        raise DataError(
            f"{folder}: images of size {index.image_size} with {index.channels} channels, but data.image_size is "
            f"{data.image_size} and data.channels {data.channels}; {remedy}"
        )
    return index


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
