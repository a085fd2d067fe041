"""Remote shards on a disk of each node, up to a limit: the processes of a node share them, and each comes once.

A file is named by the sha256 of its whole URL and by its own, which it is compared with before it takes that name.
Who reads a shard holds a shared lock on it (flock, which a process that dies lets go of); who makes room removes the
shard that was read longest ago, of those that nobody holds.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from pydantic import Field, field_validator

from model import Record

from ..errors import DataError
from ..files import sha256_of
from ..redaction import without_secrets
from .remote import fetch

_POLL_S = 0.1


class ShardCacheConfig(Record):
    """Where remote shards are kept while they are read."""

    folder: Path = Path("~/.cache/diffusion-pipeline/shards")
    """Folder on a disk of each node; runs may share it."""
    limit_bytes: int = Field(50_000_000_000, ge=1)
    """What the folder may hold, bytes; the shards that were read longest ago go first."""
    prefetch: int = Field(2, ge=0, le=64)
    """Shards that each worker fetches at a time before they are needed; 0: none."""
    timeout_s: float = Field(60, gt=0)
    """Longest wait for the next byte of a shard, seconds; after three such waits the run fails."""

    @field_validator("folder")
    @classmethod
    def _is_absolute(cls, folder: Path) -> Path:
        if not folder.expanduser().is_absolute():
            raise ValueError(f"{folder} is relative, and workers start in folders of their own; give an absolute path")
        return folder


DEFAULT = ShardCacheConfig()


@dataclass(frozen=True)
class Content:
    """What a shard is known to be."""

    bytes: int
    sha256: str


class ShardCache:
    """Remote shards as local files. Safe between threads and between processes of one node."""

    def __init__(self, config: ShardCacheConfig) -> None:
        self._config = config
        self._folder = config.folder.expanduser()

    @contextmanager
    def open(self, url: str, content: Content | None) -> Iterator[BinaryIO]:
        """The shard at this URL, fetched first where it is not there; it stays until this is left.

        content: what it must be, or DataError; None, for one that is not indexed yet: it is fetched anew.
        """
        file = self._present(url, content) or self._fetched(url, content)
        with file:
            now_ns = time.time_ns()  # the kernel's own clock of files moves in steps of several milliseconds
            os.utime(file.fileno(), ns=(now_ns, now_ns))  # read last now
            yield file

    def fill(self, url: str, content: Content) -> None:
        """Fetches the shard where it is neither there nor being fetched by another process."""
        if self._path(url, content.sha256).exists():
            return
        with self._lock(url, wait_s=0) as locked:
            if locked:
                (self._present(url, content) or self._fetch(url, content)).close()

    def _present(self, url: str, content: Content | None) -> BinaryIO | None:
        """The shard, held, if it is there."""
        return _held(self._path(url, content.sha256)) if content else None

    def _fetched(self, url: str, content: Content | None) -> BinaryIO:
        """The shard, held, once this process or another has fetched it."""
        with self._lock(url, self._config.timeout_s) as locked:
            if not locked:
                raise DataError(
                    f"{without_secrets(url)}: another process fetches it, and no byte came for "
                    f"{self._config.timeout_s:g} s; end that process, or raise data.shard_cache.timeout_s"
                )
            return self._present(url, content) or self._fetch(url, content)

    def _fetch(self, url: str, content: Content | None) -> BinaryIO:
        """To be called under the lock of this URL."""
        _remove_parts(self._lock_path(url))
        part = self._folder / f"{_key(url)}.{content.bytes if content else 0}.part"
        try:
            if content:
                self._make_room(url, content.bytes, part)
            fetch(url, part, self._config.timeout_s, content.bytes if content else None)
            found = Content(part.stat().st_size, sha256_of(part))
            if content and found != content:
                raise DataError(
                    f"{without_secrets(url)}: {found.bytes} bytes of sha256 {found.sha256[:12]}, the index says "
                    f"{content.bytes} of {content.sha256[:12]}; restore the shard, or index it anew"
                )
            if not content:
                self._make_room(url, found.bytes, part)
            return self._named(part, self._path(url, found.sha256))
        finally:
            part.unlink(missing_ok=True)

    def _named(self, part: Path, path: Path) -> BinaryIO:
        """Gives the part its name. Held all the while, so that nobody makes room by it before it is read once."""
        with part.open("rb") as holder:
            fcntl.flock(holder, fcntl.LOCK_SH)
            part.replace(path)
            file = path.open("rb")
            fcntl.flock(file, fcntl.LOCK_SH)
            return file

    def _make_room(self, url: str, size_bytes: int, part: Path) -> None:
        """Returns once the limit leaves room for this shard; `part`, by its name, keeps that room."""
        limit_bytes, deadline_s = self._config.limit_bytes, time.monotonic() + self._config.timeout_s
        while True:
            with FileLock(self._folder / "lock", timeout=self._config.timeout_s):
                if self._evict(limit_bytes - size_bytes):
                    part.touch()
                    return
            if size_bytes > limit_bytes or time.monotonic() > deadline_s:
                raise DataError(
                    f"{without_secrets(url)}: {size_bytes} bytes find no room in {self._folder}, of which all that is "
                    f"not in use has been removed; raise data.shard_cache.limit_bytes {limit_bytes}"
                )
            time.sleep(_POLL_S)

    def _evict(self, most_bytes: int) -> bool:
        """Removes shards, the one read longest ago first, until no more than this is kept or promised."""
        promised = sum(int(part.name.split(".")[1]) for part in self._folder.glob("*.part") if _is_alive(part))
        shards = [(path.stat(), path) for path in self._folder.glob("*.tar")]
        excess = promised + sum(status.st_size for status, _ in shards) - most_bytes
        for status, path in sorted(shards, key=lambda shard: shard[0].st_mtime_ns):
            if excess > 0 and _removed(path):
                excess -= status.st_size
        return excess <= 0

    @contextmanager
    def _lock(self, url: str, wait_s: float) -> Iterator[bool]:
        """Whether this process alone may fetch the shard; False where another does, without a byte for `wait_s`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._lock_path(url)
        file, progress, since_s = _locked(path), self._progress(url), time.monotonic()
        while file is None and time.monotonic() - since_s < wait_s:
            time.sleep(_POLL_S)
            if (now := self._progress(url)) != progress:
                progress, since_s = now, time.monotonic()
            file = _locked(path)
        try:
            yield file is not None
        finally:
            if file is not None:
                path.unlink(missing_ok=True)
                file.close()

    def _progress(self, url: str) -> int:
        """Bytes that have been fetched of the shard so far."""
        sizes = [0]
        for part in self._folder.glob(f"{_key(url)}.*.part*"):
            with suppress(FileNotFoundError):
                sizes.append(part.stat().st_size)
        return max(sizes)

    def _path(self, url: str, sha256: str) -> Path:
        return self._folder / f"{_key(url)}.{sha256[:16]}.tar"

    def _lock_path(self, url: str) -> Path:
        return self._folder / f"{_key(url)}.lock"


def _key(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _held(path: Path) -> BinaryIO | None:
    """The file under a shared lock, unless it is not there, or no longer."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)  # waits for no more than the removal of a file
    if os.fstat(file.fileno()).st_nlink:
        return file
    file.close()
    return None


def _locked(path: Path) -> BinaryIO | None:
    """The file, made where it is not there, under an exclusive lock; None where another process has it."""
    while True:
        file = path.open("ab")
        if not _lock_now(file):
            file.close()
            return None
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # its last owner removed it in between


def _lock_now(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _removed(path: Path) -> bool:
    """Removes a shard that nobody holds."""
    with path.open("rb") as file:
        if not _lock_now(file):
            return False
        path.unlink()
        return True


def _is_alive(part: Path) -> bool:
    """Whether a process is at fetching this; what a killed one left is removed."""
    lock = part.with_name(f"{part.name.split('.')[0]}.lock")
    file = _locked(lock)
    if file is None:
        return True
    with file:
        _remove_parts(lock)
        lock.unlink()
    return False


def _remove_parts(lock: Path) -> None:
    """What there is of a shard that was not fetched to its end, by whoever holds this lock of it."""
    for part in lock.parent.glob(f"{lock.stem}.*.part*"):
        part.unlink(missing_ok=True)
