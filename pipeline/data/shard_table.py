"""What the index knows of one tar, as a small binary file: 17 bytes for each sample.

The file is a magic word, the number of samples and five columns one after the other, little-endian. It carries no
checksum of its own: the manifest holds its sha256.
"""

import struct
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError

BLOCK_BYTES = 512  # what every member of a tar begins at a multiple of
SAMPLE_BYTES = 17
_HEADER = struct.Struct("<8sQ")
_MAGIC = b"shardtb1"
_TYPES = {"block": "<u4", "size": "<u4", "crc32": "<u4", "label": "<i4", "split": "u1"}


@dataclass(frozen=True, eq=False)
class ShardTable:
    """The samples of one tar in the order of its members."""

    block: npt.NDArray[np.uint32]
    """Where the encoded image begins, in blocks of 512 bytes: a tar may have 2 TiB."""
    size: npt.NDArray[np.uint32]
    """Bytes of the encoded image."""
    crc32: npt.NDArray[np.uint32]
    """Of the encoded image: a damaged JPEG decodes without complaint."""
    label: npt.NDArray[np.int32]
    """Class, or -1 throughout."""
    split: npt.NDArray[np.uint8]
    """0 train, 1 held out."""

    def __len__(self) -> int:
        return len(self.split)

    @cached_property
    def rows(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Rows of the training samples, and of the held-out ones."""
        train, heldout = (np.flatnonzero(self.split == number).astype(np.int32) for number in (0, 1))
        return train, heldout

    def to_bytes(self) -> bytes:
        """As `from_bytes` reads it."""
        columns = (getattr(self, name).astype(form).tobytes() for name, form in _TYPES.items())
        return _HEADER.pack(_MAGIC, len(self)) + b"".join(columns)

    @classmethod
    def from_bytes(cls, content: bytes, path: Path) -> "ShardTable":
        """path: where the content comes from, for a refusal."""
        magic, count = _HEADER.unpack_from(content) if len(content) >= _HEADER.size else (b"", 0)
        expected_bytes = _HEADER.size + SAMPLE_BYTES * count
        if magic != _MAGIC or len(content) != expected_bytes:
            raise DataError(f"{path}: {len(content)} bytes that are no table of a shard; prepare the data again")
        columns: dict[str, npt.NDArray[Any]] = {}
        start = _HEADER.size
        for name, form in _TYPES.items():
            columns[name] = np.frombuffer(content, form, count, start)
            start += columns[name].nbytes
        if (columns["split"] > 1).any() or (columns["label"] < -1).any():
            raise DataError(f"{path}: splits or classes that there are not; prepare the data again")
        return cls(**columns)

    @classmethod
    def of(cls, **columns: Any) -> "ShardTable":
        """From sequences of whole numbers, which must fit their types."""
        return cls(**{field.name: np.array(columns[field.name], _TYPES[field.name]) for field in fields(cls)})
