"""The scores of a set of images, from its features, and what a classifier sees in them.

A score that the extractor's weights or the number of images cannot give is null with its reason; images that cannot be
scored at all are an error.
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
from .extractors import ExtractorIdentity
from .feature_set import FEWEST_IMAGES, FeatureSet, check_count, check_features, subset_of
from .frechet import BLOCKS
from .inception import PUBLISHED_SHA256
from .moments import Statistics

LARGEST_KERNEL_SUBSET = 1000  # images; torch-fidelity's and the paper's


class Score(NamedTuple):
    """A number, or why there is none."""

    value: float | None
    """None: it cannot be given."""
    reason: str | None = None
    """Why there is no value."""


class ScoreNames(NamedTuple):
    """Under which names an extractor's scores are stored."""

    frechet_distance: str
    frechet_distance_se: str
    frechet_distance_bias_corrected: str
    inception_score_mean: str
    inception_score_std: str
    kernel_distance: str
    kernel_distance_std: str
    precision: str
    recall: str
    copy_rate: str


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
        label = ""
    else:
        label = f"_{extractor.layer if extractor.kind == 'inception' else extractor.kind}"
    frechet = f"fd{label}" if extractor.kind == "dinov2" else f"fid{label}"
    return ScoreNames(
        frechet_distance=frechet,
        frechet_distance_se=f"{frechet}_se",
        frechet_distance_bias_corrected=f"{frechet}_bias_corrected",
        inception_score_mean=f"inception_score{label}_mean",
        inception_score_std=f"inception_score{label}_std",
        kernel_distance=f"kid{label}",
        kernel_distance_std=f"kid{label}_std",
        precision=f"precision{label}",
        recall=f"recall{label}",
        copy_rate=f"copy_rate{label}",
    )


def score(
    extractor: ExtractorIdentity,
    generated: FeatureSet,
    reference: Statistics,
    real: NDArray[np.floating[Any]] | None = None,
) -> dict[str, Score]:
    """All scores of generated images against the reference, by their names, but for the copy rate.

    real: features of the reference's images, [M, D], or of those of `subset_of` alone; None where only their
    statistics are known, which gives a Frechet distance but neither KID nor precision and recall.
    """
    names = score_names(extractor)
    distance = frechet_distance(generated.statistics, reference)
    standard_error, corrected = _uncertainty(generated, reference, distance)
    mean, std = inception_score(generated)
    kernel, kernel_std = kernel_distance(generated.subset, real)
    precision, recall = precision_recall(generated.subset, real)
    return {
        names.frechet_distance: distance,
        names.frechet_distance_se: standard_error,
        names.frechet_distance_bias_corrected: corrected,
        names.inception_score_mean: mean,
        names.inception_score_std: std,
        names.kernel_distance: kernel,
        names.kernel_distance_std: kernel_std,
        names.precision: precision,
        names.recall: recall,
    }


def frechet_distance(generated: Statistics, reference: Statistics) -> Score:
    """Distance of the two normal distributions. Identical sets may give -1e-6: the square root is rounded."""
    if generated.mu.shape != reference.mu.shape:
        raise EvaluationError(
            f"features of size {generated.mu.size} against a reference of size {reference.mu.size}: they "
            f"come from different layers; take the reference's statistics again with this extractor"
        )
    for name, statistics in (("generated", generated), ("reference", reference)):
        if not statistics.finite:
            return Score(None, f"features of the {name} images are not finite: the weights lack this layer")
    return _finite(fidelity.frechet_distance(generated.mu, generated.sigma, reference.mu, reference.sigma))


def _uncertainty(generated: FeatureSet, reference: Statistics, distance: Score) -> tuple[Score, Score]:
    """Standard error of the distance, and the distance without the bias of few generated images."""
    if distance.value is None:
        return distance, distance
    chunks = generated.blocks.chunks
    if chunks < BLOCKS:
        return _twice(
            f"{chunks} chunks of generated images, and the jackknife leaves out one of {BLOCKS} blocks of chunks at a "
            f"time; score more images, or lower sample.chunk_images where they are drawn here"
        )
    found = generated.blocks.uncertainty(reference)
    return _finite(found.standard_error), _finite(found.bias_corrected)


