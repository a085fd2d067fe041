"""Reads any images of a split in any order through the index: training's and scoring's way to the data."""

import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from queue import Empty, SimpleQueue

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .image_cache import Cache, HostCache, NoRoomError
from .image_files import Pixels
from .remote import is_remote
from .shard_cache import DEFAULT, Content, ShardCache, ShardCacheConfig
from .shard_images import decode
from .shard_index import SPLITS, ShardIndex, Split
from .shard_table import BLOCK_BYTES


class ShardReader:
    """The images of one split by position. Safe between threads, and to pickle: its cache is opened anew.

    With cache "host" or "device" each image is decoded once on its node, then copied. Remote shards are read through
    the `shard_cache` of the node.
    """

    def __init__(self, index: ShardIndex, split: Split, cache: Cache, shard_cache: ShardCacheConfig = DEFAULT) -> None:
        self._index, self._split, self._cache, self._shard_cache = index, split, cache, shard_cache
        self.shard_sizes = index.counts(split)
        """Images of this split in each shard, int64 [shards]."""
        self.shape = (len(self), index.image_size, index.image_size, index.channels)
        """[N, H, W, C] of all images."""
        self._ends = np.cumsum(self.shard_sizes)
        self._remote = ShardCache(shard_cache)
        self._ahead: tuple[int, ...] = ()
        self._kept: HostCache | None = None
        self.shortage = ""
        """Why nothing is kept although it should be, for a person to read."""
        if cache != "none" and len(self):
            try:
                self._kept = HostCache(f"{index.digest} {split}", self.shape)
            except NoRoomError as shortage:
                self.shortage = str(shortage)

    def __len__(self) -> int:
        return self._index.count(self._split)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class of each image [N], or -1 throughout."""
        return self._index.labels(self._split)

    def read(self, positions: npt.NDArray[np.int64]) -> Pixels:
        """uint8 [n, H, W, C] of these positions in [0, len); any order, repetition allowed."""
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"positions {positions.min()} to {positions.max()} of {len(self)} images")
        return self._kept.read(positions, self._decode) if self._kept else self._decode(positions)

    def prefetch(self, shards: tuple[int, ...]) -> None:
        """Begins to fetch those of these shards that are remote, in this order; the same ones again cost nothing."""
        if shards is self._ahead or shards == self._ahead or not self._shard_cache.prefetch:
            return
        self._ahead = shards
        remote = [shard for shard in shards if is_remote(self._index.shards[shard].location)]
        if not remote or (self._kept and self._kept.is_full):
            return
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

    def _decode(self, positions: npt.NDArray[np.int64]) -> Pixels:
        """Shard after shard, so that each is opened once, and each from front to back."""
        images = np.empty((len(positions), *self.shape[1:]), np.uint8)
        order = np.argsort(positions, kind="stable")
        shards = np.searchsorted(self._ends, positions[order], side="right")
        for places in np.split(order, np.flatnonzero(np.diff(shards)) + 1) if len(order) else []:
            self._decode_from_one_shard(positions, places, images)
        return images

    def _decode_from_one_shard(
        self, positions: npt.NDArray[np.int64], places: npt.NDArray[np.int64], images: Pixels
    ) -> None:
        """Fills these places of `images`, whose positions one shard holds."""
        shard = int(np.searchsorted(self._ends, positions[places[0]], side="right"))
        table, first = self._index.table(shard), self._ends[shard] - self.shard_sizes[shard]
        rows = table.rows[SPLITS.index(self._split)][positions[places] - first]
        offsets = table.block[rows].astype(np.int64) * BLOCK_BYTES
        columns = (column.tolist() for column in (places, offsets, table.size[rows], table.crc32[rows]))
        _, image_size, _, channels = self.shape
        with self._opened(shard) as file:
            for place, offset, size, crc32 in zip(*columns, strict=True):
                encoded = os.pread(file, size, offset)
                try:
                    _check(encoded, size, crc32)
                    images[place] = decode(encoded, image_size, channels)
                except DataError as error:
                    image = f"image {positions[place]} of {self._split}, at byte {offset}"
                    raise DataError(f"{self._index.shard_name(shard)}: {image}: {error}") from error

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

    def __reduce__(self) -> tuple[type["ShardReader"], tuple[ShardIndex, Split, Cache, ShardCacheConfig]]:
        return ShardReader, (self._index, self._split, self._cache, self._shard_cache)


def _check(encoded: bytes, size: int, crc32: int) -> None:
    if len(encoded) != size:
        raise DataError(f"{len(encoded)} bytes, the index says {size}; restore the shard")
    if zlib.crc32(encoded) != crc32:
        raise DataError("not the bytes that were indexed; restore the shard or prepare the data again")
