"""Scores against closed forms, another implementation, and variants that are known to be wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from evaluation import fidelity
from evaluation.errors import EvaluationError
from evaluation.extractors import ExtractorIdentity, Features
from evaluation.feature_set import FeatureSet, feature_statistics
from evaluation.inception import PUBLISHED_SHA256
from evaluation.moments import Statistics
from evaluation.scores import (
    Score,
    class_agreement,
    class_report,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    score,
    score_names,
)

Array = NDArray[np.float64]


def features(count: int, size: int, seed: int = 0) -> Array:
    """Correlated features with a mean, float64 [N, D]."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, size)) @ random.normal(size=(size, size)) + random.normal(size=size)


def of_logits(logits: NDArray[np.floating]) -> FeatureSet:
    """A set of images of which only what a classifier sees matters."""
    return FeatureSet.of(Features(np.zeros((len(logits), 2), dtype=np.float32), logits), 7)


def distance(a: Array, b: Array) -> float:
    value = frechet_distance(feature_statistics(a), feature_statistics(b)).value
    assert value is not None
    return value


@settings(max_examples=25, deadline=None)
@given(shift=st.lists(st.floats(-10, 10), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_equal_covariances_leave_the_squared_distance_of_means(shift: list[float], seed: int) -> None:
    a = features(50, len(shift), seed)
    assert distance(a, a + shift) == pytest.approx(np.dot(shift, shift), abs=1e-4)


def test_diagonal_covariances_give_the_sum_of_squared_differences_of_deviations() -> None:
    random = np.random.default_rng(0)
    a, b = random.uniform(0.1, 5, size=(2, 12))
    zero = np.zeros(12)
    found = frechet_distance(Statistics(zero, np.diag(a), 100), Statistics(zero, np.diag(b), 100)).value
    assert found == pytest.approx(np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-12)


@pytest.mark.parametrize(("count", "size"), [(20, 64), (3, 64), (2, 5)])
def test_fewer_images_than_features_still_give_the_closed_form(count: int, size: int) -> None:
    a = features(count, size)
    mu, sigma = a.mean(axis=0), np.cov(a, rowvar=False)
    assert distance(a, 2 * a) == pytest.approx(mu @ mu + np.trace(sigma), rel=1e-6)


def test_features_that_are_always_zero_change_nothing() -> None:
    a, b = features(100, 8, 0), features(100, 8, 1)
    dead = np.zeros((100, 4))
    assert distance(np.hstack([a, dead]), np.hstack([b, dead])) == pytest.approx(distance(a, b), rel=1e-9)


def test_a_set_is_at_distance_zero_from_itself() -> None:
    a = features(30, 64)
    assert abs(distance(a, a)) < 1e-6 * np.trace(np.cov(a, rowvar=False))


def test_distance_is_symmetric_and_blind_to_rotation() -> None:
    a, b = features(200, 16, 0), features(200, 16, 1)
    rotation, _ = np.linalg.qr(features(16, 16, 2))
    assert distance(b, a) == pytest.approx(distance(a, b), rel=1e-9)
    assert distance(a @ rotation, b @ rotation) == pytest.approx(distance(a, b), rel=1e-9)


def test_covariance_is_the_unbiased_one() -> None:
    a, b = np.array([[0.0], [2.0]]), np.array([[0.0], [0.0]])
    assert distance(a, b) == pytest.approx(1 + 2, rel=1e-12)  # dividing by N instead of N - 1 would give 1 + 1


class Identity(torch.nn.Module):
    num_features = 16

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return given


def test_torchmetrics_finds_the_same_distance() -> None:
    a, b = features(300, 16, 0), features(200, 16, 1)
    metric = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    metric.update(torch.from_numpy(b), real=True)
    metric.update(torch.from_numpy(a), real=False)
    assert metric.compute().item() == pytest.approx(distance(a, b), rel=1e-6)


def test_probabilities_that_never_change_score_one() -> None:
    mean, std = inception_score(of_logits(np.tile(np.array([0.3, -1.0, 2.0], dtype=np.float32), (100, 1))))
    assert mean.value == pytest.approx(1, abs=1e-12)
    assert std.value == pytest.approx(0, abs=1e-12)


def test_certain_and_balanced_classes_score_almost_their_number_in_any_order() -> None:
    logits = np.repeat(np.eye(10, dtype=np.float32) * 100, 500, axis=0)  # sorted by class
    mean, _ = inception_score(of_logits(logits))
    assert mean.value == pytest.approx(10, abs=0.15)
    unshuffled = fidelity.isc_features_to_metric(torch.from_numpy(logits), shuffle=False)
    assert unshuffled["inception_score_mean"] == pytest.approx(1)  # each split would see one class only


def test_inception_score_is_the_mean_over_ten_shuffled_splits() -> None:
    logits = features(105, 7)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    p = p[np.random.RandomState(2020).permutation(105)]
    bounds = [split * 105 // 10 for split in range(1, 10)]
    by_split = [np.exp((q * np.log(q / q.mean(axis=0))).sum(axis=1).mean()) for q in np.split(p, bounds)]
    mean, std = inception_score(of_logits(logits))
    assert mean.value == pytest.approx(np.mean(by_split), rel=1e-12)
    assert std.value == pytest.approx(np.std(by_split), rel=1e-12)


def test_arrays_that_may_not_be_written_are_scored() -> None:
    logits = features(20, 4)
    logits.flags.writeable = False  # as Ray's object store gives them
    assert inception_score(of_logits(logits)) == inception_score(of_logits(logits.copy()))
    assert distance(logits, features(20, 4, 1)) == distance(logits.copy(), features(20, 4, 1))


def test_missing_layers_give_null_with_the_reason() -> None:
    identity = ExtractorIdentity(kind="inception", layer="2048", digest="0", resize="tf1-bilinear-299")
    missing = Features(*(np.full((20, 4), np.nan, dtype=np.float32),) * 2)
    real = features(20, 4)
    found = score(identity, FeatureSet.of(missing, 2), feature_statistics(real), real)
    assert {name: found[name].value for name in found} == dict.fromkeys(score_names(identity)[:-1])
    for name in ("fid_2048", "fid_2048_se", "fid_2048_bias_corrected", "kid_2048", "precision_2048", "recall_2048"):
        assert "generated images are not finite" in str(found[name].reason)
    assert "probabilities are not finite" in str(found["inception_score_2048_mean"].reason)


def test_reference_without_finite_features_gives_null_with_the_reason() -> None:
    missing = feature_statistics(np.array([[1.0, np.inf], [2.0, 3.0]]))
    found = frechet_distance(feature_statistics(features(20, 2)), missing)
    assert found.value is None
    assert "reference images are not finite" in str(found.reason)


def test_nine_images_have_a_distance_but_no_inception_score() -> None:
    reason = "9 images, and 10 splits need one each"
    assert inception_score(of_logits(features(9, 4))) == (Score(None, reason), Score(None, reason))
    assert None not in [part.value for part in inception_score(of_logits(features(10, 4)))]


def test_logits_too_far_apart_for_their_probabilities_give_null_rather_than_nan() -> None:
    logits = np.tile(np.array([0.0, 5000.0]), (20, 1))  # the first probability underflows to 0 in every image
    mean, std = inception_score(of_logits(logits))
    assert (mean.value, std.value) == (None, None)
    assert "not a finite number" in str(mean.reason)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_are_refused(count: int) -> None:
    with pytest.raises(EvaluationError, match=f"logits of {count} images, a score needs at least 2"):
        class_report(np.zeros((count, 4)))


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), dtype=np.uint8), np.zeros(4), np.zeros((4, 4, 4))])
def test_features_of_the_wrong_kind_are_refused(wrong: Array) -> None:
    with pytest.raises(EvaluationError, match=r"logits: .* expected floating point"):
        class_report(wrong)
    with pytest.raises(EvaluationError, match=r"reference features: .* expected floating point"):
        kernel_distance(features(4, 4), wrong)


