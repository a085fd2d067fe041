"""The order of training images, as laws that hold for any number of images, batch and workers."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.data.order import BlockOrder, Blocks, Order, OrderConfig, Permutation, SampleOrder, permutation

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


shard_sizes = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any).map(np.array)
kinds = st.one_of(st.just(Permutation()), st.integers(1, 12).map(lambda shards: Blocks(shards=shards)))


@settings(max_examples=200)
@given(shard_sizes, kinds, seeds, st.integers(0, 5), st.integers(1, 4), st.integers(1, 8))
def test_any_workers_part_every_epoch_into_batches_with_each_sample_once(
    sizes: NDArray[np.int64], kind: OrderConfig, seed: int, epoch: int, workers: int, share: int
) -> None:
    """Partition, no repeat, equal counts, and an order that knows neither of workers nor of where it was begun."""
    n = int(sizes.sum())
    batch = workers * share
    start = epoch * n
    stop = start + -(-n // batch) * batch
    per_worker = [kind.open(sizes, seed) for _ in range(workers)]
    stream = []
    for position in range(start, stop, batch):
        shares = [
            order.samples(position + rank * share, position + (rank + 1) * share)
            for rank, order in enumerate(per_worker)
        ]
        assert [len(some) for some in shares] == [share] * workers
        stream += shares
    drawn = np.concatenate(stream)
    assert sorted(drawn[:n].tolist()) == list(range(n))
    np.testing.assert_array_equal(drawn, kind.open(sizes, seed).samples(start, stop))


@settings(max_examples=50)
@given(st.integers(4, 10), st.integers(10, 30), st.integers(1, 4), seeds, st.integers(0, 100))
def test_every_epoch_has_an_order_of_its_own(shards: int, size: int, block: int, seed: int, epoch: int) -> None:
    sizes, n = np.full(shards, size), shards * size
    for kind in (Permutation(), Blocks(shards=block)):
        here = kind.open(sizes, seed).samples(epoch * n, (epoch + 1) * n)
        assert not np.array_equal(here, kind.open(sizes, seed).samples((epoch + 1) * n, (epoch + 2) * n))
        assert not np.array_equal(here, kind.open(sizes, seed ^ 1).samples(epoch * n, (epoch + 1) * n))


@given(shard_sizes, seeds, epochs)
def test_one_block_of_all_shards_is_the_permutation(sizes: NDArray[np.int64], seed: int, epoch: int) -> None:
    n = int(sizes.sum())
    drawn = BlockOrder(sizes, len(sizes), seed).samples(epoch * n, (epoch + 1) * n)
    np.testing.assert_array_equal(drawn, permutation(n, seed, epoch))


@given(shard_sizes, st.integers(1, 5), seeds, st.integers(0, 500))
def test_what_is_read_comes_from_the_shards_that_were_announced(
    sizes: NDArray[np.int64], block: int, seed: int, position: int
) -> None:
    order: Order = BlockOrder(sizes, block, seed)
    ahead = order.shards_ahead(position)
    assert len(set(ahead)) == len(ahead) <= 2 * block
    samples, offset = order.stretch(position)
    here = np.searchsorted(np.cumsum(sizes), samples, side="right")
    assert set(here.tolist()) == set(ahead[: len(set(here.tolist()))])
    end = position - offset + len(samples)
    after = np.searchsorted(np.cumsum(sizes), order.stretch(end)[0], side="right")
    assert set(after.tolist()) <= set(ahead)


def test_blocks_mix_their_shards_and_are_other_blocks_in_another_epoch() -> None:
    sizes = np.full(8, 100)
    order = BlockOrder(sizes, 2, seed=0)
    places = range(0, 2400, 200)
    stream = [set((order.samples(start, start + 200) // 100).tolist()) for start in places]
    blocks = [stream[epoch : epoch + 4] for epoch in (0, 4, 8)]
    assert all(len(block) == 2 for epoch in blocks for block in epoch)
    assert blocks[0] != blocks[1] != blocks[2]
    first = order.samples(0, 100) // 100
    assert 30 < (first == first[0]).sum() < 70


def test_the_bytes_in_use_are_those_of_two_blocks_or_of_all() -> None:
    sizes = np.array([10, 50, 20, 40, 30])
    assert Blocks(shards=1).most_bytes(sizes) == 90
    assert Blocks(shards=2).most_bytes(sizes) == 140
    assert Blocks(shards=9).most_bytes(sizes) == Permutation().most_bytes(sizes) == 150


def test_the_order_of_blocks_stays_as_it_is() -> None:
    order = BlockOrder(np.array([3, 0, 2, 4]), 2, seed=7)
    assert order.samples(9, 18).tolist() == [4, 3, 7, 6, 5, 8, 2, 1, 0]
