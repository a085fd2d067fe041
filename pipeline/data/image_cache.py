"""Decoded images, kept: once on each node, in a file that its processes map, and in a device's memory.

The file lies in a folder of this user's in the node's temporary folder (TMPDIR), where the kernel keeps it in memory as
long as there is room. Its name is a digest of the images and of the boot of the machine, so it holds what was decoded
from these very images since this boot, or nothing. Who uses it holds a shared lock (flock, which a process that dies
lets go of); the last one to leave removes it, and what killed processes left goes when the next cache is opened.
"""

import fcntl
import hashlib
import mmap
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from .image_files import Pixels

Cache = Literal["none", "host", "device"]
Shape = tuple[int, int, int, int]
"""[N, H, W, C]."""

_LOCK_S = 60.0


class NoRoomError(Exception):
    """Why images cannot be kept where they were to be; they can be had without."""


class HostCache:
    """Images that the processes of a node decode and keep together. Safe between threads and between processes.

    A byte for each image says that it is there. It is set after the pixels are, so a process that is killed in between
    leaves an image that is decoded anew; two that decode the same one write the same.
    """

    def __init__(self, digest: str, shape: Shape) -> None:
        """digest: equal for equal images. NoRoomError where they find no room in the node's temporary folder."""
        folder = _private_folder()
        self.path = folder / f"{_key(digest, shape)}.images"
        count, bytes_ = shape[0], int(np.prod(shape, dtype=np.int64))
        try:
            with FileLock(folder / "lock", timeout=_LOCK_S):
                _remove_unused(folder, self.path)
                file = _held(self.path, bytes_ + count)
        except OSError as error:  # such as a disk without room for the file's name, or a lock that nobody lets go of
            raise NoRoomError(f"data.cache=host: {folder}: {error}; images are decoded anew each time") from error
        self._leave = weakref.finalize(self, _leave, folder, self.path, file)
        mapped = mmap.mmap(file.fileno(), bytes_ + count)
        self._images: Pixels = np.frombuffer(mapped, np.uint8, bytes_).reshape(shape)
        self._filled = np.frombuffer(mapped, np.bool_, count, bytes_)

    def read(self, positions: npt.NDArray[np.int64], decode: Callable[[npt.NDArray[np.int64]], Pixels]) -> Pixels:
        """uint8 [n, H, W, C], a copy, of positions in [0, N). Those that are not there yet are decoded, each once."""
        missing = positions[~self._filled[positions]]
        if len(missing):
            new = np.unique(missing)
            self._images[new] = decode(new)
            self._filled[new] = True
        return self._images.take(positions, axis=0)  # four times as fast as indexing where images are small

    @property
    def is_full(self) -> bool:
        """Whether every image is there."""
        return bool(self._filled.all())


class DeviceCache:
    """Images in the memory of a device, from where batches are gathered; each goes there when it is first read."""

    def __init__(self, shape: Shape, device: torch.device, read: Callable[[npt.NDArray[np.int64]], Pixels]) -> None:
        """read: positions [n] in [0, N) -> uint8 [n, H, W, C]. NoRoomError where half of what is free is not enough."""
        self._device, self._read = device, read
        needed_bytes = int(np.prod(shape, dtype=np.int64))
        free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _available_bytes()
        if needed_bytes > free_bytes // 2:
            raise NoRoomError(
                f"data.cache=device: {needed_bytes:,} bytes of images are more than half of the {free_bytes:,} bytes "
                f"that are free on {device}; they are kept on the host alone"
            )
        self._images = torch.empty(shape, dtype=torch.uint8, device=device)
        self._filled = np.zeros(shape[0], np.bool_)

    def read(self, positions: npt.NDArray[np.int64]) -> Tensor:
        """uint8 [n, H, W, C], a copy on the device, of positions in [0, N)."""
        missing = positions[~self._filled[positions]]
        if len(missing):
            new = np.unique(missing)
            self._images[self._there(torch.from_numpy(new))] = self._there(torch.from_numpy(self._read(new)))
            self._filled[new] = True
        return self._images.index_select(0, self._there(torch.from_numpy(positions)))

    def _there(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, without waiting for it."""
        pinned = tensor.pin_memory() if self._device.type == "cuda" else tensor
        return pinned.to(self._device, non_blocking=True)


def _private_folder() -> Path:
    """Nobody else can put images there: where another user's folder or a link has the name, there is no room."""
    folder = Path(tempfile.gettempdir()).absolute() / f"diffusion-pipeline-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise NoRoomError(
            f"data.cache=host: {folder} is not a folder that this user alone may enter; remove it, or set TMPDIR; "
            "images are decoded anew each time"
        )
    return folder


def _key(digest: str, shape: Shape) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()  # what a crash of the machine has left half written
    return hashlib.sha256(repr((digest, shape, boot)).encode()).hexdigest()


def _held(path: Path, size_bytes: int) -> BinaryIO:
    """The file of this size under a shared lock; zeros where it is new."""
    file = path.open("a+b")
    fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file.fileno()).st_size != size_bytes:  # new, or its maker was killed
        _take_room(path, file, size_bytes)
    return file


def _take_room(path: Path, file: BinaryIO, size_bytes: int) -> None:
    """All of it now, so that writing to the mapped file cannot fail. At most half of what is free is taken."""
    disk_bytes, memory_bytes = shutil.disk_usage(path.parent).free, _available_bytes()
    if size_bytes <= min(disk_bytes, memory_bytes) // 2:
        with suppress(OSError):
            file.truncate(0)
            os.posix_fallocate(file.fileno(), 0, size_bytes)
            return
    path.unlink()
    file.close()
    raise NoRoomError(
        f"data.cache=host: {size_bytes:,} bytes of decoded images find no room: of {disk_bytes:,} bytes free in "
        f"{path.parent} (TMPDIR) and {memory_bytes:,} of memory, half may be taken; images are decoded anew each time"
    )


def _available_bytes() -> int:
    """Memory that programs could have, by the kernel's estimate."""
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")]
    return int(line.split()[1]) * 1024


def _remove_unused(folder: Path, wanted: Path) -> None:
    for path in folder.glob("*.images"):
        if path != wanted:
            with path.open("rb") as file:
                _remove_if_unused(path, file)


def _remove_if_unused(path: Path, file: BinaryIO) -> None:
    """To be called under the folder's lock, with the file open."""
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)


def _leave(folder: Path, path: Path, file: BinaryIO) -> None:
    """Lets go of the file, and removes it where nobody else holds it."""
    with file, suppress(OSError), FileLock(folder / "lock", timeout=1):
        _remove_if_unused(path, file)
