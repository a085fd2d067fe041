"""Paths are those of the papers, exact in float64 and refused where their numbers make none."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import VESDE, VPSDE, EDMPath, Path, RectifiedFlow, SubVPSDE, VPCosine, VPLinear, VPScaledLinear, VPSigmoid
from model.continuous_paths import ContinuousPath
from model.discrete_paths import DiscretePath
from model.gaussian_path import GaussianPath

from .unions import PATHS, each_path, members, name_of

DISCRETE = [path for path in PATHS if isinstance(path, DiscretePath)]
CONTINUOUS = [path for path in PATHS if isinstance(path, ContinuousPath)]
LOSING = [path for path in PATHS if path.loses_image]
each_discrete = pytest.mark.parametrize("path", DISCRETE, ids=name_of)
each_continuous = pytest.mark.parametrize("path", CONTINUOUS, ids=name_of)

SCHEDULES: dict[type[DiscretePath], str] = {
    VPLinear: "linear",
    VPScaledLinear: "scaled_linear",
    VPSigmoid: "sigmoid",
    VPCosine: "squaredcos_cap_v2",
}
"""Our path -> diffusers' beta_schedule."""
each_schedule = pytest.mark.parametrize("member", SCHEDULES, ids=lambda member: member.__name__)
EVERY_STEP = torch.arange(1000, dtype=torch.float64)


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Even in the logarithm."""
    return st.floats(math.log(low), math.log(high)).map(math.exp)


def ordered(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    """Two numbers, the second larger by a thousandth at least."""
    return st.tuples(numbers(low, high), numbers(1.001, 1e4)).map(lambda pair: (pair[0], pair[0] * pair[1]))


def beta_ranges(member: type[Any]) -> st.SearchStrategy[Any]:
    sizes = st.tuples(st.integers(2, 3000), numbers(1e-5, 1e-2), numbers(1, 90), st.booleans())
    return sizes.map(
        lambda size: member(T=size[0], beta_start=size[1], beta_end=size[1] * size[2], zero_terminal_snr=size[3])
    )


STRATEGIES: dict[type[Any], st.SearchStrategy[Any]] = {
    VPLinear: beta_ranges(VPLinear),
    VPScaledLinear: beta_ranges(VPScaledLinear),
    VPSigmoid: beta_ranges(VPSigmoid),
    VPCosine: st.builds(
        VPCosine,
        T=st.integers(2, 3000),
        s=st.floats(0.001, 0.9),
        zero_terminal_snr=st.booleans(),
        beta_max=st.just(0.9),
    ),
    VPSDE: ordered(1e-3, 1).map(lambda ends: VPSDE(beta_min=ends[0], beta_max=min(ends[1], 100))),
    SubVPSDE: ordered(1e-3, 1).map(lambda ends: SubVPSDE(beta_min=ends[0], beta_max=min(ends[1], 100))),
    VESDE: ordered(1e-3, 10).map(lambda ends: VESDE(sigma_min=ends[0], sigma_max=ends[1])),
    EDMPath: ordered(1e-3, 10).map(lambda ends: EDMPath(sigma_min=ends[0], sigma_max=ends[1])),
    RectifiedFlow: st.builds(RectifiedFlow, first_time=st.floats(1e-6, 0.5)),
}
each_strategy = pytest.mark.parametrize("member", STRATEGIES, ids=lambda member: member.__name__)


def times_of(path: GaussianPath, count: int = 2001) -> Tensor:
    """Even times from the cleanest to the noisiest, between whole steps too."""
    return torch.linspace(path.t_min, path.t_max, count, dtype=torch.float64)


def at_data(path: GaussianPath) -> Tensor:
    return torch.tensor(path.t_data, dtype=torch.float64)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# What holds on every path.


def test_every_path_has_a_strategy_and_every_discrete_one_a_schedule_of_diffusers() -> None:
    assert set(STRATEGIES) == set(members(Path))
    assert set(SCHEDULES) == {type(path) for path in DISCRETE}


@each_strategy
@settings(max_examples=50)
@given(data=st.data(), share=st.floats(0, 1))
def test_time_is_the_inverse_of_lambda(member: type[Any], data: st.DataObject, share: float) -> None:
    path = data.draw(STRATEGIES[member])
    t = path.t_min + share * (path.t_max - path.t_min)
    assume(path.at(t)[0] > 1e-30)  # LOSING has the others
    back = float(path.time(path.lam(scalar(t))))
    assert abs(back - t) < 1e-9 * max(1.0, t), (path, t, back)


@each_discrete
def test_time_is_the_inverse_of_lambda_between_the_data_and_the_first_step(path: DiscretePath) -> None:
    t = torch.linspace(-1, 0, 101, dtype=torch.float64)
    torch.testing.assert_close(path.time(path.lam(t)), t, rtol=0, atol=1e-9)


@each_path
def test_no_lambda_is_without_a_time(path: GaussianPath) -> None:
    """Infinite ones come from the data and from where nothing is left of the image."""
    lam = torch.tensor([-math.inf, -400, -1, 0, 1, 400, math.inf], dtype=torch.float64)
    t = path.time(lam)
    assert not t.isnan().any()
    assert (t.diff()[t.diff().isfinite()] <= 0).all()


@each_path
def test_data_are_without_noise_and_lambda_is_infinite(path: GaussianPath) -> None:
    assert path.at(path.t_data) == (1.0, 0.0)
    assert path.lam(at_data(path)) == math.inf
    assert path.t_data < path.t_min < path.t_max


@pytest.mark.parametrize("path", LOSING, ids=name_of)
def test_lambda_is_minus_infinity_where_nothing_is_left_of_the_image(path: GaussianPath) -> None:
    end = scalar(path.t_max)
    assert path.at(path.t_max) == (0.0, 1.0)
    assert path.lam(end) == -math.inf
    assert path.time(path.lam(end)) == path.t_max


def test_paths_that_lose_the_image_are_rectified_flow_and_the_rescaled_ones() -> None:
    expected = [path for path in PATHS if isinstance(path, RectifiedFlow) or getattr(path, "zero_terminal_snr", False)]
    assert expected == LOSING


@pytest.mark.parametrize("path", [VPLinear(T=100_000), VPLinear(beta_end=0.9), VPSDE(beta_max=300)], ids=name_of)
def test_path_whose_image_no_float32_could_tell_loses_it(path: GaussianPath) -> None:
    assert path.loses_image


@each_path
def test_lambda_falls_with_time_and_is_the_log_ratio(path: GaussianPath) -> None:
    t = times_of(path)
    alpha, sigma, lam = path.alpha(t), path.sigma(t), path.lam(t)
    assert (lam.diff() < 0).all()
    assert (alpha.diff() <= 0).all()
    assert (sigma.diff() > 0).all()
    torch.testing.assert_close(lam.exp(), alpha / sigma, rtol=1e-12, atol=0)


RELATIONS: dict[type[Any], Callable[[Tensor, Tensor], Tensor]] = {
    DiscretePath: lambda alpha, sigma: alpha**2 + sigma**2,
    VPSDE: lambda alpha, sigma: alpha**2 + sigma**2,
    SubVPSDE: lambda alpha, sigma: alpha**2 + sigma,
    VESDE: lambda alpha, _: alpha,
    EDMPath: lambda alpha, _: alpha,
    RectifiedFlow: lambda alpha, sigma: alpha + sigma,
}
"""What is 1 at all times."""


@each_path
def test_alpha_and_sigma_are_related_as_the_paper_says(path: GaussianPath) -> None:
    t = torch.cat((at_data(path)[None], times_of(path)))
    relation = RELATIONS[DiscretePath if isinstance(path, DiscretePath) else type(path)]
    torch.testing.assert_close(relation(path.alpha(t), path.sigma(t)), torch.ones_like(t), rtol=0, atol=1e-14)


@each_path
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_numbers_are_float64_and_shaped_like_the_time(path: GaussianPath, shape: tuple[int, ...]) -> None:
    t = torch.full(shape, path.t_min, dtype=torch.float64)
    shares = torch.full(shape, 0.5, dtype=torch.float64)
    found = [path.alpha(t), path.sigma(t), path.lam(t), path.time(path.lam(t)), path.conditioning(t)]
    found += [path.training_time(shares), path.nearest_training_time(t)]
    found += path.rates(t) if isinstance(path, ContinuousPath) else []
    assert {(each.shape, each.dtype) for each in found} == {(torch.Size(shape), torch.float64)}


@each_path
def test_numbers_are_on_the_device_of_the_time(path: GaussianPath) -> None:
    t = torch.full((2,), 0.5, dtype=torch.float64, device="meta")
    found = [path.alpha(t), path.sigma(t), path.lam(t), path.time(t), path.conditioning(t)]
    found += [path.training_time(t), path.nearest_training_time(t)]
    found += path.rates(t) if isinstance(path, ContinuousPath) else []
    assert {each.device.type for each in found} == {"meta"}


@each_path
def test_numbers_at_one_time_are_those_of_a_tensor(path: GaussianPath) -> None:
    t = times_of(path, 5)
    assert [path.at(float(each)) for each in t] == list(
        zip(path.alpha(t).tolist(), path.sigma(t).tolist(), strict=True)
    )


def test_path_made_while_the_default_device_is_meta_has_real_numbers() -> None:
    """As where a network is built without its weights, only to count them."""
    with torch.device("meta"):
        path = VPLinear(T=11)
        alpha, _ = path.at(0)
    assert alpha == pytest.approx(math.sqrt(1 - 1e-4), rel=1e-14)


PRIORS = {"sub_vp_sde": 1 - math.exp(-10.05), "ve_sde": 50.0, "edm": 80.0}
CONDITIONINGS: dict[type[Any], tuple[float, float]] = {
    VPLinear: (250.0, 250.0),
    VPCosine: (250.0, 250.0),
    VPSigmoid: (250.0, 250.0),
    VPScaledLinear: (250.0, 250.0),
    VPSDE: (0.25, 249.75),
    SubVPSDE: (0.25, 249.75),
    VESDE: (0.5, math.log(math.sqrt(0.5)) / 4),
    EDMPath: (2.0, math.log(2) / 4),
    RectifiedFlow: (0.25, 250.0),
}
"""A time and what the network is told of it."""


@each_path
def test_sampling_starts_from_noise_of_the_papers_width(path: Any) -> None:
    assert path.prior_std(path.t_max) == pytest.approx(PRIORS.get(path.kind, 1.0), rel=1e-14)


@each_path
def test_network_is_told_the_time_in_the_papers_units(path: GaussianPath) -> None:
    t, expected = CONDITIONINGS[type(path)]
    assert path.conditioning(scalar(t)).item() == pytest.approx(expected, rel=1e-14)
    assert path.conditioning(times_of(path)).isfinite().all()


# At which times networks are trained.


@each_discrete
def test_even_shares_of_a_discrete_path_are_all_its_steps_equally_often(path: DiscretePath) -> None:
    shares = (torch.arange(3000, dtype=torch.float64) + 0.5) / 3000
    counts = path.training_time(shares).long().bincount()
    assert counts.tolist() == [3] * path.T


@each_path
def test_extreme_shares_stay_on_the_path(path: GaussianPath) -> None:
    t = path.training_time(torch.tensor([2.0**-33, 1 - 2.0**-33, 1 - 2.0**-53], dtype=torch.float64))
    assert ((t >= path.t_min) & (t <= path.t_max)).all()


@each_continuous
def test_even_shares_of_a_continuous_path_are_even_times(path: ContinuousPath) -> None:
    """On the edm path, whose time is sigma, even in log(sigma)."""
    t = path.training_time(torch.linspace(0, 1, 11, dtype=torch.float64))
    if isinstance(path, EDMPath):
        torch.testing.assert_close(t.log().diff(), t.log().diff()[:1].expand(10), rtol=1e-12, atol=0)
        assert t[[0, -1]].tolist() == pytest.approx([path.sigma_min, path.sigma_max], rel=1e-14)
    else:
        torch.testing.assert_close(t, times_of(path, 11), rtol=1e-14, atol=0)


@each_path
def test_nearest_training_time_is_on_the_path_and_keeps_what_is(path: GaussianPath) -> None:
    ends = torch.tensor([path.t_min, path.t_max], dtype=torch.float64)
    assert torch.equal(path.nearest_training_time(ends + torch.tensor([-0.7, 0.7])), ends)
    visited = path.training_time(torch.linspace(0.001, 0.999, 50, dtype=torch.float64))
    assert torch.equal(path.nearest_training_time(visited), visited)


def test_nearest_training_time_of_a_discrete_path_is_a_whole_step() -> None:
    t = torch.tensor([-0.9, 3.2, 3.8, 999.4], dtype=torch.float64)
    assert VPLinear().nearest_training_time(t).tolist() == [0, 3, 4, 999]


# Paths of T steps.


def their_scheduler(path: Any) -> Any:
    ends = {} if isinstance(path, VPCosine) else {"beta_start": path.beta_start, "beta_end": path.beta_end}
    make: Any = DDPMScheduler
    return make(num_train_timesteps=path.T, beta_schedule=SCHEDULES[type(path)], **ends)


def alpha_bars_by_hand(path: Any) -> Tensor:
    """The product of 1 - beta, step by step, in Python's floats, of betas from each paper's formula."""
    T, product, table = path.T, 1.0, []
    for t in range(T):
        share = t / (T - 1)
        match path:
            case VPLinear():
                beta = path.beta_start + share * (path.beta_end - path.beta_start)
            case VPScaledLinear():
                beta = (path.beta_start**0.5 + share * (path.beta_end**0.5 - path.beta_start**0.5)) ** 2
            case VPSigmoid():
                beta = path.beta_start + (path.beta_end - path.beta_start) / (1 + math.exp(6 - 12 * share))
            case _:
                now, before = (math.cos(((t + i) / T + path.s) / (1 + path.s) * math.pi / 2) ** 2 for i in (1, 0))
                beta = min(1 - now / before, path.beta_max)
        table.append(product := product * (1 - beta))
    return torch.tensor(table, dtype=torch.float64)


@each_schedule
@pytest.mark.parametrize("T", [2, 50, 1000])
def test_betas_are_those_of_diffusers(member: type[Any], T: int) -> None:
    path = member(T=T)
    torch.testing.assert_close(path.betas().float(), their_scheduler(path).betas, rtol=1e-6, atol=1e-9)


@each_schedule
def test_noised_images_equal_diffusers_in_float64(member: type[Any]) -> None:
    path, scheduler = member(), their_scheduler(member())
    by_hand = alpha_bars_by_hand(path)
    torch.testing.assert_close(by_hand.float(), scheduler.alphas_cumprod, rtol=2e-3, atol=1e-6)  # it is their table
    scheduler.alphas_cumprod = by_hand
    x0, eps = torch.randn(2, 1000, 1, dtype=torch.float64)
    theirs = scheduler.add_noise(x0, eps, EVERY_STEP.long())

    def error(t: Tensor) -> Any:
        return (path.alpha(t)[:, None] * x0 + path.sigma(t)[:, None] * eps - theirs).abs().max().item()

    assert error(EVERY_STEP) < 1e-10
    for off_by_one in (-1, 1):  # a table that begins with the data read like one that does not, or the reverse
        assert error((EVERY_STEP + off_by_one).clamp(max=999)) > 1e-3


def test_linear_path_ends_where_the_paper_says() -> None:
    assert VPLinear().alpha_bar(scalar(999)).item() == pytest.approx(4.0358e-05, rel=1e-5)


def test_linear_betas_are_the_papers() -> None:
    betas = VPLinear().betas()
    assert (len(betas), betas[0].item(), betas[-1].item()) == (1000, 1e-4, 0.02)
    assert betas.diff().std() < 1e-15


def test_cosine_alpha_bar_is_the_squared_cosine_but_for_its_last_step() -> None:
    """Nichol & Dhariwal 2021, eq. 17; beta_max holds back the last step only."""
    angle = ((EVERY_STEP + 1) / 1000 + 0.008) / 1.008 * math.pi / 2
    expected = angle.cos() ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    difference = (VPCosine().alpha_bar(EVERY_STEP) / expected - 1).abs()
    assert difference[:-1].max() < 1e-9
    assert VPCosine().betas()[-1] == 0.999


@given(T=st.integers(2, 10_000), offset=st.floats(0, 0.99), beta_max=st.floats(1e-4, 0.999))
def test_cosine_betas_lie_between_zero_and_beta_max(T: int, offset: float, beta_max: float) -> None:
    betas = VPCosine(T=T, s=offset, beta_max=beta_max).betas()
    assert betas.min() > 0
    assert betas.max() <= beta_max


@each_schedule
@pytest.mark.parametrize("T", [2, 10, 1000])
def test_zero_terminal_snr_is_the_algorithm_of_lin_et_al(member: type[Any], T: int) -> None:
    """Of diffusers: rescale_zero_terminal_snr is Lin et al. 2023, algorithm 1, which works on betas."""
    plain, rescaled = member(T=T), member(T=T, zero_terminal_snr=True)
    t = torch.arange(T, dtype=torch.float64)
    theirs = (1 - rescale_zero_terminal_snr(plain.betas())).cumprod(0)
    torch.testing.assert_close(rescaled.alpha_bar(t), theirs, rtol=1e-10, atol=1e-15)
    assert rescaled.alpha_bar(t)[0].item() == pytest.approx(plain.alpha_bar(t)[0].item(), rel=1e-14)
    assert rescaled.alpha_bar(t)[-1] == 0
    assert not torch.allclose(plain.alpha_bar(t), theirs, rtol=1e-3, atol=0)


@each_discrete
def test_alpha_bar_between_two_steps_lies_on_the_line_between_theirs(path: DiscretePath) -> None:
    step = torch.arange(-1, path.T - 1, dtype=torch.float64)
    for share in (0.0, 0.25, 0.9):
        expected = (1 - share) * path.alpha_bar(step) + share * path.alpha_bar(step + 1)
        torch.testing.assert_close(path.alpha_bar(step + share), expected, rtol=1e-9, atol=1e-16)


@each_discrete
def test_times_beyond_the_steps_are_those_of_the_ends(path: DiscretePath) -> None:
    ends = torch.tensor([-1.0, path.T - 1], dtype=torch.float64)
    assert torch.equal(path.alpha_bar(ends + torch.tensor([-5, 5])), path.alpha_bar(ends))
    assert torch.equal(path.time(torch.tensor([math.inf, -math.inf], dtype=torch.float64)), ends)


def test_paths_that_differ_in_one_number_do_not_share_a_table() -> None:
    paths = [VPLinear(T=10), VPLinear(T=10, beta_end=0.03), VPSigmoid(T=10), VPCosine(T=10)]
    paths += [VPLinear(T=10, zero_terminal_snr=True), VPScaledLinear(T=10)]
    assert len({path.at(9) for path in paths}) == len(paths)


# Continuous paths.


@each_continuous
def test_rates_are_the_derivatives(path: ContinuousPath) -> None:
    t = times_of(path)
    for coefficient, rate in zip((path.alpha, path.sigma), path.rates(t), strict=True):
        t.requires_grad_()
        (derivative,) = torch.autograd.grad((coefficient(t) + 0 * t).sum(), t)  # 0 t: some are constant
        torch.testing.assert_close(rate.detach(), derivative, rtol=1e-10, atol=1e-12)


def test_vp_sde_is_the_limit_of_ddpm_for_many_steps() -> None:
    """Song et al. 2021, appendix B: beta_i = beta(i / T) / T; the difference falls like 1 / T."""
    errors = []
    for T in (1000, 4000, 16_000):
        steps = torch.arange(T // 10 - 1, T, T // 10, dtype=torch.float64)
        chain = VPLinear(T=T, beta_start=0.1 / T, beta_end=20 / T).lam(steps)
        errors.append((chain - VPSDE().lam((steps + 1) / T)).abs().max().item())
    assert errors[-1] < 0.01
    assert all(coarse / fine == pytest.approx(4, rel=0.05) for coarse, fine in pairwise(errors))


def moments_of_the_sde(sde: Any, steps: int = 4000) -> tuple[float, float]:
    """Mean and variance of x at t = 1 for x0 = 1: dm/dt = f m, dV/dt = 2 f V + g^2, by the classic Runge-Kutta method.

    Song et al. 2021, appendix B; drift f x and diffusion g of their eq. 9, 11 and 12.
    """
    ratio = 5000.0  # sigma_max / sigma_min

    def rate(t: float, m: float, v: float) -> tuple[float, float]:
        beta, total = 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2
        if sde.kind == "ve_sde":
            return 0.0, 2 * math.log(ratio) * (0.01 * ratio**t) ** 2
        diffusion = beta if sde.kind == "vp_sde" else beta * (1 - math.exp(-2 * total))
        return -beta / 2 * m, -beta * v + diffusion

    h, m, v = 1 / steps, 1.0, 0.01**2 if sde.kind == "ve_sde" else 0.0
    for i in range(steps):
        t = i * h
        a = rate(t, m, v)
        b = rate(t + h / 2, m + h / 2 * a[0], v + h / 2 * a[1])
        c = rate(t + h / 2, m + h / 2 * b[0], v + h / 2 * b[1])
        d = rate(t + h, m + h * c[0], v + h * c[1])
        m, v = (y + h / 6 * (a[k] + 2 * b[k] + 2 * c[k] + d[k]) for k, y in enumerate((m, v)))
    return m, v


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=name_of)
def test_alpha_and_sigma_solve_the_equations_of_the_sdes_moments(sde: GaussianPath) -> None:
    mean, variance = moments_of_the_sde(sde)
    alpha, sigma = sde.at(1.0)
    assert alpha == pytest.approx(mean, rel=1e-8)
    assert sigma**2 == pytest.approx(variance, rel=1e-8)


def test_sub_vp_has_less_variance_than_vp_until_the_end() -> None:
    t = times_of(VPSDE())[:-1]
    assert (SubVPSDE().sigma(t) < VPSDE().sigma(t)).all()
    assert torch.equal(SubVPSDE().alpha(t), VPSDE().alpha(t))


def test_ve_noise_jumps_from_none_to_its_smallest() -> None:
    sigma = VESDE().sigma(torch.tensor([0.0, 1e-300, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(sigma, torch.tensor([0, 0.01, math.sqrt(0.5), 50], dtype=torch.float64))


# Refusals.


@pytest.mark.parametrize("member", [VPLinear, VPScaledLinear, VPSigmoid])
def test_falling_betas_are_refused_with_both_numbers(member: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"beta_start 0\.1 is above beta_end 0\.02; noise must grow with t"):
        member(beta_start=0.1, beta_end=0.02)


@pytest.mark.parametrize("member", [VPSDE, SubVPSDE])
@pytest.mark.parametrize("beta_min", [20, 30])
def test_falling_beta_of_an_sde_is_refused_with_both_numbers(member: type[Any], beta_min: float) -> None:
    with pytest.raises(ValueError, match=rf"beta_min {beta_min}\.0 is not below beta_max 20\.0; noise must grow"):
        member(beta_min=beta_min)


@pytest.mark.parametrize("member", [VESDE, EDMPath])
@pytest.mark.parametrize("sigma_min", [1, 2])
def test_falling_sigma_is_refused_with_both_numbers(member: type[Any], sigma_min: float) -> None:
    with pytest.raises(ValueError, match=rf"sigma_min {sigma_min}\.0 is not below sigma_max 1\.0; noise must grow"):
        member(sigma_min=sigma_min, sigma_max=1)


BAD: dict[tuple[type[Any], ...], list[dict[str, Any]]] = {
    tuple(SCHEDULES): [{"T": 1}, {"T": 100_001}],
    (VPLinear, VPScaledLinear, VPSigmoid): [{"beta_start": 0}, {"beta_start": 1}, {"beta_end": 0}, {"beta_end": 1}],
    (VPCosine,): [{"s": -0.1}, {"s": 1}, {"beta_max": 0}, {"beta_max": 1}],
    (VPSDE, SubVPSDE): [{"beta_min": 0}, {"beta_max": -1}],
    (VESDE, EDMPath): [{"sigma_min": 0}, {"sigma_max": -1}],
    (VPSDE, SubVPSDE, VESDE, RectifiedFlow): [{"first_time": bad} for bad in (0, 1, math.nan, math.inf)],
    tuple(STRATEGIES): [{"colour": 1}],
}
EACH_BAD = [(member, bad) for group, bads in BAD.items() for member in group for bad in bads]


@pytest.mark.parametrize(("member", "bad"), EACH_BAD, ids=[f"{member.__name__}-{bad}" for member, bad in EACH_BAD])
def test_number_out_of_its_range_is_refused_by_name(member: type[Any], bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        member.model_validate(bad)


def test_path_without_its_functions_is_not_a_path() -> None:
    t = scalar(0.5)
    bare: list[Callable[[], object]] = [
        lambda: GaussianPath(kind="bare").t_min,
        lambda: GaussianPath(kind="bare").t_max,
        lambda: GaussianPath(kind="bare").alpha(t),
        lambda: GaussianPath(kind="bare").sigma(t),
        lambda: GaussianPath(kind="bare").time(t),
        lambda: GaussianPath(kind="bare").conditioning(t),
        lambda: ContinuousPath(kind="bare").rates(t),
        lambda: DiscretePath(kind="bare").betas(),
    ]
    for call in bare:
        with pytest.raises(NotImplementedError):
            call()
