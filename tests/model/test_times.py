"""Training times are a function of seed and position, follow the stated distribution, and leave losses unbiased."""

import math
from collections import deque
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import VESDE, VPSDE, EDMPath, LossHistory, RectifiedFlow, Stream, Times, UniformTimes, VPLinear, uniform
from model.gaussian_path import GaussianPath
from model.times import (
    AntitheticTimes,
    LogitNormalTimes,
    LossSecondMomentTimes,
    StratifiedTimes,
    _TimeSampling,
)

from .unions import SAMPLINGS, each_path, name_of

each_sampling = pytest.mark.parametrize("sampling", SAMPLINGS, ids=name_of)
DRAWS = 20_000


def drawn(sampling: Any, path: GaussianPath, positions: Tensor, batch_size: int, history: Any = None) -> Times:
    history = sampling.new_history() if history is None else history
    times: Times = sampling.times(path, sampling.shares(3, positions, batch_size), history)
    return times


def grown_history(sampling: LossSecondMomentTimes, loss_of: Tensor) -> LossHistory:
    """Full of one loss for each interval."""
    history = sampling.new_history()
    interval = torch.arange(sampling.intervals).repeat(sampling.history)
    history.add(interval, loss_of[interval])
    return history


def standard_errors_off(sample: Tensor, mean: float) -> float:
    return float(abs(sample.mean() - mean) / (sample.std() / len(sample) ** 0.5))


def kolmogorov_smirnov(cumulative: Tensor) -> float:
    """Distance from uniform; one seed in a thousand exceeds 1.95. cumulative: float64 [N] in (0, 1)."""
    n = len(cumulative)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    ordered = cumulative.sort().values
    return float(torch.maximum(ordered - steps[:-1], steps[1:] - ordered).max() * n**0.5)


# What holds for every way of sampling.


@each_sampling
@each_path
def test_times_lie_on_the_path_where_a_network_is_trained(path: GaussianPath, sampling: Any) -> None:
    t, importance, interval = drawn(sampling, path, torch.arange(500), 100)
    assert (t.dtype, importance.dtype) == (torch.float64, torch.float32)
    assert t.shape == importance.shape == (500,)
    assert ((t >= path.t_min) & (t <= path.t_max)).all()
    assert torch.equal(path.nearest_training_time(t), t)  # whole steps where there are steps
    assert (interval is None) == (sampling.new_history() is None)


@each_sampling
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_times_of_a_batch_are_the_same_on_any_number_of_ranks(sampling: Any, ranks: int) -> None:
    history = sampling.new_history()
    positions = torch.arange(24, 36)
    whole = drawn(sampling, VPSDE(), positions, 12, history)
    for rank in range(ranks):
        part = drawn(sampling, VPSDE(), positions[rank::ranks], 12, history)
        assert torch.equal(part.t, whole.t[rank::ranks])
        assert torch.equal(part.importance, whole.importance[rank::ranks])


@each_sampling
@given(positions=st.lists(st.integers(0, 2**62), min_size=1, max_size=8), seed=st.integers(0, 2**63 - 1))
def test_share_is_in_the_open_unit_interval_and_of_its_position_alone(
    sampling: Any, positions: list[int], seed: int
) -> None:
    together = sampling.shares(seed, torch.tensor(positions), 64)
    assert together.dtype == torch.float64
    assert ((together > 0) & (together < 1)).all()
    for position, share in zip(positions, together, strict=True):
        assert torch.equal(sampling.shares(seed, torch.tensor([position]), 64)[0], share)


@each_sampling
def test_times_change_with_the_seed_and_the_position(sampling: Any) -> None:
    shares = torch.cat([sampling.shares(seed, torch.arange(100), 10) for seed in (0, 1)])
    assert len(shares.unique()) == 200


@each_sampling
def test_shares_are_uniform_in_the_long_run(sampling: Any) -> None:
    assert kolmogorov_smirnov(sampling.shares(3, torch.arange(DRAWS), 100)) < 1.95


@each_sampling
def test_importance_is_one_before_anything_is_known_of_losses(sampling: Any) -> None:
    assert (drawn(sampling, VPSDE(), torch.arange(100), 10).importance - 1).abs().max() < 1e-6


# What each of them is.


def test_uniform_times_are_the_draws_of_the_time_stream() -> None:
    positions = torch.arange(50)
    u = uniform(3, Stream.TIME, positions)
    assert torch.equal(drawn(UniformTimes(), RectifiedFlow(), positions, 10).t, 0.001 + u * 0.999)
    assert torch.equal(drawn(UniformTimes(), VPLinear(), positions, 10).t, (u * 1000).floor())


def test_uniform_steps_are_drawn_alike() -> None:
    steps = drawn(UniformTimes(), VPLinear(T=10), torch.arange(DRAWS), 100).t.long()
    counts = steps.bincount(minlength=10)
    expected = DRAWS / 10
    assert (counts - expected).square().sum() / expected < 27.9  # 9 degrees of freedom; one seed in a thousand


