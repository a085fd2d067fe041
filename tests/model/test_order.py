"""Orders of convergence, measured against exact solutions; inversion; the step to the data.

From the path's noisy end to a fixed time above 0, on grids that can be refined without end. The step to the data is of
first order in every sampler, and is tested on its own.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model import (
    DDIM,
    RK45,
    VESDE,
    VPSDE,
    EDMPath,
    GaussianPath,
    Heun,
    Prediction,
    RectifiedFlow,
    SubVPSDE,
    UniPC,
    VPCosine,
    VPLinear,
)
from model.probability_flow import _dormand_prince

from .analytic import (
    PATHS,
    SAMPLERS,
    Counting,
    GaussianDenoiser,
    MixtureDenoiser,
    WavyDenoiser,
    adds_noise,
    admitted,
    exact_moments,
    neighbours,
    no_noise,
    pixel,
    run,
    seeded,
    slope,
    two_humps,
    two_pixels,
    variants,
)

Data = Callable[[GaussianPath], Any]
STEPS = [20, 40, 80, 160]
REFINABLE: list[Any] = [
    VPSDE(first_time=0.3),
    SubVPSDE(first_time=0.4),
    VESDE(first_time=0.4, sigma_max=10.0),
    EDMPath(sigma_min=0.2, sigma_max=10.0),
    RectifiedFlow(first_time=0.3),
]
"""Continuous paths that end well above 0. On longer ones, in lambda, 20 steps are too few to show the order."""
STEPPING = [
    sampler
    for sampler in variants(clip="none", grid="linspace", steps=2, s_noise=1.0, corrector_steps=0)
    if "steps" in type(sampler).model_fields
]
"""All but those of adaptive steps. Langevin steps have a bias of their own that stays as long as the noise does."""
SOLVERS = [sampler for sampler in STEPPING if not adds_noise(sampler, VPSDE())]
NOISY = [sampler for sampler in STEPPING if adds_noise(sampler, VPSDE())]
each_path = pytest.mark.parametrize("path", REFINABLE, ids=lambda path: path.kind)
each_data = pytest.mark.parametrize("data", [neighbours, two_humps], ids=lambda data: data.__name__)


def with_steps(sampler: Any, path: GaussianPath, steps: int) -> Any:
    """On a grid of even steps in lambda, or in time where lambda begins at -inf."""
    return sampler.model_copy(update={"steps": steps, "grid": "linspace" if path.loses_image else "lambda_uniform"})


def beginnings(denoiser: GaussianDenoiser | MixtureDenoiser) -> Tensor:
    """Images of noise that reach far out of what is likely. -> [9, C, H, W]."""
    path, shape = denoiser.path, (denoiser.mean if isinstance(denoiser, GaussianDenoiser) else denoiser.means[0]).shape
    spread = torch.linspace(-2, 2, 9 * shape.numel(), dtype=torch.float64)
    return path.prior_std(path.t_max) * spread.view(9, *shape)


def error(sampler: Any, denoiser: GaussianDenoiser | MixtureDenoiser) -> float:
    """Largest deviation from the ODE's solution at the last time above 0."""
    x = beginnings(denoiser)
    t, state = run(sampler, denoiser, denoiser.path, x, no_noise)[-2]
    return float((state - denoiser.solution(x, denoiser.path.t_max, t)).abs().max())


@each_data
@pytest.mark.parametrize(("sampler", "path"), admitted(SOLVERS, REFINABLE))
def test_solver_is_of_its_declared_order(sampler: Any, path: Any, data: Data) -> None:
    """But for UniPC where the image is lost: its first step, from lambda = -inf, is of first order and never corrected,
    which makes the whole of second order.
    """
    lost = isinstance(sampler, UniPC) and path.loses_image
    many, order = ([320, 640, 1280], 2) if lost else (STEPS, sampler.order)
    errors = [error(with_steps(sampler, path, steps), data(path)) for steps in many]
    assert abs(slope(many, errors) - order) < 0.2, errors


