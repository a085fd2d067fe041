"""The order in which training sees the images: a function of (seed, position in the stream) and of nothing else.

Position p of the endless stream of training images lies in epoch p // n, which has each of the n images once. A batch
is a range of positions, and a worker takes its share of that range, so the same global batch is built by any number of
workers, and one integer, the images seen, says where to go on.

Images are numbered shard after shard. The whole set is permuted, or, for sets too large to be had at once, the shards
are, and then the images within every block of so many shards.
"""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from model import Record, Stream, words

Indices = NDArray[np.int64]

_WORDS_AT_ONCE = 1 << 14  # bounds memory, fits a processor's cache, and is too few for torch to start threads


class Order(ABC):
    """An endless, seeded stream of the samples 0..n-1, each once per epoch."""

    n: int

    @abstractmethod
    def stretch(self, position: int) -> tuple[Indices, int]:
        """Consecutive samples of the stream, and the place of this position among them."""

    @abstractmethod
    def shards_ahead(self, position: int) -> tuple[int, ...]:
        """Shards that are read from this position on, the most urgent first; equal as long as nothing new is needed."""

    def samples(self, start: int, stop: int) -> Indices:
        """Samples at the stream positions [start, stop). -> int64 [stop - start], each in [0, n)."""
        parts = []
        while start < stop:
            samples, offset = self.stretch(start)
            parts.append(samples[offset : offset + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


class SampleOrder(Order):
    """Each epoch is a fresh permutation of all n images."""

    def __init__(self, n: int, seed: int, shards: int = 0) -> None:
        self.n = n
        self.seed = seed
        self._shards = tuple(range(shards))

    def stretch(self, position: int) -> tuple[Indices, int]:
        epoch, offset = divmod(position, self.n)
        return permutation(self.n, self.seed, epoch), offset

    def shards_ahead(self, position: int) -> tuple[int, ...]:
        del position  # any batch may need any shard
        return self._shards


class BlockOrder(Order):
    """Each epoch permutes the shards, then the samples of each `block_shards` of them that follow one another.

    With one block of all shards it is the order of `SampleOrder`. shard_sizes: samples of each shard, int64 [shards].
    """

    def __init__(self, shard_sizes: Indices, block_shards: int, seed: int) -> None:
        self.n = int(shard_sizes.sum())
        self.seed = seed
        self.block_shards = block_shards
        self._sizes = shard_sizes
        self._firsts = np.cumsum(shard_sizes) - shard_sizes
        self._blocks = lru_cache(2)(self._draw_blocks)
        self._ends = lru_cache(2)(self._find_ends)
        self._samples = lru_cache(2)(self._draw_samples)
        self._ahead = lru_cache(2)(self._find_ahead)

    def stretch(self, position: int) -> tuple[Indices, int]:
        epoch, block, offset = self._place(position)
        return self._samples(epoch, block), offset

    def shards_ahead(self, position: int) -> tuple[int, ...]:
        epoch, block, _ = self._place(position)
        return self._ahead(epoch, block)

    def _place(self, position: int) -> tuple[int, int, int]:
        """Epoch, block in it, and offset in that block."""
        epoch, offset = divmod(position, self.n)
        ends = self._ends(epoch)
        block = int(np.searchsorted(ends, offset, side="right"))
        return epoch, block, offset - (int(ends[block - 1]) if block else 0)

    def _draw_blocks(self, epoch: int) -> list[Indices]:
        """The shards of each block, in the order of this epoch."""
        shards = np.flatnonzero(self._sizes)
        # The first word of a number orders the sample of that number, the second the shard.
        draws = words(self.seed, Stream.ORDER, torch.from_numpy(shards), 2, step=epoch)[:, 1]
        shards = shards[draws.sort(stable=True).indices.numpy()]
        return [shards[start : start + self.block_shards] for start in range(0, len(shards), self.block_shards)]

    def _find_ends(self, epoch: int) -> Indices:
        """Positions within the epoch at which its blocks end."""
        return np.cumsum([self._sizes[shards].sum() for shards in self._blocks(epoch)])

    def _draw_samples(self, epoch: int, block: int) -> Indices:
        shards = np.sort(self._blocks(epoch)[block])
        ranges = [np.arange(self._firsts[shard], self._firsts[shard] + self._sizes[shard]) for shard in shards]
        samples = np.concatenate(ranges)
        return samples[_order_by_words(torch.from_numpy(samples), self.seed, epoch)]

    def _find_ahead(self, epoch: int, block: int) -> tuple[int, ...]:
        here = self._blocks(epoch)
        after = here[block + 1] if block + 1 < len(here) else self._blocks(epoch + 1)[0]
        return tuple(dict.fromkeys([*here[block].tolist(), *after.tolist()]))


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def permutation(n: int, seed: int, epoch: int) -> Indices:
    """Samples in the order of their 32-bit random words, ties by number. -> int64 [n]."""
    return _order_by_words(torch.arange(n), seed, epoch)


def _order_by_words(samples: Tensor, seed: int, epoch: int) -> Indices:
    """By our own generator: numpy does not promise that its permutations stay the same from release to release."""
    drawn = torch.empty_like(samples)
    for start in range(0, len(samples), _WORDS_AT_ONCE):
        part = samples[start : start + _WORDS_AT_ONCE]
        drawn[start : start + len(part)] = words(seed, Stream.ORDER, part, 1, step=epoch)[:, 0]
    return drawn.sort(stable=True).indices.numpy()


class Permutation(Record):
    """Every epoch is a new permutation of the whole set."""

    kind: Literal["permutation"] = "permutation"

    def open(self, shard_sizes: Indices, seed: int) -> Order:
        return SampleOrder(int(shard_sizes.sum()), seed, len(shard_sizes))

    def most_bytes(self, shard_bytes: Indices) -> int:
        """Bytes of the shards that are in use at one time, at most."""
        return int(shard_bytes.sum())


class Blocks(Record):
    """For very large sets: every epoch permutes the shards, then the images of each so many shards in turn."""

    kind: Literal["blocks"] = "blocks"
    shards: int = Field(ge=1)
    """Shards of one block; its images mix among themselves only, and this block and the next are in use at one time."""

    def open(self, shard_sizes: Indices, seed: int) -> Order:
        return BlockOrder(shard_sizes, self.shards, seed)

    def most_bytes(self, shard_bytes: Indices) -> int:
        """Bytes of the shards that are in use at one time, at most."""
        return int(np.sort(shard_bytes)[-2 * self.shards :].sum())


OrderConfig = Annotated[Permutation | Blocks, Field(discriminator="kind")]