def test_features_of_different_layers_are_not_compared() -> None:
    with pytest.raises(EvaluationError, match="features of size 4 against a reference of size 8"):
        frechet_distance(feature_statistics(features(20, 4)), feature_statistics(features(20, 8)))


@pytest.mark.parametrize(
    ("kind", "layer", "digest", "label"),
    [
        ("inception", "2048", PUBLISHED_SHA256, None),
        ("inception", "768", PUBLISHED_SHA256, "768"),
        ("inception", "2048", "0" * 64, "2048"),
        ("inception", "64", "0" * 64, "64"),
        ("classifier", "64", "0" * 64, "classifier"),
        ("classifier", "2048", PUBLISHED_SHA256, "classifier"),
        ("dinov2", "class-token-1024", "0" * 64, "dinov2"),
    ],
)
def test_only_the_2015_inception_at_2048_gets_the_bare_names(
    kind: str, layer: str, digest: str, label: str | None
) -> None:
    names = score_names(ExtractorIdentity(kind=kind, layer=layer, digest=digest, resize="none"))
    suffix = f"_{label}" if label else ""
    frechet = "fd_dinov2" if kind == "dinov2" else f"fid{suffix}"
    assert names == (
        frechet,
        f"{frechet}_se",
        f"{frechet}_bias_corrected",
        f"inception_score{suffix}_mean",
        f"inception_score{suffix}_std",
        f"kid{suffix}",
        f"kid{suffix}_std",
        f"precision{suffix}",
        f"recall{suffix}",
        f"copy_rate{suffix}",
    )


def test_class_report_counts_classes_and_averages_the_top_probability() -> None:
    probabilities = np.array([[0.9, 0.05, 0.05], [0.1, 0.1, 0.8], [0.7, 0.2, 0.1]])
    report = class_report(np.log(probabilities))
    assert report.mean_confidence == pytest.approx(0.8)
    assert report.class_counts == (2, 0, 1)
    assert report.classes_present == 2


