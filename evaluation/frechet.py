"""The Frechet distance once more, faster: for its own uncertainty, and for checks while a training runs.

The distance that is reported is torch-fidelity's. This one differs from it by rounding alone, relative 1e-9, or 1e-6
where there are fewer images than features. Of a reference it takes one eigendecomposition, which the reference keeps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import EvaluationError
from .moments import Moments, Statistics

BLOCKS = 10


class Uncertainty(NamedTuple):
    """What the choice of the generated images leaves open; that of the reference and of the training is not in it."""

    standard_error: float
    """Of the distance."""
    bias_corrected: float
    """The distance without what is due to the number of generated images, to first order in its inverse."""


def fast_frechet_distance(generated: Statistics, reference: Statistics) -> float:
    """Heusel et al. 2017, eq. 6: |mu_g - mu_r|^2 + tr(sigma_g + sigma_r - 2 sqrt(sigma_g sigma_r)). Both finite.

    With R R' = sigma_r, the product has the eigenvalues of R' sigma_g R, which is symmetric and has no negative ones.
    """
    root = torch.from_numpy(reference.root)
    squared = torch.linalg.eigvalsh(root.T @ torch.from_numpy(generated.sigma) @ root)
    difference = generated.mu - reference.mu
    traces = np.trace(generated.sigma) + np.trace(reference.sigma)
    return float(difference @ difference + traces - 2 * squared.clamp(min=0).sqrt().sum().item())


class BlockMoments:
    """Moments of a set in ten blocks, chunk c of it in block c % 10. Memory: 10 D^2 float64 numbers, for any length.

    Chunks are added in ascending order, so the sums are the same to the bit whoever made the chunks, and when.
    """

    def __init__(self) -> None:
        self.chunks = 0
        """How many have been added."""
        self._blocks: list[Moments] = []

    def add(self, chunk: int, pool: NDArray[np.floating[Any]]) -> None:
        """Add the next chunk's features, [B, D]. EvaluationError where it is not the next one."""
        if chunk != self.chunks:
            raise EvaluationError(
                f"chunk {chunk} where chunk {self.chunks} is next: sums are taken in ascending order, of every chunk "
                f"once, since their last bits depend on it"
            )
        moments, block = Moments.of(pool), chunk % BLOCKS
        if chunk < BLOCKS:
            self._blocks.append(moments)
        else:
            self._blocks[block] = self._blocks[block].merged(moments)
        self.chunks += 1

    @property
    def total(self) -> Moments:
        """Of all chunks; at least one has been added."""
        total = self._blocks[0]
        for block in self._blocks[1:]:
            total = total.merged(block)
        return total

    def uncertainty(self, reference: Statistics) -> Uncertainty:
        """By the jackknife that leaves out one block at a time; of ten chunks at least, all finite.

        Blocks may differ in size: Busing, Meijer & Van der Leeden 1999, "Delete-m jackknife for unequal m".
        """
        total = self.total
        left_out = [fast_frechet_distance(total.without(block).statistics, reference) for block in self._blocks]
        whole = fast_frechet_distance(total.statistics, reference)
        return _delete_m_jackknife(whole, left_out, [block.images / total.images for block in self._blocks])


def _delete_m_jackknife(whole: float, left_out: Sequence[float], shares: Sequence[float]) -> Uncertainty:
    """Ibid. left_out: the estimates without a block each; shares: of the images, which that block holds."""
    estimates, h = np.array(left_out), 1 / np.array(shares)
    corrected = len(h) * whole - ((1 - 1 / h) * estimates).sum()
    pseudo = h * whole - (h - 1) * estimates
    variance = (np.square(pseudo - corrected) / (h - 1)).mean()
    return Uncertainty(float(np.sqrt(variance)), float(corrected))
