"""The fast distance is torch-fidelity's, and the jackknife says what a repetition of the experiment would."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation import fidelity
from evaluation.errors import EvaluationError
from evaluation.frechet import BLOCKS, BlockMoments, fast_frechet_distance
from evaluation.moments import Moments, Statistics

Array = NDArray[np.float64]


def features(count: int, size: int, seed: int = 0) -> Array:
    """Correlated features with a mean, float64 [N, D]."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, size)) @ random.normal(size=(size, size)) + random.normal(size=size)


def statistics(x: Array) -> Statistics:
    return Moments.of(x).statistics


def slow(a: Statistics, b: Statistics) -> float:
    """torch-fidelity's."""
    return fidelity.frechet_distance(a.mu, a.sigma, b.mu, b.sigma)


def blocks_of(chunks: list[Array]) -> BlockMoments:
    blocks = BlockMoments()
    for number, chunk in enumerate(chunks):
        blocks.add(number, chunk)
    return blocks


@pytest.mark.parametrize(("count", "size"), [(300, 4), (500, 64), (1000, 256)])
def test_full_rank_agrees_with_torch_fidelity_to_a_billionth(count: int, size: int) -> None:
    a, b = statistics(features(count, size, 0)), statistics(features(count, size, 1))
    assert fast_frechet_distance(a, b) == pytest.approx(slow(a, b), rel=1e-9)


@pytest.mark.parametrize(("count", "other"), [(20, 500), (500, 20), (20, 30), (2, 2)])
def test_fewer_images_than_features_agree_to_a_millionth(count: int, other: int) -> None:
    a, b = statistics(features(count, 64, 0)), statistics(features(other, 64, 1))
    assert fast_frechet_distance(a, b) == pytest.approx(slow(a, b), rel=1e-6)


def test_features_that_are_always_zero_agree_to_a_millionth() -> None:
    dead = np.zeros((300, 20))
    a, b = (statistics(np.hstack([features(300, 16, seed), dead])) for seed in (0, 1))
    assert fast_frechet_distance(a, b) == pytest.approx(slow(a, b), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(shift=st.lists(st.floats(-10, 10), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_equal_covariances_leave_the_squared_distance_of_means(shift: list[float], seed: int) -> None:
    a = features(50, len(shift), seed)
    assert fast_frechet_distance(statistics(a), statistics(a + shift)) == pytest.approx(np.dot(shift, shift), abs=1e-4)


def test_diagonal_covariances_give_the_sum_of_squared_differences_of_deviations() -> None:
    a, b = np.random.default_rng(0).uniform(0.1, 5, size=(2, 12))
    zero = np.zeros(12)
    found = fast_frechet_distance(Statistics(zero, np.diag(a), 100), Statistics(zero, np.diag(b), 100))
    assert found == pytest.approx(np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-12)


def test_a_set_is_at_distance_zero_from_itself() -> None:
    for count in (30, 300):
        a = statistics(features(count, 64))
        assert abs(fast_frechet_distance(a, a)) < 1e-6 * np.trace(a.sigma)


@pytest.mark.parametrize("count", [10, 200])
def test_distance_is_symmetric_and_blind_to_rotation(count: int) -> None:
    a, b = features(count, 16, 0), features(200, 16, 1)
    rotation, _ = np.linalg.qr(features(16, 16, 2))
    expected = fast_frechet_distance(statistics(a), statistics(b))
    assert fast_frechet_distance(statistics(b), statistics(a)) == pytest.approx(expected, rel=1e-7)
    assert fast_frechet_distance(statistics(a @ rotation), statistics(b @ rotation)) == pytest.approx(
        expected, rel=1e-7
    )


def test_blocks_hold_every_tenth_chunk_and_add_up_to_the_whole() -> None:
    x = features(1000, 8)
    blocks = blocks_of(np.split(x, range(40, 1000, 40)))
    np.testing.assert_allclose(blocks.total.statistics.sigma, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-10)
    assert (blocks.chunks, blocks.total.images) == (25, 1000)


@pytest.mark.parametrize(("chunk", "expected"), [(1, "chunk 1 where chunk 2 is next"), (3, "chunk 3 where chunk 2")])
def test_chunks_twice_or_out_of_order_are_refused(chunk: int, expected: str) -> None:
    blocks = blocks_of([features(4, 3), features(4, 3)])
    with pytest.raises(EvaluationError, match=expected):
        blocks.add(chunk, features(4, 3))


def ordinary_jackknife(estimate: Callable[[Array], float], blocks: list[Array]) -> tuple[float, float]:
    """Efron & Stein's, for blocks of one size: standard error and the estimate less its bias."""
    left_out = np.array([estimate(np.vstack([*blocks[:i], *blocks[i + 1 :]])) for i in range(BLOCKS)])
    error = np.sqrt((BLOCKS - 1) / BLOCKS * np.square(left_out - left_out.mean()).sum())
    return float(error), BLOCKS * estimate(np.vstack(blocks)) - (BLOCKS - 1) * float(left_out.mean())


def test_blocks_of_one_size_give_the_ordinary_jackknife() -> None:
    chunks = np.split(features(600, 6, 0), 30)
    reference = statistics(features(5000, 6, 1))
    found = blocks_of(chunks).uncertainty(reference)
    blocks = [np.vstack(chunks[block::BLOCKS]) for block in range(BLOCKS)]
    expected = ordinary_jackknife(lambda x: slow(statistics(x), reference), blocks)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sizes", [[100] * 10, [100] * 13, [100] * 19 + [37]], ids=["equal", "13 chunks", "short last"])
def test_jackknife_covers_what_more_images_would_give(sizes: list[int]) -> None:
    """The distance of many more images is the truth; that of few is biased upwards by many standard errors."""
    random, size = np.random.default_rng(3), 48
    mix = random.normal(size=(size, size)) / np.sqrt(size)

    def draw(count: int) -> NDArray[np.float64]:
        return random.normal(size=(count, size)) @ mix + 0.1

    reference = statistics(random.normal(size=(20_000, size)) @ mix)
    truth = fast_frechet_distance(statistics(draw(100_000)), reference)
    biased, errors = [], []
    for _ in range(20):
        blocks = blocks_of([draw(count) for count in sizes])
        found = blocks.uncertainty(reference)
        biased.append((fast_frechet_distance(blocks.total.statistics, reference) - truth) / found.standard_error)
        errors.append((found.bias_corrected - truth) / found.standard_error)
    assert np.mean(biased) > 3
    assert abs(np.mean(errors)) < 1
    assert 0.5 < np.std(errors) < 1.6
