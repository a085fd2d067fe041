"""Which training images samples are nearest to, and whether that is nearer than images the model never saw."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import EvaluationError
from .feature_set import check_features
from .scores import Score

QUERY_ROWS, TRAINING_ROWS = 1024, 4096  # 32 MiB of distances at a time
HONEST_RATE = 0.01
FEWEST_HELDOUT = 99  # of which one percent can lie below a threshold among them


class Neighbours(NamedTuple):
    """Of each of N images the k nearest training images, the nearest first."""

    indices: NDArray[np.int64]
    """Numbers of the training images, in the order in which their features were given. [N, k]."""
    distances: NDArray[np.float64]
    """Euclidean, between features. [N, k]."""


def nearest(pool: NDArray[Any], training: Iterable[NDArray[Any]], k: int = 1) -> Neighbours:
    """Nearest training images in feature space. Memory: one part of the training features and 32 MiB.

    pool: floating [N, D]; training: the features of all training images in parts, floating [M_i, D] each, of which no
    part is kept. Candidates are found by |a|^2 - 2 ab + |b|^2, whose rounding would hide a copy, and the distances that
    are given and compared by |a - b|; all in float64.
    """
    check_features(pool, "features")
    queries, seen = torch.from_numpy(pool.astype(np.float64)), 0
    indices, distances = torch.empty(len(queries), 0, dtype=torch.int64), torch.empty(len(queries), 0).double()
    for part in training:
        check_features(part, "training features")
        if part.shape[1:] != pool.shape[1:]:
            raise EvaluationError(
                f"features of size {pool.shape[1]} against training features of size {part.shape[1]}: they come from "
                f"different layers; take them again with one extractor"
            )
        for start in range(0, len(part), TRAINING_ROWS):
            block = torch.from_numpy(part[start : start + TRAINING_ROWS].astype(np.float64))
            found = [_nearest_of_block(some, block, k) for some in queries.split(QUERY_ROWS)]
            indices = torch.cat([indices, torch.cat([index for index, _ in found]) + seen], dim=1)
            distances = torch.cat([distances, torch.cat([distance for _, distance in found])], dim=1)
            order = distances.argsort(dim=1, stable=True)[:, :k]  # of equally near ones, the first
            indices, distances = indices.gather(1, order), distances.gather(1, order)
            seen += len(block)
    if seen < k:
        raise EvaluationError(f"{k} nearest of {seen} training images: there are not as many; ask for fewer")
    return Neighbours(indices.numpy(), distances.numpy())


def _nearest_of_block(queries: Tensor, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Rows of the block and exact distances, [N, min(k, M)] each. queries: [N, D]; block: [M, D]."""
    squared = block.square().sum(dim=1) - 2 * queries @ block.T  # |a|^2 is the same for all
    rows = squared.topk(min(k, len(block)), largest=False).indices
    exact = [(queries - block[column]).square().sum(dim=1).sqrt() for column in rows.T]
    return rows, torch.stack(exact, dim=1)


def copy_rate(samples: Neighbours, heldout: Neighbours) -> Score:
    """Share of samples at least as near to a training image as the nearest percent of held-out images are.

    0.01 is expected of a model that does not memorise, 1 of one that gives training images back. The idea is Meehan,
    Chaudhuri & Dasgupta's (2020, "A non-parametric test to detect data-copying in generative models"): images that the
    model never saw say how near is too near.
    """
    distances = heldout.distances[:, 0]
    if len(distances) < FEWEST_HELDOUT:
        return Score(
            None,
            f"{len(distances)} held-out images, and one percent of them is the measure: at least {FEWEST_HELDOUT}; "
            f"raise data.heldout_fraction",
        )
    if not (np.isfinite(distances).all() and np.isfinite(samples.distances).all()):
        return Score(None, "features are not finite: the weights lack this layer")
    # Of M held-out images the k-th nearest bounds a share of k / (M + 1) on average, which is what `weibull` goes by.
    threshold = np.quantile(distances, HONEST_RATE, method="weibull")
    return Score(float((samples.distances[:, 0] <= threshold).mean()))
