"""What the scores need of a set of images, gathered from the features of one chunk after another."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import fidelity
from .errors import EvaluationError
from .extractors import Features
from .frechet import BlockMoments
from .moments import Statistics
from .split_sums import SplitSums, split_of_each

SUBSET_IMAGES = 10_000
FEWEST_IMAGES = 2  # a covariance needs two


def check_features(features: NDArray[Any], name: str) -> None:
    """EvaluationError unless they are floating [N, D]."""
    if not np.issubdtype(features.dtype, np.floating) or features.ndim != 2:
        raise EvaluationError(f"{name}: {features.dtype} {list(features.shape)}, expected floating point [N, D]")


def check_count(images: int, name: str) -> None:
    """EvaluationError where these are too few for any score."""
    if images < FEWEST_IMAGES:
        raise EvaluationError(
            f"{name} of {images} images, a score needs at least {FEWEST_IMAGES}; raise sample.images, "
            f"or check the reference images"
        )


def feature_statistics(features: NDArray[Any]) -> Statistics:
    """Mean and covariance in float64, as torch-fidelity takes them. features: floating [N, D], N >= 2."""
    check_features(features, "features")
    check_count(len(features), "features")
    if np.isfinite(features).all():
        return Statistics(*fidelity.statistics(features), images=len(features))
    size = features.shape[1]
    return Statistics(np.full(size, np.nan), np.full((size, size), np.nan), images=len(features))


def subset_of(images: int) -> NDArray[np.int64]:
    """Which of so many images stand for all where a score takes too long otherwise: 10,000 at most, ascending.

    Drawn, since the first ones may all be of one class; torch-fidelity's own rule for taking fewer images.
    """
    if images <= SUBSET_IMAGES:
        return np.arange(images)
    chosen = np.random.RandomState(fidelity.SHUFFLE_SEED).choice(images, SUBSET_IMAGES, replace=False)
    return np.sort(chosen)


class FeatureSet:
    """A whole set of images. Memory: 10 D^2 float64 numbers and 10,000 images' features, or all images' if kept.

    Chunks are added in ascending order, so all that is summed is the same to the bit whoever made the chunks, and when.
    With the features kept, the statistics are torch-fidelity's own; else they differ from them by rounding.
    """

    def __init__(self, images: int, keep_features: bool = True) -> None:
        """images: of the whole set, at least 2."""
        check_count(images, "a set")
        self.images = images
        self.logits_finite = True
        """Whether all logits so far are."""
        self._added = 0
        self._blocks = BlockMoments()
        self._splits: SplitSums | None = None
        self._split, self._chosen = split_of_each(images), subset_of(images)
        self._subset: list[NDArray[np.float32]] = []
        self._kept: list[Features] | None = [] if keep_features else None

    @classmethod
    def of(cls, features: Features, chunk_images: int, keep_features: bool = True) -> "FeatureSet":
        """Of the features of all images, of which so many make a chunk."""
        images = len(features.pool)
        parts = (slice(start, start + chunk_images) for start in range(0, images, chunk_images))
        return cls.folded(
            images, (Features(features.pool[part], features.logits[part]) for part in parts), keep_features
        )

    @classmethod
    def folded(cls, images: int, chunks: Iterable[Features], keep_features: bool = True) -> "FeatureSet":
        """Of the features of so many images, chunk after chunk."""
        whole = cls(images, keep_features)
        for chunk, features in enumerate(chunks):
            whole.add(chunk, features)
        return whole

    def add(self, chunk: int, features: Features) -> None:
        """Add the features of the next chunk. EvaluationError where it is not the next, or there is no room for it."""
        check_features(features.pool, "features")
        check_features(features.logits, "logits")
        start, stop = self._added, self._added + len(features.pool)
        if stop > self.images:
            raise EvaluationError(f"chunk {chunk} ends at image {stop:,} of {self.images:,}; count the images again")
        self._blocks.add(chunk, features.pool)
        self.logits_finite &= bool(np.isfinite(features.logits).all())
        sums = SplitSums.of(features.logits, self._split[start:stop])
        self._splits = sums if self._splits is None else self._splits + sums
        first, last = np.searchsorted(self._chosen, [start, stop])
        self._subset.append(features.pool[self._chosen[first:last] - start])
        if self._kept is not None:
            self._kept.append(features)
        self._added = stop

    @property
    def statistics(self) -> Statistics:
        """Mean and covariance of all features."""
        self._check_whole()
        if self._kept is None:
            return self._blocks.total.statistics
        return feature_statistics(np.concatenate([features.pool for features in self._kept]))

    @property
    def inception_score(self) -> tuple[float, float]:
        """Mean and standard deviation over ten splits, of ten images at least. Salimans et al. 2016."""
        self._check_whole()
        if self._kept is None:
            assert self._splits is not None
            return self._splits.inception_score
        return fidelity.inception_score(np.concatenate([features.logits for features in self._kept]))

    @property
    def classes(self) -> int:
        """Number of logits; 0 where the extractor gives none."""
        self._check_whole()
        assert self._splits is not None
        return int(self._splits.p.shape[1])

    @property
    def blocks(self) -> BlockMoments:
        """Their moments in ten blocks."""
        self._check_whole()
        return self._blocks

    @property
    def subset(self) -> NDArray[np.float32]:
        """Features of the images of `subset_of`, [min(N, 10,000), D]."""
        self._check_whole()
        return np.concatenate(self._subset)

    def _check_whole(self) -> None:
        if self._added != self.images:
            raise EvaluationError(
                f"{self._added:,} of {self.images:,} images: a score is of the whole set; add the remaining chunks"
            )
