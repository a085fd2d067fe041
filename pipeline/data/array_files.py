"""Arrays from `.npz`, `.npy` and IDX files (MNIST's own format; also gzipped). Never a pickle."""

import gzip
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from evaluation.npz import names_in_npz, read_npz

from ..errors import DataError

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
            if magic[:2] == b"\x1f\x8b":
                with gzip.open(file) as unpacked:
                    return _read_idx(unpacked, path)
            return _read_idx(file, path)
    except DataError:
        raise
    except Exception as error:  # of a damaged file NumPy's readers and zipfile raise nearly anything
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); restore the file or correct the path") from error


def _from_npz(path: Path, key: str) -> npt.NDArray[Any]:
    names = names_in_npz(path)
    if key not in names:
        raise DataError(f"{path}: no array '{key}'; found {', '.join(names) or 'none'}")
    return read_npz(path, key)[0]


def _read_idx(file: BinaryIO | gzip.GzipFile, path: Path) -> npt.NDArray[np.uint8]:
    """IDX: two zero bytes, a type code, the number of axes, their lengths as big-endian int32, the values.

    A gzipped one is not unpacked beyond what its header asks for: a few bytes can stand for very many.
    """
    start = file.read(4)
    if start[:3] != _IDX_UINT8 or len(start) < 4:
        raise DataError(f"{path}: neither .npz, .npy nor an IDX file of unsigned bytes; convert it to one of them")
    header_bytes = 4 + 4 * start[3]
    header = start + file.read(header_bytes - 4)
    shape = np.frombuffer(header[4:].ljust(header_bytes - 4, b"\xff"), ">u4").tolist()
    expected_bytes = math.prod(shape)
    values = file.read(expected_bytes + 1) if len(header) == header_bytes else b""
    if len(values) != expected_bytes:
        found = f"{len(header) + len(values)} bytes{' or more' if len(values) > expected_bytes else ''}"
        raise DataError(f"{path}: {found}, its header asks for {header_bytes + expected_bytes}; restore the file")
    return np.frombuffer(values, np.uint8).reshape(shape)
