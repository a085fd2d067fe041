"""The Inception Score from sums over chunks is torch-fidelity's from all logits."""

import numpy as np
import pytest

from evaluation import fidelity
from evaluation.split_sums import SplitSums, split_of_each


def logits(count: int, classes: int = 11, spread: float = 3.0) -> np.ndarray:
    return (spread * np.random.default_rng(0).normal(size=(count, classes))).astype(np.float32)


def streamed(values: np.ndarray, chunk_images: int) -> tuple[float, float]:
    split = split_of_each(len(values))
    starts = range(chunk_images, len(values), chunk_images)
    first, *rest = (SplitSums.of(*both) for both in zip(np.split(values, starts), np.split(split, starts), strict=True))
    return sum(rest, first).inception_score


@pytest.mark.parametrize("count", [10, 11, 105, 1000, 2003])
@pytest.mark.parametrize("chunk_images", [1, 37, 250])
def test_sums_give_torch_fidelitys_score(count: int, chunk_images: int) -> None:
    values = logits(count)
    assert streamed(values, chunk_images) == pytest.approx(fidelity.inception_score(values), rel=1e-12)


def test_order_by_class_does_not_change_the_score() -> None:
    values = np.repeat(100 * np.eye(10, dtype=np.float32), 500, axis=0)
    assert streamed(values, 250)[0] == pytest.approx(10, abs=0.15)
    assert streamed(values, 250) == pytest.approx(fidelity.inception_score(values), rel=1e-12)


def test_every_split_has_its_share_of_the_images() -> None:
    counts = np.bincount(split_of_each(2003), minlength=10)
    assert counts.tolist() == [(i + 1) * 2003 // 10 - i * 2003 // 10 for i in range(10)]


def test_a_probability_that_is_zero_everywhere_spoils_both_scores_alike() -> None:
    values = np.tile(np.array([0.0, 5000.0]), (20, 1))
    assert np.isnan(fidelity.inception_score(values)[0])
    assert np.isnan(streamed(values, 5)[0])