@given(batch_size=st.integers(1, 300), batch=st.integers(0, 10**9))
def test_stratified_batch_covers_every_interval_once(batch_size: int, batch: int) -> None:
    positions = batch * batch_size + torch.arange(batch_size)
    shares = StratifiedTimes().shares(0, positions, batch_size)
    assert (shares * batch_size).long().tolist() == list(range(batch_size))


def test_stratified_times_have_less_variance_of_the_mean() -> None:
    def variance(sampling: Any) -> float:
        t = drawn(sampling, RectifiedFlow(), torch.arange(DRAWS), 100).t
        return t.square().view(-1, 100).mean(1).var().item()

    assert variance(StratifiedTimes()) < variance(UniformTimes()) / 1000


@given(first=st.integers(0, 2**61).map(lambda k: 2 * k))
def test_antithetic_pairs_sum_to_one(first: int) -> None:
    shares = AntitheticTimes().shares(0, torch.tensor([first, first + 1]), 8)
    assert shares.sum() == 1
    assert shares[0] == uniform(0, Stream.TIME, torch.tensor([first]))[0]


@pytest.mark.parametrize("path", [RectifiedFlow(first_time=1e-6), EDMPath(sigma_min=1e-6, sigma_max=1e6)], ids=name_of)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.2, 1.2), (0.5, 0.3)])
def test_log_noise_to_data_is_normal(path: GaussianPath, mean: float, std: float) -> None:
    t = drawn(LogitNormalTimes(mean=mean, std=std), path, torch.arange(DRAWS), 100).t
    z = (-path.lam(t) - mean) / std
    assert kolmogorov_smirnov(torch.special.ndtr(z)) < 1.95
    assert standard_errors_off(z, 0) < 4
    assert standard_errors_off((z - z.mean()).square(), 1) < 4


def test_logit_normal_is_the_logit_normal_of_rectified_flow_and_the_log_normal_of_edm() -> None:
    """The time itself on the one (Esser et al. 2024), the noise on the other (Karras et al. 2022)."""
    flow = drawn(LogitNormalTimes(), RectifiedFlow(), torch.arange(DRAWS), 100).t
    noise = drawn(LogitNormalTimes(mean=-1.2, std=1.2), EDMPath(), torch.arange(DRAWS), 100).t
    assert standard_errors_off(torch.logit(flow), 0) < 4
    assert standard_errors_off(noise.log(), -1.2) < 4
    assert abs(noise.log().std() - 1.2) < 4 * 1.2 / (2 * DRAWS) ** 0.5


def test_logit_normal_times_beyond_the_path_are_its_ends() -> None:
    t = drawn(LogitNormalTimes(mean=0, std=100), VESDE(), torch.arange(200), 100).t
    assert {VESDE().t_min, VESDE().t_max} <= set(t.tolist())


# Times by the second moment of the loss.


class PlainHistory:
    """The last losses of each interval, an image at a time; what is not there yet counts as 0."""

    def __init__(self, intervals: int, length: int) -> None:
        self.last = [deque([0.0] * length, maxlen=length) for _ in range(intervals)]
        self.counts = [0] * intervals

    def add(self, interval: list[int], losses: list[float]) -> None:
        for i, loss in zip(interval, losses, strict=True):
            self.last[i].append(loss)
            self.counts[i] += 1


BATCHES = st.lists(st.lists(st.integers(0, 3), max_size=20), max_size=6)


@settings(max_examples=200)
@given(batches=BATCHES, length=st.integers(1, 5))
def test_history_keeps_the_last_losses_of_each_interval(batches: list[list[int]], length: int) -> None:
    """Also where one batch has more of an interval than are kept."""
    ours, plain, number = LossHistory(4, length), PlainHistory(4, length), 0
    for batch in batches:
        losses = [float(number + i + 1) for i in range(len(batch))]  # each of its own
        number += len(batch)
        ours.add(torch.tensor(batch, dtype=torch.int64), torch.tensor(losses))
        plain.add(batch, losses)
        assert [sorted(row) for row in ours.losses.tolist()] == [sorted(row) for row in plain.last]
        assert ours.counts.tolist() == plain.counts


def test_history_is_saved_with_the_training() -> None:
    sampling = LossSecondMomentTimes(intervals=4, history=2)
    history = grown_history(sampling, torch.tensor([1.0, 2, 3, 4]))
    other = sampling.new_history()
    other.load_state_dict(history.state_dict())
    positions = torch.arange(20)
    saved, loaded = (drawn(sampling, VPSDE(), positions, 10, each) for each in (history, other))
    assert torch.equal(saved.t, loaded.t)
    assert not torch.equal(saved.t, drawn(sampling, VPSDE(), positions, 10).t)
    assert not list(history.parameters())  # nothing that an optimiser would move


def test_times_are_uniform_until_every_interval_has_its_losses() -> None:
    sampling = LossSecondMomentTimes(intervals=4, history=3)
    history = sampling.new_history()
    even = drawn(UniformTimes(), VPSDE(), torch.arange(50), 10).t
    for interval in [0] * 9 + [1] * 3 + [2] * 3 + [3] * 2:
        history.add(torch.tensor([interval]), torch.tensor([interval + 1.0]))
        times = drawn(sampling, VPSDE(), torch.arange(50), 10, history)
        torch.testing.assert_close(times.t, even, rtol=1e-12, atol=0)
        assert (times.importance == 1).all()
    history.add(torch.tensor([3]), torch.tensor([4.0]))
    assert not torch.allclose(drawn(sampling, VPSDE(), torch.arange(50), 10, history).t, even)


