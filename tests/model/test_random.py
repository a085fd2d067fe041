"""Draws are those of Philox4x32-10, have the right distribution, and depend on nothing but their index."""

from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model import Stream, normal, philox, uniform, words
from model import random as model_random

WORD = st.integers(0, 2**32 - 1)
INDICES = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8)
DRAWS = 200_000


def philox_of(counter: tuple[int, ...], key: int) -> tuple[int, ...]:
    drawn = philox(tuple(torch.tensor([word]) for word in counter), key)  # type: ignore[arg-type]  # four words
    return tuple(int(word) for word in drawn)


def philox_with_big_integers(counter: tuple[int, ...], key: int) -> tuple[int, ...]:
    """Salmon et al. 2011, section 3.3, in integers that cannot overflow; keys as the sum that the rounds arrive at."""
    L, R, M, N = counter
    for r in range(10):
        k0 = ((key & 0xFFFFFFFF) + r * 0x9E3779B9) % 2**32
        k1 = ((key >> 32) + r * 0xBB67AE85) % 2**32
        (a, b), (c, d) = divmod(L * 0xD2511F53, 2**32), divmod(M * 0xCD9E8D57, 2**32)
        L, R, M, N = c ^ R ^ k0, d, a ^ N ^ k1, b
    return L, R, M, N


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_philox_gives_the_published_known_answers(counter: str, key: str, expected: str) -> None:
    low, high = (int(word, 16) for word in key.split())
    drawn = philox_of(tuple(int(word, 16) for word in counter.split()), low | high << 32)
    assert " ".join(f"{word:08x}" for word in drawn) == expected


@given(st.tuples(WORD, WORD, WORD, WORD), st.integers(0, 2**64 - 1))
def test_wrapping_int64_products_lose_nothing(counter: tuple[int, ...], key: int) -> None:
    assert philox_of(counter, key) == philox_with_big_integers(counter, key)


def test_counter_words_are_index_block_and_step_with_stream() -> None:
    """Layout of the counter: it is part of every result, so a change of it is a change of every image."""
    drawn = words(seed=9 << 32 | 5, stream=Stream.NOISE, index=torch.tensor([7 << 32 | 3]), n=8, step=2)
    blocks = [philox_with_big_integers((3, 7, block, 2 << 8 | 3), 9 << 32 | 5) for block in (0, 1)]
    assert drawn.tolist() == [[*blocks[0], *blocks[1]]]


def test_stream_numbers_stay() -> None:
    numbers = {stream.name: stream.value for stream in Stream}
    assert numbers == {
        "FLIP": 1,
        "TIME": 2,
        "NOISE": 3,
        "INITIAL_NOISE": 4,
        "STEP_NOISE": 5,
        "ORDER": 6,
        "LABEL": 7,
        "AUGMENTATION": 8,
        "BOUND_NOISE": 9,
        "DEQUANTISATION": 10,
        "PROBE": 11,
        "KNOWN_NOISE": 12,
        "RENOISING": 13,
    }


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_fewer_words_are_the_first_of_more(n: int) -> None:
    index = torch.arange(4)
    assert torch.equal(words(1, Stream.ORDER, index, n), words(1, Stream.ORDER, index, 8)[:, :n])


@given(INDICES, st.randoms(use_true_random=False))
def test_permuting_the_batch_permutes_the_draws_bitwise(indices: list[int], random: Any) -> None:
    order = list(range(len(indices)))
    random.shuffle(order)
    index = torch.tensor(indices)
    together = normal(3, Stream.NOISE, index, (3, 5))
    assert torch.equal(normal(3, Stream.NOISE, index[order], (3, 5)), together[order])


@given(INDICES, st.integers(0, 8))
def test_splitting_the_batch_splits_the_draws_bitwise(indices: list[int], cut: int) -> None:
    index = torch.tensor(indices)
    parts = [normal(3, Stream.NOISE, part, (2, 3)) for part in (index[:cut], index[cut:])]
    assert torch.equal(torch.cat(parts), normal(3, Stream.NOISE, index, (2, 3)))


def test_draws_change_with_seed_stream_index_and_step() -> None:
    base: dict[str, Any] = {"seed": 1, "stream": Stream.NOISE, "index": torch.tensor([1]), "n": 4, "step": 1}
    others: list[dict[str, Any]] = [
        {"seed": 2},
        {"seed": 1 + (1 << 32)},
        {"stream": Stream.TIME},
        {"index": torch.tensor([2])},
        {"index": torch.tensor([1 + (1 << 32)])},
        {"step": 2},
        {"step": 2**24 - 1},
    ]
    drawn = [tuple(words(**base | other)[0].tolist()) for other in [{}, *others]]
    assert len(set(drawn)) == len(drawn)


