"""The index beside a shard set: where every image lies and what it must be, which makes reading exact.

On disk: `index.json` (shards, digests) and one `.npz` of arrays, whose name and sha256 the JSON gives.
The JSON is replaced last and in one step, so there is always a whole index or none.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from model import Record

from .errors import DataError
from .files import sha256_of, write_bytes, write_text

Split = Literal["train", "heldout"]

MANIFEST = "index.json"
FORMAT = 1
_REMEDY = "restore the shard or prepare the data again"
SPLITS: tuple[Split, ...] = ("train", "heldout")  # in the order of their numbers in `ShardIndex.split`
DTYPES = {
    "shard": "int32",
    "offset": "int64",
    "size": "int32",
    "crc32": "uint32",
    "label": "int64",
    "split": "uint8",
}


class ShardEntry(Record):
    """One tar as it was when it was indexed."""

    location: str
    """Relative to the index's folder, or absolute."""
    samples: int
    """Samples in the tar, of both splits."""
    bytes: int
    """Size of the whole file."""
    sha256: str
    """Of the whole file."""


class _Manifest(Record):
    format: int
    shards: tuple[ShardEntry, ...]
    image_size: int
    channels: Literal[1, 3]
    class_names: tuple[str, ...]
    digest: str
    arrays: str
    arrays_sha256: str


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """All samples in the order of their shards; the arrays have one element for each sample."""

    folder: Path
    shards: tuple[ShardEntry, ...]
    image_size: int
    channels: Literal[1, 3]
    class_names: tuple[str, ...]
    digest: str
    """sha256 of the samples (pixels, labels, class names, split, order), however they are packed."""
    shard: npt.NDArray[np.int32]
    """Number of the tar that holds the image."""
    offset: npt.NDArray[np.int64]
    """First byte of the encoded image in that tar."""
    size: npt.NDArray[np.int32]
    """Bytes of the encoded image."""
    crc32: npt.NDArray[np.uint32]
    """Of the encoded image: a damaged JPEG decodes without complaint."""
    label: npt.NDArray[np.int64]
    """Class, or -1 throughout."""
    split: npt.NDArray[np.uint8]
    """0 train, 1 held out."""

    def ids(self, split: Split) -> npt.NDArray[np.int64]:
        """Numbers of the samples of this split, ascending."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def shard_path(self, shard: int) -> Path:
        """Where the tar of this number lies."""
        return self.folder / self.shards[shard].location

    def check_shards(self, full: bool = False) -> None:
        """Refuse shards that are missing or of another size; `full` reads them and compares sha256 too."""
        for number, entry in enumerate(self.shards):
            path = self.shard_path(number)
            if not path.is_file():
                raise DataError(f"{path}: the shard is missing; {_REMEDY}")
            found_bytes = path.stat().st_size
            if found_bytes != entry.bytes:
                raise DataError(f"{path}: {found_bytes} bytes, the index says {entry.bytes}; {_REMEDY}")
            if full and (found := sha256_of(path)) != entry.sha256:
                raise DataError(f"{path}: sha256 {found[:12]}, the index says {entry.sha256[:12]}; {_REMEDY}")

    def save(self) -> None:
        """Write into `folder`, atomically; an index that is already there is replaced."""
        buffer = io.BytesIO()
        np.savez(buffer, **self._arrays())  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
        content = buffer.getvalue()
        digest = hashlib.sha256(content).hexdigest()
        arrays = f"index-{digest[:16]}.npz"
        manifest = _Manifest(
            format=FORMAT,
            shards=self.shards,
            image_size=self.image_size,
            channels=self.channels,
            class_names=self.class_names,
            digest=self.digest,
            arrays=arrays,
            arrays_sha256=digest,
        )
        write_bytes(self.folder / arrays, content)
        write_text(self.folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        for stale in self.folder.glob("index-*.npz"):
            if stale.name != arrays:
                stale.unlink()

    @classmethod
    def load(cls, folder: Path) -> "ShardIndex":
        """The index in `folder`, after checks of its format, its digest and its arrays."""
        manifest = _read_manifest(folder / MANIFEST)
        return cls(
            folder=folder.absolute(),
            shards=manifest.shards,
            image_size=manifest.image_size,
            channels=manifest.channels,
            class_names=manifest.class_names,
            digest=manifest.digest,
            **_read_arrays(folder / manifest.arrays, manifest.arrays_sha256),
        )

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {name: getattr(self, name) for name in DTYPES}


def _read_manifest(path: Path) -> _Manifest:
    try:
        content = json.loads(path.read_bytes())
        found = content["format"]
        if isinstance(found, int) and found > FORMAT:
            raise DataError(
                f"{path}: format {found}, this code reads up to {FORMAT}; update it or prepare the data again"
            )
        return _Manifest.model_validate(content)
    except FileNotFoundError:
        raise DataError(f"{path}: no index; prepare the data first") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not an index ({error}); prepare the data again") from error


def _read_arrays(path: Path, sha256: str) -> dict[str, npt.NDArray[Any]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); prepare the data again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(f"{path}: sha256 {found[:12]}, {MANIFEST} says {sha256[:12]}; prepare the data again")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in DTYPES}