def test_times_are_as_frequent_as_the_root_of_the_second_moment() -> None:
    """Nichol & Dhariwal 2021, eq. 18: not the mean loss, which is 3 in both of the first two intervals."""
    sampling = LossSecondMomentTimes(intervals=3, history=2, uniform_share=0.1)
    history = sampling.new_history()
    history.add(torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([3.0, 3, 6, 0, 0, 0]))
    moments = torch.tensor([3, 18**0.5, 0], dtype=torch.float64)
    p = 0.9 * moments / moments.sum() + 0.1 / 3
    _, importance, interval = drawn(sampling, VPSDE(), torch.arange(DRAWS), 100, history)
    assert interval is not None
    for i in range(3):
        assert standard_errors_off((interval == i).double(), float(p[i])) < 4
    torch.testing.assert_close(importance, (1 / (3 * p))[interval].float())


def test_intervals_are_equal_parts_of_the_path() -> None:
    sampling = LossSecondMomentTimes(intervals=4, history=1)
    history = grown_history(sampling, torch.tensor([1.0, 5, 2, 9]))
    t, _, interval = drawn(sampling, RectifiedFlow(first_time=1e-6), torch.arange(1000), 100, history)
    assert interval is not None
    share = (t - 1e-6) / (1 - 1e-6)
    assert torch.equal((share * 4).long(), interval)
    within = share * 4 - interval
    assert kolmogorov_smirnov(within) < 1.95


@pytest.mark.parametrize("path", [VPSDE(), VPLinear(T=37)], ids=name_of)
def test_importance_makes_up_for_frequency(path: GaussianPath) -> None:
    """The mean of f(t) times importance is the mean of f over the path, whatever f; without it, it is not."""
    sampling = LossSecondMomentTimes(intervals=10, history=3)
    history = grown_history(sampling, torch.linspace(1, 20, 10))
    t, importance, _ = drawn(sampling, path, torch.arange(DRAWS), 100, history)
    even = path.training_time((torch.arange(10**5, dtype=torch.float64) + 0.5) / 10**5)
    for f in (torch.ones_like, lambda t: t / path.t_max, lambda t: (6 * t / path.t_max).sin()):
        assert standard_errors_off(f(t) * importance, f(even).mean().item()) < 4
    assert standard_errors_off(t, even.mean().item()) > 20


def test_importance_is_unbiased_to_the_rounding_of_an_integral() -> None:
    """Over an even grid of shares no chance is left."""
    sampling = LossSecondMomentTimes(intervals=7, history=2)
    history = grown_history(sampling, torch.linspace(1, 20, 7))
    shares = (torch.arange(10**6, dtype=torch.float64) + 0.5) / 10**6
    t, importance, _ = sampling.times(VPSDE(), shares, history)
    exact = (1 - math.cos(3)) / 3  # of sin(3 u) for u from 0 to 1
    u = (t - VPSDE().t_min) / (1 - VPSDE().t_min)
    assert ((3 * u).sin() * importance).mean().item() == pytest.approx(exact, rel=1e-5)


def test_times_cover_the_path_where_one_interval_has_all_the_loss() -> None:
    """Rounding of the cumulated shares neither leaves the path nor comes upon an interval of no share."""
    sampling = LossSecondMomentTimes(intervals=100, history=1, uniform_share=1e-12)
    losses = torch.zeros(100)
    losses[50] = 1
    history = grown_history(sampling, losses)
    shares = torch.tensor([2.0**-33, 0.5, 1 - 2.0**-33, 1 - 2.0**-53], dtype=torch.float64)
    t, importance, interval = sampling.times(VPSDE(), shares, history)
    assert interval is not None
    assert ((t >= VPSDE().t_min) & (t <= 1)).all()
    assert importance.isfinite().all()
    assert interval[1] == 50


def test_losses_of_zero_leave_times_uniform() -> None:
    sampling = LossSecondMomentTimes(intervals=4, history=1)
    times = drawn(sampling, VPSDE(), torch.arange(50), 10, grown_history(sampling, torch.zeros(4)))
    torch.testing.assert_close(times.t, drawn(UniformTimes(), VPSDE(), torch.arange(50), 10).t, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("member", "bad"),
    [
        (LogitNormalTimes, {"std": 0}),
        (LogitNormalTimes, {"mean": math.nan}),
        (LossSecondMomentTimes, {"intervals": 1}),
        (LossSecondMomentTimes, {"history": 0}),
        (LossSecondMomentTimes, {"uniform_share": 0}),
        (LossSecondMomentTimes, {"uniform_share": 1.1}),
        (StratifiedTimes, {"std": 1}),
    ],
    ids=str,
)
def test_number_out_of_its_range_is_refused_by_name(member: type[_TimeSampling], bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        member.model_validate(bad)
