"""The Inception Score from sums over chunks: equal to torch-fidelity's to rounding, without holding all logits."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .fidelity import INCEPTION_SCORE_SPLITS, SHUFFLE_SEED


def split_of_each(images: int) -> NDArray[np.int64]:
    """In which of the ten splits torch-fidelity's shuffle puts image 0, 1, ... of so many. [N]."""
    position = np.argsort(np.random.RandomState(SHUFFLE_SEED).permutation(images))
    starts = np.arange(1, INCEPTION_SCORE_SPLITS) * images // INCEPTION_SCORE_SPLITS
    return np.searchsorted(starts, position, side="right")


@dataclass(frozen=True)
class SplitSums:
    """Of each split s, what its score follows from; sums of two sets add up."""

    images: NDArray[np.int64]
    """[S]."""
    p: NDArray[np.float64]
    """Class probabilities summed over the images, [S, K]."""
    p_log_p: NDArray[np.float64]
    """p log p summed over images and classes, [S]."""

    @classmethod
    def of(cls, logits: NDArray[np.floating[Any]], split: NDArray[np.int64]) -> "SplitSums":
        """Of a batch of images. logits: [B, K]; split: which each image belongs to, [B]."""
        values, index = torch.from_numpy(logits.astype(np.float64)), torch.from_numpy(split)
        p, log_p = values.softmax(dim=1), values.log_softmax(dim=1)
        zeros = values.new_zeros(INCEPTION_SCORE_SPLITS, logits.shape[1])
        return cls(
            images=np.bincount(split, minlength=INCEPTION_SCORE_SPLITS),
            p=zeros.index_add(0, index, p).numpy(),
            p_log_p=zeros.index_add(0, index, p * log_p).sum(dim=1).numpy(),
        )

    def __add__(self, other: "SplitSums") -> "SplitSums":
        return SplitSums(self.images + other.images, self.p + other.p, self.p_log_p + other.p_log_p)

    @property
    def inception_score(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits; NaN where torch-fidelity's is. Salimans et al. 2016.

        The mean over a split of KL(p || q), q being the mean of p, is the mean of p log p less q log q.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            q = self.p / self.images[:, None]
            scores = np.exp(self.p_log_p / self.images - (q * np.log(q)).sum(axis=1))
        return float(scores.mean()), float(scores.std())
