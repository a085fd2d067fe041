"""The order in which training sees the images: a function of (seed, position in the stream) and of nothing else.

Position p of the endless stream of training images lies in epoch p // n; each epoch is a fresh permutation of all n
images. A batch is a range of positions, and a worker takes its share of that range, so the same global batch is built
by any number of workers, and one integer, the images seen, says where to go on.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from model import Stream, words


class SampleOrder:
    """An endless, seeded stream of the samples 0..n-1, each once per epoch."""

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.seed = seed

    def samples(self, start: int, stop: int) -> NDArray[np.int64]:
        """Samples at the stream positions [start, stop). -> int64 [stop - start], each in [0, n)."""
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.n)
            taken = min(stop - start, self.n - offset)
            parts.append(permutation(self.n, self.seed, epoch)[offset : offset + taken])
            start += taken
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Samples in the order of their 32-bit random words, ties by number. -> int64 [n].

    By our own generator: numpy does not promise that its permutations stay the same from release to release.
    """
    return words(seed, Stream.ORDER, torch.arange(n), 1, step=epoch)[:, 0].sort(stable=True).indices.numpy()
