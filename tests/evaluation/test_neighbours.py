"""Nearest training images are found exactly, and a model that copies is told from one that does not."""

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation import neighbours
from evaluation.errors import EvaluationError
from evaluation.neighbours import copy_rate, nearest

from .conftest import Digits

Array = NDArray[np.float32]


def features(count: int, size: int = 5, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("part_images", [1, 40, 101])
def test_parts_and_blocks_of_any_size_give_the_nearest(
    k: int, part_images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "QUERY_ROWS", 7)
    monkeypatch.setattr(neighbours, "TRAINING_ROWS", 11)
    queries, training = features(30), features(101, seed=1)
    found = nearest(queries, np.split(training, range(part_images, 101, part_images)), k)
    distances = np.linalg.norm(queries[:, None].astype(np.float64) - training, axis=2)
    np.testing.assert_array_equal(found.indices, distances.argsort(axis=1)[:, :k])
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :k], rtol=1e-12)
    assert (found.indices.dtype, found.distances.dtype) == (np.int64, np.float64)


def test_a_copy_is_at_distance_zero_however_large_the_features() -> None:
    training = 1000 + features(50)
    found = nearest(training[[7, 31]], [training])
    assert found.indices.tolist() == [[7], [31]]
    assert found.distances.tolist() == [[0.0], [0.0]]


def test_of_images_that_are_equally_near_the_first_is_given() -> None:
    training = features(20)
    assert nearest(training[:5], [training, training]).indices[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_more_neighbours_than_images_are_refused() -> None:
    with pytest.raises(EvaluationError, match="3 nearest of 2 training images"):
        nearest(features(4), [features(2)], k=3)
    with pytest.raises(EvaluationError, match="1 nearest of 0 training images"):
        nearest(features(4), [])


def test_features_of_another_layer_are_refused() -> None:
    with pytest.raises(EvaluationError, match="features of size 5 against training features of size 6"):
        nearest(features(4), [features(10, 6)])


@pytest.mark.parametrize("wrong", [np.zeros((4, 5), dtype=np.uint8), np.zeros(5), np.zeros((4, 5, 1))])
def test_features_of_the_wrong_kind_are_refused(wrong: NDArray[np.float32]) -> None:
    with pytest.raises(EvaluationError, match=r"^features: .* expected floating point"):
        nearest(wrong, [features(10)])
    with pytest.raises(EvaluationError, match=r"^training features: .* expected floating point"):
        nearest(features(10), [wrong])


def test_copies_are_all_found_and_new_images_are_not_taken_for_copies() -> None:
    training, heldout, honest = features(2000), features(1000, seed=1), features(1000, seed=2)
    known = nearest(heldout, [training])
    assert copy_rate(nearest(training[:500], [training]), known).value == 1.0
    assert copy_rate(nearest(training[:500] + 1e-6, [training]), known).value == 1.0
    assert copy_rate(known, known).value == pytest.approx(0.01, abs=1e-3)
    assert copy_rate(nearest(honest, [training]), known).value == pytest.approx(0.01, abs=0.01)
    half = np.vstack([training[:500], honest[:500]])
    assert copy_rate(nearest(half, [training]), known).value == pytest.approx(0.505, abs=0.01)


def test_threshold_is_right_on_average_for_few_held_out_images() -> None:
    training = features(500)
    rates = [
        copy_rate(nearest(features(2000, seed=1), [training]), nearest(features(99, seed=seed), [training])).value
        for seed in range(2, 62)
    ]
    assert np.mean(np.array(rates, dtype=np.float64)) == pytest.approx(0.01, abs=0.004)


def test_copies_are_found_where_held_out_images_are_copies_themselves() -> None:
    training = features(200)
    heldout = np.vstack([training[:5], features(195, seed=1)])  # a data set that holds some images twice
    assert copy_rate(nearest(training, [training]), nearest(heldout, [training])).value == 1.0


def test_too_few_held_out_images_give_null_with_the_reason() -> None:
    training = features(200)
    found = copy_rate(nearest(training, [training]), nearest(features(98, seed=1), [training]))
    assert found.value is None
    assert "98 held-out images, and one percent of them is the measure: at least 99" in str(found.reason)
    assert "raise data.heldout_fraction" in str(found.reason)


def test_missing_layers_give_null_with_the_reason() -> None:
    missing = np.full((120, 5), np.nan, dtype=np.float32)
    found = copy_rate(nearest(missing, [features(20)]), nearest(features(120, seed=1), [features(20)]))
    assert found.value is None
    assert "not finite" in str(found.reason)


def test_training_digits_are_told_from_new_ones(digits: Digits) -> None:
    training, heldout = (part.reshape(len(part), -1).astype(np.float32) for part in (digits.train, digits.heldout))
    known, new = (nearest(part, [training]) for part in (heldout[:180], heldout[180:]))
    assert copy_rate(nearest(training[::7], [training]), known).value == 1.0
    found = copy_rate(new, known).value
    assert found is not None
    assert found < 0.05