def inception_score(generated: FeatureSet) -> tuple[Score, Score]:
    """Mean and standard deviation over ten splits; the latter is their spread, not the error of the mean."""
    if generated.classes == 0:
        return _twice("this extractor gives no class probabilities")
    if not generated.logits_finite:
        return _twice("class probabilities are not finite: the weights lack the last layer")
    if generated.images < fidelity.INCEPTION_SCORE_SPLITS:
        return _twice(f"{generated.images} images, and {fidelity.INCEPTION_SCORE_SPLITS} splits need one each")
    mean, std = generated.inception_score
    return _finite(mean), _finite(std)


def kernel_distance(
    generated: NDArray[np.floating[Any]], real: NDArray[np.floating[Any]] | None
) -> tuple[Score, Score]:
    """KID: mean and standard deviation over 100 random subsets; the latter is their spread, not the error of the mean.

    Unbiased, so the mean may be slightly below 0. Subsets are of 1,000 images, or of all where there are fewer
    in one of the sets; the mean does not depend on it. [N, D] and [M, D], of which those of `subset_of` count.
    """
    pair = _pair(generated, real, FEWEST_IMAGES)
    if isinstance(pair, str):
        return _twice(pair)
    mean, std = fidelity.kernel_distance(*pair, min(LARGEST_KERNEL_SUBSET, *map(len, pair)))
    return _finite(mean), _finite(std)


def precision_recall(
    generated: NDArray[np.floating[Any]], real: NDArray[np.floating[Any]] | None
) -> tuple[Score, Score]:
    """Shares of generated images among the real ones, and of real ones among the generated.

    Both depend on the number of images. [N, D] and [M, D], of which those of `subset_of` count.
    """
    pair = _pair(generated, real, fidelity.NEIGHBOURHOOD + 1)
    if isinstance(pair, str):
        return _twice(pair)
    precision, recall = fidelity.precision_recall(*pair)
    return _finite(precision), _finite(recall)


def class_agreement(logits: NDArray[Any], asked: Tensor) -> Score:
    """Share of images in which the classifier sees the class that was asked for. logits: [N, K]; asked: int64 [N]."""
    from torchmetrics.functional.classification import multiclass_accuracy  # seconds to import

    return Score(float(multiclass_accuracy(torch.tensor(logits), asked.cpu(), logits.shape[1], average="micro")))


def class_report(logits: NDArray[Any]) -> ClassReport:
    """What the classifier says of images. logits: floating [N, K], N >= 2."""
    check_features(logits, "logits")
    check_count(len(logits), "logits")
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    top_probability = 1 / np.exp(shifted).sum(axis=1)
    counts = np.bincount(logits.argmax(axis=1), minlength=logits.shape[1])
    return ClassReport(float(top_probability.mean()), tuple(int(count) for count in counts))


def _finite(value: float) -> Score:
    """Logits that are far apart have probabilities of exactly 0, whose logarithm spoils the score."""
    return Score(value) if math.isfinite(value) else Score(None, f"{value}, not a finite number")


def _twice(reason: str) -> tuple[Score, Score]:
    return Score(None, reason), Score(None, reason)


def _pair(
    generated: NDArray[np.floating[Any]], real: NDArray[np.floating[Any]] | None, fewest: int
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]] | str:
    """The features of both sets that are compared one by one, or why they cannot be."""
    if real is None:
        return "of the reference only mean and covariance are known, and this score compares images one by one"
    sets = {"generated": generated[subset_of(len(generated))], "reference": real[subset_of(len(real))]}
    for name, features in sets.items():
        check_features(features, f"{name} features")
        if not np.isfinite(features).all():
            return f"features of the {name} images are not finite: the weights lack this layer"
        if len(features) < fewest:
            return f"{len(features)} {name} images, and this score needs at least {fewest}"
    return sets["generated"], sets["reference"]
