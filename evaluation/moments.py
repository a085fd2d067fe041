"""Mean and covariance of features in float64, of all at once or merged from parts."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a set of features; NaN throughout if any feature is not finite."""

    mu: NDArray[np.float64]
    """[D]."""
    sigma: NDArray[np.float64]
    """[D, D], unbiased."""
    images: int | None
    """Number of images they were taken from; None: unknown, of statistics that others made."""

    @property
    def finite(self) -> bool:
        """Whether the features were."""
        return bool(np.isfinite(self.mu).all() and np.isfinite(self.sigma).all())

    @cached_property
    def root(self) -> NDArray[np.float64]:
        """R with R R' = sigma, [D, rank]; an eigenvalue that rounding made negative is none. Computed once."""
        values, vectors = torch.linalg.eigh(torch.from_numpy(self.sigma))
        positive = values > 0
        root: NDArray[np.float64] = (vectors[:, positive] * values[positive].sqrt()).numpy()
        return root


@dataclass(frozen=True)
class Moments:
    """What mean and covariance of a set follow from, and what two sets can be merged by; NaN as in `Statistics`.

    Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1. The sums are rounded, so it is
    the order of merging alone that decides the last bits.
    """

    images: int
    """Number of images, at least 1."""
    mean: NDArray[np.float64]
    """[D]."""
    m2: NDArray[np.float64]
    """Sum over the images of (x - mean) (x - mean)', [D, D]."""

    @classmethod
    def of(cls, features: NDArray[np.floating[Any]]) -> "Moments":
        """Of the features of a batch, [B, D], B >= 1."""
        count, size = features.shape
        if not np.isfinite(features).all():
            return cls(count, np.full(size, np.nan), np.full((size, size), np.nan))
        x = features.astype(np.float64)
        mean = x.mean(axis=0)
        x -= mean
        return cls(count, mean, x.T @ x)

    def merged(self, other: "Moments") -> "Moments":
        """Of both sets together."""
        images = self.images + other.images
        delta = other.mean - self.mean
        m2 = self.m2 + other.m2
        m2 += np.outer(delta, delta * (self.images * other.images / images))
        return Moments(images, self.mean + delta * (other.images / images), m2)

    def without(self, part: "Moments") -> "Moments":
        """Of what is left when a part is taken out that was merged before: the same equation, solved for it."""
        images = self.images - part.images
        delta = (self.mean - part.mean) * (self.images / images)  # from the part's mean to that of the rest
        m2 = self.m2 - part.m2
        m2 -= np.outer(delta, delta * (images * part.images / self.images))
        return Moments(images, part.mean + delta, m2)

    @property
    def statistics(self) -> Statistics:
        """Mean and covariance; of 2 images at least."""
        return Statistics(self.mean, self.m2 / (self.images - 1), self.images)
