"""The arrays of an `.npz` file, which may be damaged or none at all. Never a pickle."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray


def read_npz(path: Path, *names: str) -> list[NDArray[Any]]:
    """The arrays of these names. OSError or ValueError where they cannot be read."""
    with _opened(path) as arrays:
        found = [arrays[name] for name in names]
    strange = [name for name, array in zip(names, found, strict=True) if not isinstance(array, np.ndarray)]
    if strange:
        raise ValueError(f"no array but bytes: {', '.join(strange)}")
    return found


def names_in_npz(path: Path) -> list[str]:
    """The names of the arrays. OSError or ValueError where they cannot be read."""
    with _opened(path) as arrays:
        return list(arrays.files)


@contextmanager
def _opened(path: Path) -> Iterator[NpzFile]:
    """The file, open; ValueError for whatever damage can make of it."""
    with path.open("rb") as file:  # numpy, given a path, leaves a file open that turns out to be damaged
        try:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, NpzFile):
                raise ValueError("a single array, not an archive of them")
            with arrays:
                yield arrays
        except (OSError, ValueError):
            raise
        except Exception as error:  # NumPy's readers and zipfile raise nearly anything
            raise ValueError(str(error) or type(error).__name__) from error
