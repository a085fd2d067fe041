"""Arrays from `.npz`, `.npy` and IDX files (MNIST's own format; also gzipped). Never a pickle."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.npz import names_in_npz, read_npz

from .errors import DataError

_IDX_UINT8 = b"\0\0\x08"


def read_array(path: Path, key: str) -> npt.NDArray[Any]:
    """The one array in the file, or in an `.npz` the one called `key`. Told apart by content, not by name."""
    try:
        with path.open("rb") as file:  # opened here, since np.load leaves open what it cannot read
            magic = file.read(4)
            file.seek(0)
            if magic[:2] == b"PK":
                return _from_npz(path, key)
            if magic == b"\x93NUM":
                return np.asarray(np.load(file, allow_pickle=False))
            content = gzip.decompress(file.read()) if magic[:2] == b"\x1f\x8b" else file.read()
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); restore the file or correct the path") from error
    return _parse_idx(content, path)


def _from_npz(path: Path, key: str) -> npt.NDArray[Any]:
    names = names_in_npz(path)
    if key not in names:
        raise DataError(f"{path}: no array '{key}'; found {', '.join(names) or 'none'}")
    return read_npz(path, key)[0]


def _parse_idx(content: bytes, path: Path) -> npt.NDArray[np.uint8]:
    """IDX: two zero bytes, a type code, the number of axes, their lengths as big-endian int32, the values."""
    if content[:3] != _IDX_UINT8 or len(content) < 4:
        raise DataError(f"{path}: neither .npz, .npy nor an IDX file of unsigned bytes; convert it to one of them")
    axes = content[3]
    shape = np.frombuffer(content[4 : 4 + 4 * axes].ljust(4 * axes, b"\xff"), ">u4").tolist()
    expected_bytes = 4 + 4 * axes + math.prod(shape)
    if len(content) != expected_bytes:
        raise DataError(f"{path}: {len(content)} bytes, its header asks for {expected_bytes}; restore the file")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