def test_normal_draws_are_box_and_mullers_of_the_words() -> None:
    index = torch.arange(1000)
    u, v = ((words(0, Stream.NOISE, index, 2).double() + 0.5) / 2**32).unbind(1)
    radius, angle = (-2 * u.log()).sqrt(), 2 * torch.pi * v
    expected = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1)
    torch.testing.assert_close(normal(0, Stream.NOISE, index, (2,)).double(), expected, rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def draws() -> Tensor:
    """One long row of standard normal numbers, as 1,000 images would draw them. -> [DRAWS], float64."""
    return normal(0, Stream.NOISE, torch.arange(DRAWS // 200), (200,)).double().flatten()


def test_normal_draws_have_the_normal_moments(draws: Tensor) -> None:
    """Within four standard errors: those of the mean, variance, skewness and kurtosis are sqrt(1, 2, 6, 24 / n)."""
    for power, expected, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        error = draws.pow(power).mean().item() - expected
        assert abs(error) < 4 * (variance / DRAWS) ** 0.5, f"moment {power} is off by {error}"


def test_normal_draws_pass_the_kolmogorov_smirnov_test(draws: Tensor) -> None:
    expected = torch.special.ndtr(draws.sort().values)
    steps = torch.arange(DRAWS + 1) / DRAWS
    distance = max((expected - steps[:-1]).max().item(), (steps[1:] - expected).max().item())
    assert distance < 1.95 / DRAWS**0.5  # exceeded by one seed in a thousand


def test_the_two_draws_of_a_pair_are_independent(draws: Tensor) -> None:
    """They share a radius, so it is their squares that would tell."""
    a, b = draws[0::2], draws[1::2]
    assert abs((a * b).mean()) < 4 / len(a) ** 0.5
    assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 4 * 2 / len(a) ** 0.5


def test_streams_and_steps_are_uncorrelated() -> None:
    index = torch.arange(20_000)
    kinds = [(stream, step) for stream in (Stream.NOISE, Stream.INITIAL_NOISE, Stream.STEP_NOISE) for step in (0, 1)]
    rows = [normal(0, stream, index, (1,), step)[:, 0] for stream, step in kinds]
    for a, b in combinations(rows, 2):
        assert abs((a * b).mean()) < 4 / len(index) ** 0.5


def test_normal_draws_from_extreme_words_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([0, 1, 2**31, 2**32 - 2, 2**32 - 1])
    pairs = torch.cartesian_prod(ends, ends)
    monkeypatch.setattr(model_random, "words", lambda *_: pairs)
    drawn = normal(0, Stream.NOISE, torch.arange(len(pairs)), (2,))
    assert drawn.isfinite().all()
    assert 6.7 < drawn.abs().max() < 6.8  # sqrt(-2 log 2^-33)


@pytest.mark.parametrize("shape", [(1,), (3,), (3, 5, 5), ()])
def test_odd_sizes_have_the_asked_shape_and_distinct_numbers(shape: tuple[int, ...]) -> None:
    drawn = normal(0, Stream.NOISE, torch.arange(4), shape)
    assert drawn.shape == (4, *shape)
    assert drawn.dtype == torch.float32
    assert len(drawn.unique()) == drawn.numel()


def test_uniform_draws_are_the_words_over_two_to_the_32() -> None:
    index = torch.tensor([0, 1, 2**40, 2**62])
    drawn = uniform(5, Stream.TIME, index)
    assert (drawn.dtype, drawn.shape) == (torch.float64, (4,))
    assert drawn.tolist() == [(word + 0.5) / 2**32 for (word,) in words(5, Stream.TIME, index, 1).tolist()]


def test_uniform_draws_pass_the_kolmogorov_smirnov_test() -> None:
    drawn = uniform(0, Stream.TIME, torch.arange(DRAWS)).sort().values
    steps = torch.arange(DRAWS + 1, dtype=torch.float64) / DRAWS
    distance = max((drawn - steps[:-1]).max().item(), (steps[1:] - drawn).max().item())
    assert distance < 1.95 / DRAWS**0.5  # exceeded by one seed in a thousand


@given(INDICES, st.integers(0, 8))
def test_splitting_the_batch_splits_the_uniform_draws_bitwise(indices: list[int], cut: int) -> None:
    index = torch.tensor(indices)
    parts = [uniform(3, Stream.TIME, part) for part in (index[:cut], index[cut:])]
    assert torch.equal(torch.cat(parts), uniform(3, Stream.TIME, index))


def test_uniform_draws_keep_away_from_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_random, "words", lambda *_: torch.tensor([[0], [2**32 - 1]]))
    assert uniform(0, Stream.TIME, torch.arange(2)).tolist() == [2.0**-33, 1 - 2.0**-33]