@pytest.mark.parametrize(("sampler", "path"), admitted(NOISY, REFINABLE))
def test_moments_of_a_stochastic_sampler_converge_at_its_declared_order(sampler: Any, path: Any) -> None:
    """Begun in the exact distribution of the noisy end: the mean stays exact, the covariance is off by steps^-order."""
    denoiser, errors = two_pixels(path), []
    for steps in STEPS[:3]:
        t, mean, covariance = exact_moments(with_steps(sampler, path, steps), denoiser)[-2]
        exact_mean, exact_covariance = denoiser.moments(t)
        torch.testing.assert_close(mean, exact_mean, rtol=0, atol=1e-12)
        errors.append(float(torch.linalg.matrix_norm(covariance - exact_covariance)))
    assert abs(slope(STEPS[:3], errors) - sampler.order) < 0.2, errors


def test_every_sampler_of_even_steps_is_measured() -> None:
    """Were `adds_noise` wrong, tests would vanish without a word."""
    assert {type(sampler) for sampler in SOLVERS} | {type(sampler) for sampler in NOISY} == set(SAMPLERS) - {RK45}
    assert {sampler.kind for sampler in SOLVERS} == {"ddim", "euler", "heun", "dpm_solver_pp", "unipc"}


@pytest.mark.parametrize(("sampler", "path"), admitted(variants(clip="none", steps=6, grid="uniform"), PATHS))
def test_last_step_lands_on_the_image_predicted_last(sampler: Any, path: Any) -> None:
    """The one thing that a step to sigma = 0 can do, and no noise on top; one of first order, whatever the sampler."""
    seen: list[Prediction] = []

    def denoiser(x_t: Tensor, t: Tensor) -> Prediction:
        seen.append(WavyDenoiser(path)(x_t, t))
        return seen[-1]

    x, noise = seeded(torch.arange(3), (1, 2, 2), path.prior_std(path.t_max))
    t, image = run(sampler, denoiser, path, x, noise)[-1]
    assert t == path.t_data
    torch.testing.assert_close(image, seen[-1].x0, rtol=0, atol=1e-9)


@each_data
@each_path
def test_rk45_stays_near_its_tolerance(path: Any, data: Data) -> None:
    """A tolerance is for one step; over all of them errors add up, here to less than 50 of it."""
    for tolerance in (1e-4, 1e-6, 1e-8):
        assert error(RK45(rtol=tolerance, atol=tolerance, clip="none"), data(path)) < 50 * tolerance


def test_steps_of_rk45_are_of_fifth_order_and_their_error_estimate_too() -> None:
    """Its steps adapt, so the order is that of its steps where they are all alike: from sigma = 2 to 0.5."""
    denoiser, steps, errors, estimates = two_humps(EDMPath()), [10, 20, 40, 80], [], []
    x = 2 * beginnings(denoiser) / EDMPath().sigma_max

    def eps(tau: Tensor, y: Tensor) -> Tensor:
        return denoiser(y, tau).eps

    for n in steps:
        y, tau, h = x, torch.full((9,), 2.0, dtype=torch.float64), torch.full((9,), -1.5 / n, dtype=torch.float64)
        k, largest = eps(tau, y), 0.0
        for _ in range(n):
            y, k, estimate = _dormand_prince(eps, tau, y, k, h)
            tau, largest = tau + h, max(largest, float(estimate.abs().max()))
        errors.append(float((y - denoiser.solution(x, 2.0, 0.5)).abs().max()))
        estimates.append(largest)
    assert abs(slope(steps, errors) - RK45.order) < 0.3, errors
    assert abs(slope(steps, estimates) - RK45.order) < 0.3, estimates


@each_data
@each_path
def test_rk45_inverts_its_own_way(path: Any, data: Data) -> None:
    denoiser = data(path)
    sampler, x = RK45(rtol=1e-9, atol=1e-9, clip="none"), beginnings(denoiser)
    clean = run(sampler, denoiser, path, x, no_noise)[-2].x
    noisy = list(sampler.inversion(denoiser, path, clean))[-1]
    assert noisy.t == pytest.approx(path.t_max)
    torch.testing.assert_close(noisy.x, x, rtol=0, atol=1e-6 * float(x.abs().max()))


