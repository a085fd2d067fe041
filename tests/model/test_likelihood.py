"""Likelihoods against closed forms: Gaussian and mixture data whose ideal denoiser and densities are formulae."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from model import (
    RK45,
    Bound,
    DiscretePath,
    Eps,
    GaussianPath,
    LearnedRange,
    NetworkDenoiser,
    Prediction,
    RectifiedFlow,
    Stream,
    VPCosine,
    VPLinear,
    bits_per_dim,
    bits_per_dim_of_density,
    bound_noise,
    dequantised,
    normal,
    ode_log_likelihood,
    probe_signs,
    rate_distortion,
    variational_bound,
)
from model import likelihood as model_likelihood
from model.bound import step_log_variance
from model.targets import EDM

from .analytic import (
    PATHS,
    Counting,
    WavyDenoiser,
    neighbours,
    no_noise,
    only_image,
    pixel,
    three_blobs,
    two_humps,
    two_pixels,
)
from .small_networks import SMALL, awake
from .unions import name_of

Make = Callable[[GaussianPath], Any]
each_fixed = pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
DATA: list[tuple[Make, tuple[int, ...]]] = [
    (pixel, (1, 1, 1)),
    (two_humps, (1, 1, 1)),
    (two_pixels, (1, 1, 2)),
    (three_blobs, (1, 1, 2)),
    (neighbours, (1, 2, 3)),
]
NUMBERS = torch.arange(4)
HADAMARD = torch.tensor([[1.0, 1], [1, -1]]).double()
FINE = 1e-7


def images_of(shape: tuple[int, ...]) -> Tensor:
    return 0.4 * normal(3, Stream.NOISE, NUMBERS, shape).double()


def all_directions(x: Tensor) -> Tensor:
    """Eight probes whose mean of v' J v is the trace itself: rows of a Hadamard matrix, for up to eight pixels."""
    rows = torch.kron(torch.kron(HADAMARD, HADAMARD), HADAMARD)[:, : x[0].numel()]
    return rows.view(8, 1, *x.shape[1:]).expand(8, *x.shape)


