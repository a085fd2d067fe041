"""The order of training images, as laws that hold for any number of images, batch and workers."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order import SampleOrder, permutation

sizes = st.integers(1, 200)
seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 1_000)


@given(sizes, seeds, epochs)
def test_an_epoch_has_every_sample_once(n: int, seed: int, epoch: int) -> None:
    drawn = SampleOrder(n, seed).samples(epoch * n, (epoch + 1) * n)
    assert drawn.dtype == np.int64
    assert sorted(drawn.tolist()) == list(range(n))


@given(sizes, seeds, st.lists(st.integers(0, 500), min_size=1, max_size=6))
def test_ranges_of_the_stream_join_to_the_range_over_all_of_them(n: int, seed: int, cuts: list[int]) -> None:
    order = SampleOrder(n, seed)
    points = sorted(cuts)
    parts = [order.samples(start, stop) for start, stop in itertools.pairwise(points)]
    joined = np.concatenate([*parts, np.empty(0, np.int64)])
    np.testing.assert_array_equal(joined, order.samples(points[0], points[-1]))


@given(sizes, seeds, st.integers(1, 8), st.integers(1, 16), st.integers(0, 300))
def test_the_shares_of_any_number_of_workers_make_the_same_batch(
    n: int, seed: int, workers: int, share: int, start: int
) -> None:
    batch = workers * share
    whole = SampleOrder(n, seed).samples(start, start + batch)
    shares = [SampleOrder(n, seed).samples(start + rank * share, start + (rank + 1) * share) for rank in range(workers)]
    np.testing.assert_array_equal(np.concatenate(shares), whole)


@settings(max_examples=30)
@given(st.integers(50, 200), seeds, epochs)
def test_another_epoch_or_seed_has_another_order(n: int, seed: int, epoch: int) -> None:
    here = permutation(n, seed, epoch)
    assert not np.array_equal(here, permutation(n, seed, epoch + 1))
    assert not np.array_equal(here, permutation(n, seed ^ 1, epoch))


def test_the_order_stays_as_it_is() -> None:
    """Trainings that are under way go on by it, so a change here needs a new format of the train stage."""
    assert permutation(8, 7, 3).tolist() == [6, 2, 0, 1, 3, 5, 7, 4]
