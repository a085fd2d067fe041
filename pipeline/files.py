"""Files that are either whole or not there, and digests of what is in them."""

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from evaluation.atomic import whole_file
from evaluation.npz import read_npz

from .errors import BusyError, DataError, PipelineError


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` atomically."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8 to `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON to `path` atomically. ValueError for NaN and infinities, which are no JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Writes named arrays to an `.npz` at `path` atomically."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options


def remove_drafts(folder: Path) -> None:
    """Removes what processes that were killed have left half written, where nobody else writes into the folder."""
    for draft in folder.glob(".*.npz"):
        draft.unlink(missing_ok=True)


def read_arrays(path: Path, *names: str) -> list[NDArray[Any]]:
    """The arrays of these names in an `.npz`. DataError where it is not whole, or has none of a name."""
    try:
        return read_npz(path, *names)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no whole file of {', '.join(names)} ({error})") from None


def read_json(path: Path) -> Any:
    """The JSON value in `path`."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mismatch(path: Path, sha256: str) -> str | None:
    """How a file differs from the one of this sha256, in words; None where it does not."""
    found = sha256_of(path) if path.is_file() else "no file"
    return None if found == sha256 else f"{path}: sha256 {found[:12]}, expected {sha256[:12]}"


def digest(value: Any) -> str:
    """Hexadecimal sha256 of a JSON value in canonical form: the same for equal values on every machine."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()


def lock_of(path: Path) -> FileLock:
    """The lock beside a file or folder; a process that dies lets go of it."""
    return FileLock(path.with_name(f".{path.name}.lock"))


@contextmanager
def exclusive(folder: Path, work: str) -> Iterator[None]:
    """Makes the folder and holds it for this process; `work` says what for. BusyError while another holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder.with_name(f".{folder.name}.holder")
    try:
        held = lock_of(folder).acquire(timeout=0)
    except Timeout:
        who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise BusyError(f"{folder}: {who} is at this {work}; wait for it, or stop it") from None
    with held:
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        write_text(holder, f"another process ({os.getpid()} on {platform.node()}, since {since})")
        yield


@contextmanager
def in_turn(folder: Path, work: str, timeout_s: float) -> Iterator[None]:
    """Waits until no other process holds the folder, then holds it for this one. PipelineError after timeout_s."""
    try:
        held = lock_of(folder).acquire(timeout=timeout_s)
    except Timeout:
        raise PipelineError(
            f"{folder}: another process has been at this {work} for {timeout_s:g} s (cluster.task_timeout_s); wait for "
            "it, or stop it"
        ) from None
    with held:
        yield
