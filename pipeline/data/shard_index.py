"""The index beside a shard set: where every image lies and what it must be, which makes reading exact.

On disk: `index.json` (shards, counts, digests) and in `index/` one small binary table for each shard, whose sha256 the
JSON gives. The JSON is replaced last and in one step, so there is always a whole index or none. Opening reads the JSON
alone; a table is read, and compared with its sha256, when the first image of its shard is asked for.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from model import Record

from ..errors import DataError
from ..files import sha256_of, write_bytes, write_text
from ..redaction import without_secrets
from .remote import is_remote, size_of
from .shard_table import ShardTable

Split = Literal["train", "heldout"]

MANIFEST = "index.json"
TABLES = "index"
FORMAT = 2
_REMEDY = "restore the shard or prepare the data again"
SPLITS: tuple[Split, ...] = ("train", "heldout")  # in the order of their numbers in `ShardTable.split`


class ShardEntry(Record):
    """One tar as it was when it was indexed."""

    location: str
    """Relative to the index's folder, or absolute, or a URL."""
    samples: int = Field(ge=0, lt=2**32)
    """Samples in the tar, of both splits."""
    heldout: int = Field(ge=0, lt=2**32)
    """Those of them that are held out."""
    bytes: int = Field(ge=0)
    """Size of the whole file."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the whole file."""
    table_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of its table."""

    def count(self, split: Split) -> int:
        """Samples of this split."""
        return self.heldout if split == "heldout" else self.samples - self.heldout


class _Manifest(Record):
    format: int
    image_size: int = Field(ge=1, lt=2**14)
    channels: Literal[1, 3]
    class_names: tuple[str, ...]
    digest: str
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """All samples in the order of their shards."""

    folder: Path
    shards: tuple[ShardEntry, ...]
    image_size: int
    channels: Literal[1, 3]
    class_names: tuple[str, ...]
    digest: str
    """sha256 of the samples (pixels, labels, class names, split, order), however they are packed."""
    _tables: dict[int, ShardTable] = field(default_factory=dict, repr=False)
    """Those read so far, or made and not yet saved."""

    def counts(self, split: Split) -> npt.NDArray[np.int64]:
        """Samples of this split in each shard, int64 [shards]."""
        return np.array([entry.count(split) for entry in self.shards], np.int64)

    def count(self, split: Split) -> int:
        """Samples of this split in all shards."""
        return sum(entry.count(split) for entry in self.shards)

    def table(self, shard: int) -> ShardTable:
        """The samples of the tar of this number; read once, then kept."""
        table = self._tables.get(shard)
        if table is None:
            path = self._table_path(shard)
            entry = self.shards[shard]
            table = ShardTable.from_bytes(_verified(path, entry.table_sha256), path)
            if (entry.count("train"), entry.heldout) != (len(table.rows[0]), len(table.rows[1])):
                raise DataError(f"{path}: not the samples that {MANIFEST} counts; prepare the data again")
            self._tables[shard] = table
        return table

    def labels(self, split: Split) -> npt.NDArray[np.int64]:
        """Class of each sample of this split in order, or -1 throughout. Reads every table."""
        number = SPLITS.index(split)
        parts = [
            table.label[table.rows[number]] for table in map(self.table, np.flatnonzero(self.counts(split)).tolist())
        ]
        return np.concatenate([*parts, np.empty(0, np.int32)]).astype(np.int64)

    def shard_path(self, shard: int) -> Path:
        """Where the tar of this number lies, if it is not remote."""
        return self.folder / self.shards[shard].location

    def shard_name(self, shard: int) -> str:
        """The tar of this number for a message: its path, or its URL without secrets."""
        location = self.shards[shard].location
        return without_secrets(location) if is_remote(location) else str(self.shard_path(shard))

    def check_shards(self, full: bool = False) -> None:
        """Refuse local shards that are missing or of another size; `full` reads them and compares sha256 too.

        Remote ones are compared when they are fetched.
        """
        for number, entry in enumerate(self.shards):
            if not is_remote(entry.location):
                self.check_shard(number, full)

    def check_shard(self, shard: int, full: bool) -> None:
        """The same for the local shard of this number."""
        entry, path = self.shards[shard], self.shard_path(shard)
        if not os.path.isfile(path):  # noqa: PTH113  # unlike Path.is_file, of a name that is too long too
            raise DataError(f"{path}: the shard is missing; {_REMEDY}")
        self._compare_size(shard, path.stat().st_size)
        if full and (found := sha256_of(path)) != entry.sha256:
            raise DataError(f"{path}: sha256 {found[:12]}, the index says {entry.sha256[:12]}; {_REMEDY}")

    def check_remote(self, shard: int, timeout_s: float) -> None:
        """Refuse a remote shard that is not there or, where its server says so, of another size."""
        found_bytes = size_of(self.shards[shard].location, timeout_s)
        if found_bytes is not None:
            self._compare_size(shard, found_bytes)

    def _compare_size(self, shard: int, found_bytes: int) -> None:
        if found_bytes != (expected_bytes := self.shards[shard].bytes):
            raise DataError(
                f"{self.shard_name(shard)}: {found_bytes} bytes, the index says {expected_bytes}; {_REMEDY}"
            )

    def save(self) -> None:
        """Write into `folder`, atomically; an index that is already there is replaced."""
        (self.folder / TABLES).mkdir(exist_ok=True)
        for number, table in self._tables.items():
            write_bytes(self._table_path(number), table.to_bytes())
        manifest = _Manifest(
            format=FORMAT,
            image_size=self.image_size,
            channels=self.channels,
            class_names=self.class_names,
            digest=self.digest,
            shards=self.shards,
        )
        write_text(self.folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        if any(is_remote(entry.location) for entry in self.shards):
            (self.folder / MANIFEST).chmod(0o600)  # a URL may hold a signature
        kept = {self._table_path(number) for number in range(len(self.shards))}
        for stale in (self.folder / TABLES).glob("*.table"):
            if stale not in kept:
                stale.unlink()

    @classmethod
    def load(cls, folder: Path) -> "ShardIndex":
        """The index in `folder`, after checks of its format and its counts."""
        manifest = _read_manifest(folder / MANIFEST)
        return cls(
            folder=folder.absolute(),
            shards=manifest.shards,
            image_size=manifest.image_size,
            channels=manifest.channels,
            class_names=manifest.class_names,
            digest=manifest.digest,
        )

    def _table_path(self, shard: int) -> Path:
        return self.folder / TABLES / f"{shard:06d}-{self.shards[shard].table_sha256[:16]}.table"

    def __reduce__(self) -> tuple[Callable[[Path], "ShardIndex"], tuple[Path]]:
        """Another process opens it anew, for what has been read of it may be large."""
        return ShardIndex.load, (self.folder,)


def _read_manifest(path: Path) -> _Manifest:
    try:
        content: Any = json.loads(path.read_bytes())
        found = content["format"]
        if isinstance(found, int) and found != FORMAT:
            remedy = "update it" if found > FORMAT else "remove it"
            raise DataError(
                f"{path}: format {found}, this code reads format {FORMAT}; {remedy} or prepare the data again"
            )
        return _Manifest.model_validate(content)
    except FileNotFoundError:
        raise DataError(f"{path}: no index; prepare the data first") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not an index ({error}); prepare the data again") from error


def _verified(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); prepare the data again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(f"{path}: sha256 {found[:12]}, {MANIFEST} says {sha256[:12]}; prepare the data again")
    return content