@each_data
@pytest.mark.parametrize("path", [VPSDE(), SubVPSDE(), EDMPath(), RectifiedFlow()], ids=lambda path: path.kind)
def test_ddim_inversion_is_of_first_order(path: Any, data: Data) -> None:
    """From images to noise and back: what is lost on the way falls like 1 / steps."""
    denoiser = data(path)
    image, many, errors = beginnings(denoiser) / path.prior_std(path.t_max) / 4, [160, 320, 640], []
    for steps in many:
        sampler = with_steps(DDIM(clip="none"), path, steps)
        noise = list(sampler.inversion(denoiser, path, image))[-1]
        assert noise.t == pytest.approx(path.t_max)
        errors.append(float((run(sampler, denoiser, path, noise.x, no_noise)[-1].x - image).abs().max()))
    assert abs(slope(many, errors) - 1) < 0.2, errors


def test_ddim_inversion_visits_the_grid_backwards() -> None:
    path, sampler = VPSDE(), DDIM(steps=5, clip="none")
    counting = Counting(pixel(path))
    times = [state.t for state in sampler.inversion(counting, path, torch.zeros(2, 1, 1, 1, dtype=torch.float64))]
    grid = [point.t for point in sampler.points(path)][:-1]
    assert times == grid[::-1]
    assert [float(t[0]) for t in counting.times] == [grid[-1], *grid[:0:-1]]


@each_data
def test_closed_forms_follow_the_score(data: Data) -> None:
    """Tweedie's formula: E[eps | x_t] = -sigma times the gradient of log p_t, here by automatic differentiation."""
    for path in PATHS:
        denoiser = data(path)
        for t in (path.t_min, (path.t_min + path.t_max) / 3, path.t_max):
            alpha, sigma = path.at(t)
            x = (0.5 * alpha + sigma) * beginnings(denoiser) / path.prior_std(path.t_max)
            x = x.requires_grad_()
            (score,) = torch.autograd.grad(denoiser.log_density(x, t).sum(), x)
            prediction = denoiser(x.detach(), torch.full((9,), t, dtype=torch.float64))
            torch.testing.assert_close(prediction.eps, -sigma * score, rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(alpha * prediction.x0 + sigma * prediction.eps, x.detach(), rtol=0, atol=1e-9)


@each_data
def test_closed_solution_solves_the_ode(data: Data) -> None:
    """Its derivative, by differences, is the path's velocity alpha' x0 + sigma' eps."""
    for path in REFINABLE:
        denoiser, t, h = data(path), 0.6 * path.t_max, 1e-5
        alpha_rate, sigma_rate = path.rates(torch.tensor(t, dtype=torch.float64))
        x = beginnings(denoiser) / path.prior_std(path.t_max) * path.at(t)[1]
        prediction = denoiser(x, torch.full((9,), t, dtype=torch.float64))
        difference = (denoiser.solution(x, t, t + h) - denoiser.solution(x, t, t - h)) / (2 * h)
        torch.testing.assert_close(
            difference, alpha_rate * prediction.x0 + sigma_rate * prediction.eps, rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("path", [VPCosine(), VPLinear(T=4000)], ids=["vp_cosine", "vp_linear-4000"])
@pytest.mark.parametrize("grid", ["uniform", "lambda_uniform", "quadratic"])
def test_heun_bears_a_path_that_all_but_loses_the_image(path: Any, grid: Any) -> None:
    """In x / alpha against sigma / alpha, which begins at 20,000 and more, an even grid missed the spread threefold."""
    *_, (_, mean, covariance) = exact_moments(Heun(steps=path.T // 50, grid=grid, clip="none"), pixel(path, 0.2, 0.5))
    assert float(mean) == pytest.approx(0.2, abs=0.01)
    assert float(covariance) ** 0.5 == pytest.approx(0.5, rel=0.03)
