"""Packs any source into webdataset tars with an index; tars that exist are indexed where they are."""

import hashlib
import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import fsspec
import numpy as np
import numpy.typing as npt
from webdataset import ShardWriter

from .errors import DataError
from .image_files import encode_png, in_order
from .index_builder import IndexBuilder, heldout_mask
from .shard_index import MANIFEST, SPLITS, ShardIndex
from .source_images import SourceImages, named_classes
from .sources import DataConfig, Shards, is_remote
from .tar_members import TarSample, read_samples

OnProgress = Callable[[int, int], None]
"""Called with images done and images in all, from time to time."""

Indices = npt.NDArray[np.int64]

_TEMPORARY = ".packing-"


def pack(data: DataConfig, folder: Path, on_progress: OnProgress) -> ShardIndex:
    """Fill `folder` with shards and their index, which comes last: without it, nothing there counts."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(data.source, Shards):
        index = _index_existing(data.source, data, folder, on_progress)
    else:
        images = data.source.open(data.image_size, data.channels)
        index = _pack_images(images, data, folder, on_progress)
    index.save()
    return index


def _pack_images(images: SourceImages, data: DataConfig, folder: Path, on_progress: OnProgress) -> ShardIndex:
    split = _split(len(images), data)
    _remove_earlier(folder)
    builder = IndexBuilder(data, folder)
    tick = _ticks(on_progress, len(images))
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder) as temporary:
        for name, number, ids in _planned_shards(split, data.shard_images):
            tar = _write_tar(Path(temporary), name, number, ids, images, tick)
            builder.add(tar, tar.name, read_samples(tar), split[ids], lambda: None)
        for tar in sorted(Path(temporary).iterdir()):
            tar.replace(folder / tar.name)
    return builder.finish(images.class_names)


def _index_existing(source: Shards, data: DataConfig, folder: Path, on_progress: OnProgress) -> ShardIndex:
    tars = [_fetched(url, folder) if is_remote(url) else Path(url) for url in source.locations()]
    samples = [read_samples(tar) for tar in tars]
    names = named_classes(_labels(tars, samples), source.class_names, "data.source.urls")
    split = _split(sum(map(len, samples)), data)
    builder = IndexBuilder(data, folder)
    tick = _ticks(on_progress, len(split))
    first = 0
    for tar, some in zip(tars, samples, strict=True):
        location = tar.name if tar.parent == folder else str(tar)
        builder.add(tar, location, some, split[first : first + len(some)], tick)
        first += len(some)
    return builder.finish(names)


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
    folder: Path, name: str, number: int, ids: Indices, images: SourceImages, tick: Callable[[], None]
) -> Path:
    """One shard, durable when this returns. The same images give the same bytes: no times, no user names."""
    indices: list[int] = ids.tolist()
    with ShardWriter(
        str(folder).replace("%", "%%") + f"/{name}-%06d.tar",
        start_shard=number,
        maxcount=len(indices),
        maxsize=math.inf,
        verbose=0,
        encoder=False,
        mtime=0,
        user="",
        group="",
    ) as writer:
        encoded = in_order(lambda index: encode_png(images.read(index)), indices)
        for index, png in zip(indices, encoded, strict=True):
            label = int(images.labels[index])
            classes = {} if label < 0 else {"cls": str(label).encode()}
            writer.write({"__key__": f"{index:08d}", "png": png, **classes})
            tick()
    tar = folder / f"{name}-{number:06d}.tar"
    with tar.open("rb") as file:
        os.fsync(file.fileno())
    return tar


def _labels(tars: Sequence[Path], samples: Sequence[Sequence[TarSample]]) -> npt.NDArray[np.int64]:
    """Labels of all samples of all tars, refused where some samples have one and others do not."""
    for tar, some in zip(tars, samples, strict=True):
        for sample in some:
            if (sample.label < 0) != (samples[0][0].label < 0):
                raise DataError(
                    f"{tar}: sample {sample.key} has {'no' if sample.label < 0 else 'a'} .cls member, unlike "
                    f"{samples[0][0].key} of {tars[0].name}; give every sample a class or none"
                )
    return np.array([sample.label for some in samples for sample in some], np.int64)


def _fetched(url: str, folder: Path) -> Path:
    """The remote tar as a file in `folder`, where it stays: no later or resumed run fetches it again."""
    shown = _without_secrets(url)
    tar = folder / f"fetched-{hashlib.sha256(url.encode()).hexdigest()[:12]}-{shown.rpartition('/')[2]}"
    if tar.exists():
        return tar
    part = tar.with_name(f"{tar.name}.part")
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        filesystem.get_file(path, str(part))
        read_samples(part)  # what is not whole is not kept
    # Each file system raises its own; an ImportError names the package to install.
    except Exception as error:
        part.unlink(missing_ok=True)
        reason = str(error) if shown == url else type(error).__name__  # others repeat the URL in their text
        raise DataError(f"{shown}: cannot be fetched ({reason}); correct the address or access") from error
    part.replace(tar)
    return tar


def _without_secrets(url: str) -> str:
    """The URL without user, password and query, where signatures and tokens are."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
