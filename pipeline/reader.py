"""Reads any images of a split in any order through the index: training's and scoring's way to the data."""

import os
import threading
import zlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .image_files import Pixels, decode
from .shard_index import ShardIndex, Split

Cache = Literal["none", "host"]


class ShardReader:
    """The images of one split by position. Safe between threads, and to pickle: its cache stays behind.

    With cache "host" each image is decoded once per process, then copied from one array.
    """

    def __init__(self, index: ShardIndex, split: Split, cache: Cache) -> None:
        self._index, self._split, self._cache = index, split, cache
        self._ids = index.ids(split)
        self.labels: npt.NDArray[np.int64] = index.label[self._ids]
        """Class of each image [N], or -1 throughout."""
        self._start_cache()

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, positions: npt.NDArray[np.int64]) -> Pixels:
        """uint8 [n, H, W, C] of these positions in [0, len); any order, repetition allowed."""
        if self._cache == "none":
            return self._decode(positions)
        if self._missing:
            with self._lock:
                self._fill(positions)
        return self._images.take(positions, axis=0)  # four times as fast as indexing where images are small

    def _start_cache(self) -> None:
        kept = len(self) if self._cache == "host" else 0
        # The memory is taken page by page, as images arrive.
        self._images: Pixels = np.empty((kept, *self._image_shape), np.uint8)
        self._filled = np.zeros(kept, np.bool_)
        self._missing = kept
        self._lock = threading.Lock()

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        return (self._index.image_size, self._index.image_size, self._index.channels)

    def _fill(self, positions: npt.NDArray[np.int64]) -> None:
        new = np.unique(positions[~self._filled[positions]])
        self._images[new] = self._decode(new)
        self._filled[new] = True
        self._missing -= len(new)

    def _decode(self, positions: npt.NDArray[np.int64]) -> Pixels:
        """In the order of the shards, so that each is opened once."""
        images = np.empty((len(positions), *self._image_shape), np.uint8)
        shards = self._index.shard[self._ids[positions]]
        for shard in np.unique(shards).tolist():
            path = self._index.shard_path(shard)
            try:
                file = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror}); restore the shard") from error
            try:
                for row in np.flatnonzero(shards == shard).tolist():
                    images[row] = self._decode_one(file, positions[row])
            finally:
                os.close(file)
        return images

    def _decode_one(self, file: int, position: int) -> Pixels:
        index, sample = self._index, self._ids[position]
        offset, size = int(index.offset[sample]), int(index.size[sample])
        encoded = os.pread(file, size, offset)
        where = f"{index.shard_path(index.shard[sample])}: image {position} of {self._split}, at byte {offset}"
        if len(encoded) != size:
            raise DataError(f"{where}: {len(encoded)} bytes, the index says {size}; restore the shard")
        if zlib.crc32(encoded) != index.crc32[sample]:
            raise DataError(f"{where}: not the bytes that were indexed; restore the shard or prepare the data again")
        return decode(encoded, index.image_size, index.channels, where)

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self._index, "split": self._split, "cache": self._cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # its own class, whose arguments the state holds