def test_class_agreement_is_the_share_of_images_seen_as_they_were_asked_for() -> None:
    logits = np.log(np.array([[0.9, 0.05, 0.05], [0.1, 0.1, 0.8], [0.7, 0.2, 0.1], [0.2, 0.5, 0.3]]))
    logits.flags.writeable = False
    assert class_agreement(logits, torch.tensor([0, 1, 0, 1])).value == 0.75


CLASSIFIER = ExtractorIdentity(kind="classifier", layer="8", digest="0", resize="none")


def scores_of(chunks: int, real: Array | None, keep_features: bool = True) -> dict[str, Score]:
    """Of so many chunks of ten images each."""
    generated = Features(features(10 * chunks, 8).astype(np.float32), features(10 * chunks, 5).astype(np.float32))
    gathered = FeatureSet.of(generated, 10, keep_features)
    return score(CLASSIFIER, gathered, feature_statistics(features(300, 8, 1)), real)


def test_every_score_has_a_value_or_a_reason_and_streaming_changes_only_rounding() -> None:
    kept, streamed = (scores_of(20, features(300, 8, 1), keep_features) for keep_features in (True, False))
    assert list(kept) == list(score_names(CLASSIFIER)[:-1])
    assert all((value is None) != (reason is None) for value, reason in kept.values())
    for name, found in kept.items():
        assert streamed[name].value == pytest.approx(found.value, rel=1e-12 if name.startswith("inception") else 1e-9)


def test_uncertainty_needs_ten_chunks_and_says_so() -> None:
    found = scores_of(9, None)
    assert found["fid_classifier"].value is not None
    for name in ("fid_classifier_se", "fid_classifier_bias_corrected"):
        assert found[name].value is None
        assert "9 chunks of generated images" in str(found[name].reason)
        assert "lower sample.chunk_images" in str(found[name].reason)
    assert scores_of(10, None)["fid_classifier_se"].value is not None


def test_bias_correction_lowers_the_distance_by_what_few_images_add() -> None:
    found = {name: value for name, (value, _) in scores_of(20, None).items()}
    distance, corrected = found["fid_classifier"], found["fid_classifier_bias_corrected"]
    assert distance is not None
    assert corrected is not None
    assert found["fid_classifier_se"] is not None
    assert 0 < found["fid_classifier_se"] < distance
    assert corrected < distance


def test_statistics_alone_give_a_distance_but_nothing_that_compares_images() -> None:
    found = scores_of(10, None)
    for name in ("kid_classifier", "kid_classifier_std", "precision_classifier", "recall_classifier"):
        assert found[name].value is None
        assert "only mean and covariance are known" in str(found[name].reason)


def test_an_extractor_without_classes_has_no_inception_score() -> None:
    mean, std = inception_score(of_logits(np.empty((20, 0), dtype=np.float32)))
    assert mean == std == Score(None, "this extractor gives no class probabilities")


def test_kernel_distance_is_the_unbiased_estimate_of_the_cubic_kernel() -> None:
    a, b = features(30, 4, 0), features(30, 4, 1)

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        return (x @ y.T / 4 + 1) ** 3

    within = [(kernel(x, x).sum() - np.trace(kernel(x, x))) / (30 * 29) for x in (a, b)]
    mean, std = kernel_distance(a, b)  # all images in each subset
    assert mean.value == pytest.approx(sum(within) - 2 * kernel(a, b).mean(), rel=1e-12)
    assert std.value == pytest.approx(0, abs=1e-9 * abs(mean.value or 0))


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all extracted features")
def test_torchmetrics_finds_the_same_kernel_distance() -> None:
    a, b = features(300, 16, 0), features(200, 16, 1)
    metric = KernelInceptionDistance(feature=Identity(), subsets=10, subset_size=200).set_dtype(torch.float64)
    metric.update(torch.from_numpy(b), real=True)
    metric.update(torch.from_numpy(a[:200]), real=False)
    assert metric.compute()[0].item() == pytest.approx(kernel_distance(a[:200], b)[0].value, rel=1e-6)


def test_precision_and_recall_count_who_is_within_the_third_neighbours_distance() -> None:
    a, b = features(40, 3, 0), 1.5 * features(50, 3, 1)

    def covered(points: Array, centres: Array) -> float:
        among = np.linalg.norm(centres[:, None] - centres, axis=2)
        radius = np.sort(among, axis=1)[:, 3]  # the nearest is the image itself
        return float((np.linalg.norm(points[:, None] - centres, axis=2) <= radius).any(axis=1).mean())

    precision, recall = precision_recall(a, b)
    assert (precision.value, recall.value) == pytest.approx((covered(a, b), covered(b, a)))
    assert precision.value != recall.value  # they would not tell if they were swapped


def test_scores_of_neighbours_need_some_and_say_so() -> None:
    three = features(3, 4)
    assert (
        precision_recall(three, features(20, 4))
        == (Score(None, "3 generated images, and this score needs at least 4"),) * 2
    )
    assert precision_recall(features(20, 4), three)[0].reason == "3 reference images, and this score needs at least 4"
    assert kernel_distance(three, features(20, 4))[0].value is not None