def exact_log_density(denoiser: Any, path: GaussianPath, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of x at t_min: when noise at t_max is N(0, prior_std^2), as in sampling, and when it is what the data become.

    The ideal ODE carries the one density of the data at t_min into that at t_max, so at each x the two differ by as
    much as the two densities at t_max where it arrives.
    """
    *_, (_, z) = RK45(rtol=1e-9, atol=1e-9, clip="none").inversion(denoiser, path, x)
    noise = Normal(torch.zeros_like(z), path.prior_std(path.t_max)).log_prob(z).sum((1, 2, 3))
    of_data: Tensor = denoiser.log_density(x, path.t_min)
    return of_data + noise - denoiser.log_density(z, path.t_max), of_data


def in_turn(data: list[tuple[Make, tuple[int, ...]]], *turns: int) -> Any:
    """Each path with one kind of data for each of the turns, and so each kind of data with several paths."""
    cases = [(path, *data[(row + turn) % len(data)]) for row, path in enumerate(PATHS) for turn in turns]
    names = [f"{make.__name__}-{name_of(path)}" for path, make, _ in cases]
    return pytest.mark.parametrize(("path", "make", "shape"), cases, ids=names)


@in_turn(DATA, 0, 2)
def test_the_ode_gives_the_closed_form_where_the_probes_know_the_trace(
    path: Any, make: Make, shape: tuple[int, ...]
) -> None:
    x = images_of(shape)
    found = ode_log_likelihood(make(path), path, x, all_directions(x), FINE, FINE)
    sampled, of_data = exact_log_density(make(path), path, x)
    torch.testing.assert_close(found.estimate, sampled, rtol=0, atol=1e-5)
    # what is left of the image at t_max, where sampling supposes pure noise: most on the path of latent diffusion
    torch.testing.assert_close(found.estimate, of_data, rtol=0, atol=0.3 if path.kind == "vp_scaled_linear" else 0.06)
    if shape == (1, 1, 1):
        assert (found.standard_error == 0).all()


@in_turn(DATA[2:], 0)
def test_random_probes_are_right_within_four_standard_errors(path: Any, make: Make, shape: tuple[int, ...]) -> None:
    x = images_of(shape)
    found = ode_log_likelihood(make(path), path, x, probe_signs(0, NUMBERS, shape, 32), 1e-5, 1e-5)
    off = found.estimate - exact_log_density(make(path), path, x)[0]
    assert (found.standard_error > 0.01).any()
    assert (off.abs() < 4 * found.standard_error + 1e-3).all()
    assert off.mean().abs() < 4 * found.standard_error.square().sum().sqrt() / len(x) + 1e-3


def test_standard_errors_are_the_scatter_of_estimates_by_other_probes() -> None:
    path = RectifiedFlow()
    denoiser, x = neighbours(path), images_of((1, 2, 3))[:1].expand(4000, 1, 2, 3)
    found = ode_log_likelihood(denoiser, path, x, probe_signs(0, torch.arange(4000), (1, 2, 3), 8), 1e-3, 1e-3)
    assert found.standard_error.square().mean().sqrt().item() == pytest.approx(found.estimate.std().item(), rel=0.06)


@pytest.mark.parametrize("path", [VPLinear(), RectifiedFlow()], ids=name_of)
@pytest.mark.parametrize("wrong", ["sign of the divergence", "no divergence", "scale forgotten", "scale turned round"])
def test_wrong_changes_of_variables_are_far_off(path: Any, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale of rectified flow is alpha + sigma = 1 at both ends, so only there it may be forgotten."""
    x, denoiser = images_of((1, 1, 2)), three_blobs(path)
    exact = exact_log_density(denoiser, path, x)[0]
    traces, log = model_likelihood._traces, math.log
    if wrong == "sign of the divergence":
        monkeypatch.setattr(model_likelihood, "_traces", lambda *of: -traces(*of))
    elif wrong == "no divergence":
        monkeypatch.setattr(model_likelihood, "_traces", lambda *of: 0 * traces(*of))
    else:
        factor = 0 if wrong == "scale forgotten" else -1
        ends = [path.at(t) for t in (path.t_min, path.t_max)]
        scales = [1.0 if isinstance(path, RectifiedFlow) else alpha for alpha, _ in ends]
        known = [scale for scale in scales if abs(log(scale)) > 1e-12]
        monkeypatch.setattr(math, "log", lambda at: factor * log(at) if at in known else log(at))
    found = ode_log_likelihood(denoiser, path, x, all_directions(x)).estimate
    harmless = isinstance(path, RectifiedFlow) and wrong.startswith("scale")
    assert ((found - exact).abs() > 1).all() != harmless


def test_the_likelihood_integrates_to_one() -> None:
    """Over one pixel of the mixture: a density it is, whatever the prior."""
    for path in (VPCosine(), RectifiedFlow()):
        x = torch.linspace(-2, 2, 201, dtype=torch.float64)
        found = ode_log_likelihood(
            two_humps(path), path, x.view(-1, 1, 1, 1), torch.ones(2, 201, 1, 1, 1).double(), 1e-6, 1e-6
        )
        assert torch.trapezoid(found.estimate.exp(), x).item() == pytest.approx(1, abs=1e-5)


def test_samples_of_rk45_are_as_likely_as_the_density_says() -> None:
    """For any denoiser, not only an ideal one: E over samples at t_min of f(x) is the integral of f p."""
    path = RectifiedFlow()
    denoiser = WavyDenoiser(path)
    z = torch.linspace(-6, 6, 2001, dtype=torch.float64).view(-1, 1, 1, 1)  # one pixel: flip(3) leaves it
    *_, (_, x), _ = RK45(rtol=1e-8, atol=1e-8, clip="none").trajectory(denoiser, path, z, no_noise)
    found = ode_log_likelihood(denoiser, path, x, torch.ones(2, *x.shape).double(), FINE, FINE)
    by_quantiles = Normal(0.0, 1.0).log_prob(z.flatten()[1:-1]) - ((x[2:] - x[:-2]) / (z[2:] - z[:-2])).flatten().log()
    torch.testing.assert_close(found.estimate[1:-1], by_quantiles, rtol=0, atol=1e-3)


def test_each_image_is_measured_alone() -> None:
    path, shape = VPCosine(), (1, 1, 2)
    denoiser, x = three_blobs(path), images_of(shape)
    x[3] *= 20  # takes more steps
    together = ode_log_likelihood(denoiser, path, x, probe_signs(0, NUMBERS, shape, 3))
    for number in range(4):
        one = slice(number, number + 1)
        alone = ode_log_likelihood(denoiser, path, x[one], probe_signs(0, NUMBERS[one], shape, 3))
        torch.testing.assert_close(alone.estimate, together.estimate[one], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alone.standard_error, together.standard_error[one], rtol=1e-9, atol=1e-9)


def test_tighter_tolerances_come_closer() -> None:
    path, x = VPLinear(), images_of((1, 1, 2))
    exact = exact_log_density(three_blobs(path), path, x)[0]
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        found = ode_log_likelihood(three_blobs(path), path, x, all_directions(x), tolerance, tolerance)
        errors.append((found.estimate - exact).abs().max().item())
        assert errors[-1] < 200 * tolerance
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("kind", ["simple_unet", "dit"])
def test_a_network_is_differentiated_within_inference_mode_too(kind: str) -> None:
    path, shape = RectifiedFlow(), (1, 8, 8)
    network = awake(SMALL[kind].build(8, 1, 1, 0)).eval()
    denoiser = NetworkDenoiser(network, path, EDM())

    def measured() -> Tensor:
        x = 0.3 * normal(3, Stream.NOISE, NUMBERS[:2], shape)
        return ode_log_likelihood(denoiser, path, x, probe_signs(0, NUMBERS[:2], shape, 2), 0.1, 0.1).estimate

    outside = measured()
    with torch.inference_mode():
        inside = measured()
    assert outside.isfinite().all()
    assert outside.dtype == torch.float64
    assert not outside.requires_grad
    torch.testing.assert_close(inside, outside)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_trace_is_that_of_the_whole_jacobian() -> None:
    network = awake(SMALL["simple_unet"].build(8, 1, 1, 0)).eval().double()
    y = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    t = torch.full((2,), 100.0, dtype=torch.float64)
    dy = network(y, t)
    basis = torch.eye(64, dtype=torch.float64).view(64, 1, 1, 8, 8).expand(64, 2, 1, 8, 8)
    diagonal = model_likelihood._traces(dy, y, basis)
    jacobian = torch.autograd.functional.jacobian(lambda each: network(each, t).sum(0), y).view(64, 2, 64)
    torch.testing.assert_close(diagonal, torch.diagonal(jacobian.transpose(0, 1), dim1=1, dim2=2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("probes", [0, 1])
def test_too_few_probes_are_refused(probes: int) -> None:
    path, x = RectifiedFlow(), images_of((1, 1, 1))
    with pytest.raises(ValueError, match=f"{probes} probes leave no standard error; use 2 or more"):
        ode_log_likelihood(pixel(path), path, x, torch.ones(probes, *x.shape))


# The variational bound.

DISCRETE = [path for path in PATHS if isinstance(path, DiscretePath)]
each_discrete = pytest.mark.parametrize("path", DISCRETE, ids=name_of)
MEAN, STD = 0.2, 0.5


def expected_terms(path: DiscretePath, variance: Any) -> Tensor:
    """Means of the continuous terms over one-pixel images N(MEAN, STD^2) and noise, by the ideal denoiser's error.

    E (x0 - E[x0 | x_t])^2 is the posterior variance of x0, which for normal data does not depend on x_t. [T].
    """
    t = torch.arange(path.T, dtype=torch.float64)
    alpha_bar, before = path.alpha_bar(t), path.alpha_bar(t - 1)
    error = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
    log_variance = step_log_variance(path, t, variance).flatten()
    variance_of_step = log_variance.exp()
    cost = 0.5 * (math.log(2 * math.pi) + log_variance + error / variance_of_step)
    small = step_log_variance(path, t, "fixed_small").flatten().exp()
    shift = before.sqrt() * (1 - alpha_bar / before) / (1 - alpha_bar)
    divergence = 0.5 * (log_variance - small.log() + (small + shift**2 * error) / variance_of_step - 1)
    return torch.where(t > 0, divergence, cost)


def expected_prior(path: DiscretePath) -> float:
    alpha, sigma = path.at(path.t_max)
    return 0.5 * (alpha**2 * (MEAN**2 + STD**2) + sigma**2 - 1) - math.log(sigma)


ENTROPY = 0.5 * math.log(2 * math.pi * math.e * STD**2)


@pytest.mark.parametrize("path", [VPLinear(T=50, beta_end=0.2), VPCosine(T=50)], ids=name_of)
@each_fixed
def test_the_bound_is_the_closed_form_within_four_standard_errors(path: Any, variance: Any) -> None:
    numbers, shape = torch.arange(5_000), (1, 1, 1)
    x0 = MEAN + STD * normal(7, Stream.INITIAL_NOISE, numbers, shape).double()
    noise = bound_noise(0, numbers, shape)
    bound = variational_bound(pixel(path, MEAN, STD), path, x0, lambda t: noise(t).double(), variance, "continuous")
    assert bound.terms.shape == bound.squared_error.shape == (50, 5_000)
    error = bound.terms.std(1) / math.sqrt(len(x0))
    off = (bound.terms.mean(1) - expected_terms(path, variance)).abs()
    assert (off < 4 * error + 1e-12).all(), (off / error).max()
    total_error = bound.total.std() / math.sqrt(len(x0))
    exact = expected_prior(path) + expected_terms(path, variance).sum().item()
    assert abs(bound.total.mean().item() - exact) < 4 * total_error
    assert exact > ENTROPY  # and with the sum's sign, the prior's or the last step's variance wrong it would be far off


@each_discrete
def test_the_bound_of_an_ideal_denoiser_lies_above_minus_the_log_density_and_close_to_it(path: Any) -> None:
    """In the mean over the data, where minus the log density is the entropy; T = 1000.

    With fixed_large all but a thousandth of the gap is that the last step has the variance of t = 1's posterior, about
    half of what it should be. fixed_small is right for one certain image, and these are of a standard deviation of 0.5.
    """
    gap, of_last_step = {}, {}
    for variance in ("fixed_small", "fixed_large"):
        terms = expected_terms(path, variance)
        gap[variance] = expected_prior(path) + terms.sum().item() - ENTROPY
        alpha, sigma = path.at(0)
        error = (STD * sigma) ** 2 / ((STD * alpha) ** 2 + sigma**2)
        of_last_step[variance] = terms[0].item() - 0.5 * math.log(2 * math.pi * math.e * error)
    assert path.T == 1000
    assert 0 < gap["fixed_large"] - of_last_step["fixed_large"] < 0.0015
    assert of_last_step["fixed_large"] < gap["fixed_large"] < 0.16
    assert gap["fixed_large"] < gap["fixed_small"] < 0.6


@each_fixed
def test_measured_on_a_thousand_steps_it_is_as_close(variance: Any) -> None:
    """Against the closed density, both at the same images drawn from the data: only their difference is random."""
    path = VPLinear()
    denoiser = neighbours(path)
    shape, numbers = tuple(denoiser.mean.shape), torch.arange(1000)
    z = normal(7, Stream.INITIAL_NOISE, numbers, shape).double().flatten(1)
    x0 = (denoiser.mean.flatten() + z @ torch.linalg.cholesky(denoiser.covariance).T).view(1000, *shape)
    noise = bound_noise(0, numbers, shape)
    bound = variational_bound(denoiser, path, x0, lambda t: noise(t).double(), variance, "continuous")
    gap = (bound.total + denoiser.log_density(x0, path.t_data)) / z.shape[1]
    error = gap.std().item() / math.sqrt(1000)
    assert error < 0.04
    assert 0 < gap.mean().item() < {"fixed_small": 0.65, "fixed_large": 0.2}[variance] + 4 * error


@each_fixed
def test_a_discretized_bound_is_the_continuous_one_and_the_width_of_a_grey_level(variance: Any) -> None:
    """Where the last step is much wider than a level, as on a path of few steps."""
    path, numbers, shape = VPLinear(T=10, beta_start=0.05, beta_end=0.9), torch.arange(2000), (1, 1, 1)
    x0 = (0.1 * normal(7, Stream.INITIAL_NOISE, numbers, shape).double()).mul(127.5).round() / 127.5 - 1 / 255
    noise = bound_noise(0, numbers, shape)
    levels, density = (
        variational_bound(pixel(path, 0.0, 0.1), path, x0, lambda t: noise(t).double(), variance, decoder)
        for decoder in ("discretized", "continuous")
    )
    assert bits_per_dim(levels.total.mean().item(), 1) == pytest.approx(
        bits_per_dim_of_density(-density.total.mean().item(), 1), abs=2e-3
    )
    assert torch.equal(levels.terms[1:], density.terms[1:])


def test_one_certain_image_costs_nothing_but_the_last_step() -> None:
    path, shape, numbers = VPLinear(T=20, beta_start=1e-6, beta_end=0.5), (1, 2, 2), torch.arange(3)
    value = 158 / 127.5 - 1
    x0 = torch.full((3, *shape), value, dtype=torch.float64)
    bound = variational_bound(only_image(path, shape, value), path, x0, bound_noise(0, numbers, shape), "fixed_small")
    assert bound.terms[1:].abs().max() < 1e-12
    assert bound.squared_error.max() < 1e-12
    assert bound.terms[0].abs().max() < 1e-3  # a step narrower than a grey level
    torch.testing.assert_close(bound.total, bound.prior + bound.terms[0])


def test_the_learned_variance_is_the_predictions_and_must_be_there() -> None:
    path, numbers, shape = VPCosine(T=30), torch.arange(3), (1, 1, 1)
    plain, x0 = pixel(path, MEAN, STD), torch.full((3, *shape), 0.3, dtype=torch.float64)

    def sharing(share: float) -> Any:
        def denoiser(x_t: Tensor, t: Tensor) -> Prediction:
            return replace(plain(x_t, t), variance_share=torch.full_like(x_t, share))

        return denoiser

    noise = bound_noise(0, numbers, shape)
    for share, fixed in ((0.0, "fixed_small"), (1.0, "fixed_large")):
        learned = variational_bound(sharing(share), path, x0, noise, "learned")
        ours = variational_bound(sharing(0.7), path, x0, noise, fixed)  # type: ignore[arg-type]  # one of the two
        torch.testing.assert_close(learned.terms[1:], ours.terms[1:])
    with pytest.raises(ValueError, match="variance learned, but the model has none; use fixed_small or fixed_large"):
        variational_bound(plain, path, x0, noise, "learned")


def test_a_network_with_a_learned_variance_is_measured() -> None:
    path, numbers, shape = VPCosine(T=5), torch.arange(2), (1, 8, 8)
    network = awake(SMALL["simple_unet"].build(8, 1, 2, 0)).eval()
    denoiser = NetworkDenoiser(network, path, Eps(), variance=LearnedRange())
    with torch.inference_mode():
        x0 = normal(1, Stream.NOISE, numbers, shape).clamp(-1, 1)
        bound = variational_bound(denoiser, path, x0, bound_noise(0, numbers, shape), "learned")
    assert bound.terms.shape == (5, 2)
    assert bound.total.dtype == torch.float64
    assert bound.total.isfinite().all()


def test_every_step_is_asked_once_at_an_image_noised_by_its_own_draw() -> None:
    path, numbers, shape = VPCosine(T=7), torch.tensor([5, 9]), (1, 1, 2)
    counting, x0 = Counting(three_blobs(path)), images_of(shape)[:2].float()
    variational_bound(counting, path, x0, bound_noise(3, numbers, shape), "fixed_small")
    assert [t.tolist() for t in counting.times] == [[step, step] for step in range(7)]
    for step, x_t in enumerate(counting.states):
        alpha, sigma = path.at(step)
        torch.testing.assert_close(x_t, alpha * x0 + sigma * normal(3, Stream.BOUND_NOISE, numbers, shape, step))


def test_noise_and_probes_are_a_function_of_seed_number_and_step_alone() -> None:
    shape = (1, 2, 2)
    for draw in (
        lambda seed, numbers: bound_noise(seed, numbers, shape)(4),
        lambda seed, numbers: probe_signs(seed, numbers, shape, 3).transpose(0, 1),
        lambda seed, numbers: dequantised(torch.zeros(len(numbers), *shape), seed, numbers),
    ):
        several = draw(1, torch.tensor([3, 2**40, 7]))
        torch.testing.assert_close(draw(1, torch.tensor([7, 3])), several[[2, 0]])
        assert not torch.equal(draw(2, torch.tensor([7])), several[[2]])
        assert not torch.equal(several[0], several[2])
    assert not torch.equal(bound_noise(0, NUMBERS, shape)(4), bound_noise(0, NUMBERS, shape)(5))


def test_probes_are_signs_of_both_kinds_that_know_nothing_of_each_other() -> None:
    probes = probe_signs(0, torch.arange(1000), (1, 2, 4), 2).double()
    assert probes.shape == (2, 1000, 1, 2, 4)
    assert probes.abs().eq(1).all()
    columns = torch.cat((probes[0], probes[1])).flatten(1)
    correlation = columns.T @ columns / len(columns)
    assert (correlation - torch.eye(8).double()).abs().max() < 4.5 / math.sqrt(len(columns))
    assert columns.mean(0).abs().max() < 4 / math.sqrt(len(columns))
    assert (probes[0] * probes[1]).mean().abs() < 4 / math.sqrt(8000)


def test_dequantised_images_fill_their_grey_level_and_no_other() -> None:
    x = (torch.arange(256).repeat(40) / 127.5 - 1).view(-1, 1, 2, 2)
    spread = dequantised(x, 0, torch.arange(len(x)))
    off = (spread - x).double() * 255
    assert off.abs().max() <= 1 + 1e-4
    assert off.mean().abs() < 4 / math.sqrt(3 * off.numel())
    assert off.var().item() == pytest.approx(1 / 3, rel=0.05)
    assert spread.dtype == x.dtype
    torch.testing.assert_close(((spread + 1) * 127.5).clamp(0, 255).round(), ((x + 1) * 127.5).round())


# Rate and distortion.


def test_rates_add_up_from_the_noisiest_and_the_image_itself_is_not_among_them() -> None:
    prior, terms = torch.tensor([1.0, 3.0]), torch.tensor([[90.0, 110.0], [8.0, 12.0], [4.0, 6.0]])
    squared_error = torch.tensor([[0.01, 0.03], [0.0, 0.5], [1.0, 3.0]])
    rate, distortion = rate_distortion(Bound(prior, terms, squared_error), 4)
    torch.testing.assert_close(rate * 4 * math.log(2), torch.tensor([2.0, 7.0, 17.0]))
    torch.testing.assert_close(distortion, 127.5 * torch.tensor([2.0, 0.25, 0.02]).sqrt())


def test_means_over_images_have_the_same_curve_as_the_images() -> None:
    path, numbers, shape = VPCosine(T=20), torch.arange(50), (1, 1, 2)
    bound = variational_bound(
        three_blobs(path), path, normal(1, Stream.NOISE, numbers, shape), bound_noise(0, numbers, shape), "fixed_small"
    )
    mean = Bound(bound.prior.mean()[None], bound.terms.mean(1)[:, None], bound.squared_error.mean(1)[:, None])
    for ours, theirs in zip(rate_distortion(bound, 2), rate_distortion(mean, 2), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_rate_distortion_curve_of_gaussian_images_is_shannons_bound_as_steps_become_many() -> None:
    """For N(MEAN, STD^2) a squared error of D costs log(STD / sqrt(D)) nats; no code can be better."""
    path = VPLinear(T=1000)
    t = torch.arange(path.T, dtype=torch.float64)
    alpha_bar = path.alpha_bar(t)
    error = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
    bound = Bound(
        torch.tensor([expected_prior(path)], dtype=torch.float64),
        expected_terms(path, "fixed_large")[:, None],
        error[:, None],
    )
    rate, distortion = rate_distortion(bound, 1)
    shannon = torch.log2(STD * 127.5 / distortion)
    assert (rate > shannon).all()
    torch.testing.assert_close(rate[:-10], shannon[:-10], rtol=0, atol=2e-3)  # the last steps are large ones
