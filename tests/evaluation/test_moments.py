"""Merged moments are those of the whole set: to rounding in any order, to the bit in the same one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation.moments import Moments

Array = NDArray[np.float64]


def features(count: int, size: int, seed: int = 0) -> Array:
    """Far from the origin, where sums of squares would lose digits. [N, D]."""
    random = np.random.default_rng(seed)
    return 1000 + random.normal(size=(count, size)) @ random.normal(size=(size, size))


def of_parts(parts: list[Array]) -> Moments:
    merged = Moments.of(parts[0])
    for part in parts[1:]:
        merged = merged.merged(Moments.of(part))
    return merged


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), seed=st.integers(0, 1000))
def test_parts_of_any_size_merge_to_the_whole(sizes: list[int], seed: int) -> None:
    x = features(sum(sizes) + 1, 5, seed)
    found = of_parts(np.split(x, np.cumsum(sizes))).statistics
    assert found.images == len(x)
    np.testing.assert_allclose(found.mu, x.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.sigma, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-10 * np.abs(found.sigma).max())


def test_a_part_that_is_taken_out_leaves_the_rest() -> None:
    rest, part = features(70, 6, 0), features(30, 6, 1)
    found = Moments.of(np.vstack([rest, part])).without(Moments.of(part))
    expected = Moments.of(rest)
    assert found.images == expected.images
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-13)
    np.testing.assert_allclose(found.m2, expected.m2, rtol=1e-9, atol=1e-10 * np.abs(expected.m2).max())


def test_same_parts_in_the_same_order_give_the_same_bits() -> None:
    parts = np.split(features(500, 16).astype(np.float32), 10)
    first, second = of_parts(parts), of_parts([part.copy() for part in parts])
    np.testing.assert_array_equal(first.mean, second.mean)
    np.testing.assert_array_equal(first.m2, second.m2)


def test_sums_are_float64_and_symmetric_to_the_bit() -> None:
    moments = of_parts(np.split(features(100, 16).astype(np.float32), 4))
    assert (moments.mean.dtype, moments.m2.dtype) == (np.float64, np.float64)
    np.testing.assert_array_equal(moments.m2, moments.m2.T)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_spoils_the_whole_set_and_says_so(value: float) -> None:
    x = features(20, 3)
    x[7, 1] = value
    found = of_parts(np.split(x, 4)).statistics
    assert not found.finite
    assert np.isnan(found.sigma).all()


def test_root_squares_to_the_covariance_and_has_its_rank() -> None:
    statistics = Moments.of(features(10, 30)).statistics  # rank 9
    np.testing.assert_allclose(statistics.root @ statistics.root.T, statistics.sigma, atol=1e-10)
    assert statistics.root is statistics.root  # taken once
