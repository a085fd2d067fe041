"""What training is fed: the images at given positions of its endless stream, on their way to the device."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .image_cache import Cache, DeviceCache, NoRoomError
from .order import OrderConfig
from .reader import ShardReader
from .shard_cache import ShardCacheConfig
from .shard_index import ShardIndex


class Feed(Protocol):
    """The images of one worker."""

    @property
    def shortages(self) -> Sequence[str]:
        """Why images are not kept where they were to be, for a person to read."""

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Images uint8 [n, H, W, C] and classes int64 [n] (-1: none) at the positions [start, stop) of the stream."""


class IndexedFeed:
    """By the index: exactly the images that the order says, for any number of workers and after any restart."""

    def __init__(
        self,
        index: ShardIndex,
        cache: Cache,
        order: OrderConfig,
        shard_cache: ShardCacheConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        self._reader = ShardReader(index, "train", cache, shard_cache)
        self._order = order.open(self._reader.shard_sizes, seed)
        self._device = device
        self._on_device: DeviceCache | None = None
        self.shortages = [self._reader.shortage] if self._reader.shortage else []
        if cache == "device" and device.type != "cpu":
            try:
                self._on_device = DeviceCache(self._reader.shape, device, self._reader.read)
            except NoRoomError as shortage:
                self.shortages.append(str(shortage))

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Images uint8 [n, H, W, C] and classes int64 [n] (-1: none) at the positions [start, stop) of the stream."""
        self._reader.prefetch(self._order.shards_ahead(start))
        samples = self._order.samples(start, stop)
        labels = ready_for(self._device, torch.from_numpy(self._reader.labels[samples]))
        if self._on_device is not None:
            return self._on_device.read(samples), labels
        return ready_for(self._device, torch.from_numpy(self._reader.read(samples))), labels


def ready_for(device: torch.device, tensor: Tensor) -> Tensor:
    """The tensor in memory from which it can go to the device while the device works."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
