"""A set gathered from chunks is the whole set, and only the whole set is scored."""

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.errors import EvaluationError
from evaluation.extractors import Features
from evaluation.feature_set import FeatureSet, feature_statistics, subset_of
from evaluation.fidelity import inception_score


def features(count: int, size: int = 6, classes: int = 5) -> Features:
    random = np.random.default_rng(0)
    return Features(
        random.normal(size=(count, size)).astype(np.float32), random.normal(size=(count, classes)).astype(np.float32)
    )


def test_kept_features_give_torch_fidelitys_numbers_to_the_bit() -> None:
    whole = features(503)
    gathered = FeatureSet.of(whole, 50)
    np.testing.assert_array_equal(gathered.statistics.sigma, feature_statistics(whole.pool).sigma)
    assert gathered.inception_score == inception_score(whole.logits)


@pytest.mark.parametrize("chunk_images", [1, 50, 503])
def test_streamed_sums_give_them_to_rounding(chunk_images: int) -> None:
    whole = features(503)
    gathered = FeatureSet.of(whole, chunk_images, keep_features=False)
    expected = feature_statistics(whole.pool)
    np.testing.assert_allclose(gathered.statistics.mu, expected.mu, atol=1e-15)
    np.testing.assert_allclose(gathered.statistics.sigma, expected.sigma, atol=1e-14)
    assert gathered.inception_score == pytest.approx(inception_score(whole.logits), rel=1e-12)


def test_subset_is_all_images_until_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    np.testing.assert_array_equal(subset_of(10_000), np.arange(10_000))
    chosen = subset_of(25_000)
    assert len(np.unique(chosen)) == 10_000
    np.testing.assert_array_equal(chosen, np.sort(chosen))
    np.testing.assert_allclose(np.bincount(chosen % 10), 1000, atol=100)  # where every tenth image is of one class
    monkeypatch.setattr("evaluation.feature_set.SUBSET_IMAGES", 40)
    whole = features(503)
    for keep_features in (True, False):
        subset = FeatureSet.of(whole, 50, keep_features).subset
        np.testing.assert_array_equal(subset, whole.pool[subset_of(503)])


def test_streaming_keeps_no_features_but_the_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.feature_set.SUBSET_IMAGES", 40)
    gathered = FeatureSet.of(features(503), 50, keep_features=False)
    assert gathered._kept is None
    assert sum(len(part) for part in gathered._subset) == 40
    assert all(part.base is None for part in gathered._subset)  # no view that holds on to a chunk


def test_part_of_a_set_is_never_scored() -> None:
    whole, gathered = features(20), FeatureSet(30)
    gathered.add(0, whole)
    for name in ("statistics", "blocks", "subset", "inception_score", "classes"):
        with pytest.raises(EvaluationError, match="20 of 30 images: a score is of the whole set"):
            getattr(gathered, name)
    with pytest.raises(EvaluationError, match="chunk 1 ends at image 40 of 30"):
        gathered.add(1, whole)


def test_chunks_out_of_order_leave_the_set_as_it_was() -> None:
    gathered = FeatureSet(30)
    gathered.add(0, features(10))
    with pytest.raises(EvaluationError, match="chunk 2 where chunk 1 is next"):
        gathered.add(2, features(10))
    gathered.add(1, features(20))
    assert gathered.statistics.images == 30


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_are_refused(count: int) -> None:
    with pytest.raises(EvaluationError, match=f"a set of {count} images, a score needs at least 2"):
        FeatureSet(count)
    with pytest.raises(EvaluationError, match=f"features of {count} images, a score needs at least 2"):
        feature_statistics(np.zeros((count, 4)))


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), dtype=np.uint8), np.zeros(4), np.zeros((4, 4, 4))])
def test_features_of_the_wrong_kind_are_refused(wrong: NDArray[np.float32]) -> None:
    with pytest.raises(EvaluationError, match=r"features: .* expected floating point"):
        feature_statistics(wrong)
    with pytest.raises(EvaluationError, match=r"features: .* expected floating point"):
        FeatureSet(4).add(0, Features(wrong, np.zeros((4, 2), dtype=np.float32)))
    with pytest.raises(EvaluationError, match=r"logits: .* expected floating point"):
        FeatureSet(4).add(0, Features(np.zeros((4, 2), dtype=np.float32), wrong))
