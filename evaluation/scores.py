"""Frechet distance, Inception Score and what a classifier sees in the images; all from features.

A score that the extractor's weights cannot give is null with its reason; images that cannot be scored are an
error.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import fidelity
from .errors import EvaluationError
from .extractors import ExtractorIdentity, Features
from .inception import PUBLISHED_SHA256

FEWEST_IMAGES = 2  # a covariance needs two


class Score(NamedTuple):
    """A number, or why there is none."""

    value: float | None
    """None: the extractor cannot give it."""
    reason: str | None = None
    """Why there is no value."""


class ScoreNames(NamedTuple):
    """Under which names an extractor's scores are stored."""

    frechet_distance: str
    inception_score_mean: str
    inception_score_std: str


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a set of features; NaN throughout if any feature is not finite."""

    mu: NDArray[np.float64]
    """[D]."""
    sigma: NDArray[np.float64]
    """[D, D], unbiased."""
    images: int
    """Number of images they were taken from."""


@dataclass(frozen=True)
class ClassReport:
    """What a classifier makes of images."""

    mean_confidence: float
    """Mean probability of the most probable class, in (0, 1]."""
    class_counts: tuple[int, ...]
    """Images per most probable class, [K]."""

    @property
    def classes_present(self) -> int:
        """Number of classes that at least one image is taken for."""
        return sum(count > 0 for count in self.class_counts)


def score_names(extractor: ExtractorIdentity) -> ScoreNames:
    """Bare names only for the network and layer of published figures; else the extractor is in the name."""
    if extractor.kind == "inception" and (extractor.layer, extractor.digest) == ("2048", PUBLISHED_SHA256):
        return ScoreNames("fid", "inception_score_mean", "inception_score_std")
    label = extractor.layer if extractor.kind == "inception" else extractor.kind
    return ScoreNames(f"fid_{label}", f"inception_score_{label}_mean", f"inception_score_{label}_std")


def score(extractor: ExtractorIdentity, generated: Features, reference: Statistics) -> dict[str, Score]:
    """All scores of generated images against the reference, by their names."""
    names = score_names(extractor)
    mean, std = inception_score(generated.logits)
    distance = frechet_distance(feature_statistics(generated.pool), reference)
    return {
        names.frechet_distance: distance,
        names.inception_score_mean: mean,
        names.inception_score_std: std,
    }


def feature_statistics(features: NDArray[Any]) -> Statistics:
    """Mean and covariance in float64. features: floating [N, D], N >= 2."""
    _check_features(features, "features")
    if np.isfinite(features).all():
        return Statistics(*fidelity.statistics(features), images=len(features))
    size = features.shape[1]
    return Statistics(np.full(size, np.nan), np.full((size, size), np.nan), images=len(features))


def frechet_distance(generated: Statistics, reference: Statistics) -> Score:
    """Distance of the two normal distributions. Identical sets may give -1e-6: the square root is rounded."""
    if generated.mu.shape != reference.mu.shape:
        raise EvaluationError(
            f"features of size {generated.mu.size} against a reference of size {reference.mu.size}: they "
            f"come from different layers; take the reference's statistics again with this extractor"
        )
    for name, statistics in (("generated", generated), ("reference", reference)):
        if not np.isfinite(statistics.sigma).all():
            return Score(None, f"features of the {name} images are not finite: the weights lack this layer")
    return _finite(fidelity.frechet_distance(generated.mu, generated.sigma, reference.mu, reference.sigma))


def inception_score(logits: NDArray[Any]) -> tuple[Score, Score]:
    """Mean and standard deviation over ten splits; the latter is their spread, not the error of the mean.

    logits: floating [N, K], N >= 2; with fewer images than splits there is no score.
    """
    _check_features(logits, "logits")
    if not np.isfinite(logits).all():
        lacking = Score(None, "class probabilities are not finite: the weights lack the last layer")
        return lacking, lacking
    if len(logits) < fidelity.INCEPTION_SCORE_SPLITS:
        few = Score(None, f"{len(logits)} images, and {fidelity.INCEPTION_SCORE_SPLITS} splits need one each")
        return few, few
    mean, std = fidelity.inception_score(logits)
    return _finite(mean), _finite(std)


def class_agreement(logits: NDArray[Any], asked: Tensor) -> Score:
    """Share of images in which the classifier sees the class that was asked for. logits: [N, K]; asked: int64 [N]."""
    from torchmetrics.functional.classification import multiclass_accuracy  # seconds to import

    return Score(float(multiclass_accuracy(torch.tensor(logits), asked.cpu(), logits.shape[1], average="micro")))


def class_report(logits: NDArray[Any]) -> ClassReport:
    """What the classifier says of images. logits: floating [N, K], N >= 2."""
    _check_features(logits, "logits")
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    top_probability = 1 / np.exp(shifted).sum(axis=1)
    counts = np.bincount(logits.argmax(axis=1), minlength=logits.shape[1])
    return ClassReport(float(top_probability.mean()), tuple(int(count) for count in counts))


def _finite(value: float) -> Score:
    """Logits that are far apart have probabilities of exactly 0, whose logarithm spoils the score."""
    return Score(value) if math.isfinite(value) else Score(None, f"{value}, not a finite number")


def _check_features(features: NDArray[Any], name: str) -> None:
    if not np.issubdtype(features.dtype, np.floating) or features.ndim != 2:
        raise EvaluationError(f"{name}: {features.dtype} {list(features.shape)}, expected floating point [N, D]")
    if len(features) < FEWEST_IMAGES:
        raise EvaluationError(
            f"{name} of {len(features)} images, a score needs at least {FEWEST_IMAGES}; raise sample.images, "
            f"or check the reference images"
        )
