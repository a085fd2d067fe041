"""Reads any images of a split in any order through the index: training's and scoring's way to the data."""

import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .image_files import Pixels, decode
from .remote import is_remote
from .shard_cache import DEFAULT, Content, ShardCache, ShardCacheConfig
from .shard_index import SPLITS, ShardIndex, Split
from .shard_table import BLOCK_BYTES, ShardTable

Cache = Literal["none", "host"]


class ShardReader:
    """The images of one split by position. Safe between threads, and to pickle: its cache stays behind.

    With cache "host" each image is decoded once per process, then copied from one array. Remote shards are read through
    the `shard_cache` of the node.
    """

    def __init__(self, index: ShardIndex, split: Split, cache: Cache, shard_cache: ShardCacheConfig = DEFAULT) -> None:
        self._index, self._split, self._cache, self._shard_cache = index, split, cache, shard_cache
        self.shard_sizes = index.counts(split)
        """Images of this split in each shard, int64 [shards]."""
        self._ends = np.cumsum(self.shard_sizes)
        self._remote = ShardCache(shard_cache)
        self._ahead: tuple[int, ...] = ()
        self._start_cache()

    def __len__(self) -> int:
        return self._index.count(self._split)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class of each image [N], or -1 throughout."""
        return self._index.labels(self._split)

    def read(self, positions: npt.NDArray[np.int64]) -> Pixels:
        """uint8 [n, H, W, C] of these positions in [0, len); any order, repetition allowed."""
        if self._cache == "none":
            return self._decode(positions)
        if self._missing:
            with self._lock:
                self._fill(positions)
        return self._images.take(positions, axis=0)  # four times as fast as indexing where images are small

    def prefetch(self, shards: tuple[int, ...]) -> None:
        """Begins to fetch those of these shards that are remote, in this order; the same ones again cost nothing."""
        decoded = self._cache == "host" and not self._missing
        if shards is self._ahead or shards == self._ahead or decoded or not self._shard_cache.prefetch:
            return
        self._ahead = shards
        remote = [shard for shard in shards if is_remote(self._index.shards[shard].location)]
        waiting = SimpleQueue[int]()
        for shard in remote:
            waiting.put(shard)
        for _ in range(min(self._shard_cache.prefetch, len(remote))):
            # daemons, for nobody should wait at the end for what is not needed any more
            threading.Thread(target=self._fetch, args=(shards, waiting), name="prefetch", daemon=True).start()

    def _fetch(self, wanted: tuple[int, ...], waiting: SimpleQueue[int]) -> None:
        while self._ahead is wanted:  # else others are needed by now
            try:
                entry = self._index.shards[waiting.get_nowait()]
            except Empty:
                return
            with suppress(DataError, OSError):  # who reads this shard will try again, and tell
                self._remote.fill(entry.location, Content(entry.bytes, entry.sha256))

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
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"positions {positions.min()} to {positions.max()} of {len(self)} images")
        images = np.empty((len(positions), *self._image_shape), np.uint8)
        shards = np.searchsorted(self._ends, positions, side="right")
        for shard in np.unique(shards).tolist():
            table = self._index.table(shard)
            rows = table.rows[SPLITS.index(self._split)]
            first = self._ends[shard] - self.shard_sizes[shard]
            with self._opened(shard) as file:
                for place in np.flatnonzero(shards == shard).tolist():
                    position = int(positions[place])
                    where = f"{self._index.shard_name(shard)}: image {position} of {self._split}"
                    images[place] = self._decode_one(file, table, int(rows[position - first]), where)
        return images

    @contextmanager
    def _opened(self, shard: int) -> Iterator[int]:
        """Its file descriptor."""
        entry = self._index.shards[shard]
        if is_remote(entry.location):
            with self._remote.open(entry.location, Content(entry.bytes, entry.sha256)) as remote:
                yield remote.fileno()
            return
        path = self._index.shard_path(shard)
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); restore the shard") from error
        try:
            yield file
        finally:
            os.close(file)

    def _decode_one(self, file: int, table: ShardTable, row: int, where: str) -> Pixels:
        offset, size = int(table.block[row]) * BLOCK_BYTES, int(table.size[row])
        encoded = os.pread(file, size, offset)
        where = f"{where}, at byte {offset}"
        if len(encoded) != size:
            raise DataError(f"{where}: {len(encoded)} bytes, the index says {size}; restore the shard")
        if zlib.crc32(encoded) != table.crc32[row]:
            raise DataError(f"{where}: not the bytes that were indexed; restore the shard or prepare the data again")
        return decode(encoded, self._index.image_size, self._index.channels, where)

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self._index, "split": self._split, "cache": self._cache, "shard_cache": self._shard_cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # its own class, whose arguments the state holds
