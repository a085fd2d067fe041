"""Whole trajectories equal those of diffusers' schedulers, state for state, in float64.

Where conventions part: they know no step from lambda = -inf, interpolate sigma instead of alpha_bar between whole steps
and round their grids otherwise ("trailing" and "linspace" take T / steps to the next step whatever the grid says). So
their schedulers are given our grid, in float64.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from model import (
    DDIM,
    Ancestral,
    DPMSolverPP,
    Euler,
    Heun,
    RectifiedFlow,
    UniPC,
    VPCosine,
    VPLinear,
    VPScaledLinear,
    VPSigmoid,
    time_grid,
)

from .analytic import Counting, WavyDenoiser, no_noise, run
from .reference import betas_as_theirs, in_float64, on_points, theirs

PATHS = [VPLinear(), VPCosine()]
SHAPE = (2, 1, 3, 3)
EVERY_STEP = [float(t) for t in range(999, -1, -1)]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.kind)
each_grid = pytest.mark.parametrize("grid", ["uniform", "linspace", "quadratic", "karras", "lambda_uniform"])
each_length = pytest.mark.parametrize("steps", [1, 2, 3, 10, 25])


def fresh_generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def draw(generator: torch.Generator) -> Tensor:
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def at(x: Tensor, t: float) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.float64)


def our_states(sampler: Any, path: Any) -> list[Tensor]:
    generator = fresh_generator()
    return [state.x for state in run(sampler, WavyDenoiser(path), path, draw(generator), lambda _: draw(generator))]


def same(ours: list[Tensor], expected: list[Tensor]) -> None:
    """To 1e-10, of each state's largest pixel where that is above 1, as after steps from alpha = 5e-5."""
    for state, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(state, other, rtol=0, atol=1e-10 * max(1.0, float(other.abs().max())))


def ddim_states(path: Any, steps: int, eta: float, clip: str) -> list[Tensor]:
    """Their "trailing" is our uniform grid where `steps` divides T; elsewhere they mistake which step comes next."""
    scheduler = theirs(
        "DDIMScheduler", beta_schedule=betas_as_theirs(path), clip_sample=clip != "none", timestep_spacing="trailing"
    )
    in_float64(scheduler).set_timesteps(steps)
    assert scheduler.timesteps.tolist() == time_grid("uniform", path, steps)
    generator = fresh_generator()
    x, states = draw(generator), []
    for t in scheduler.timesteps.tolist():
        eps = WavyDenoiser(path)(x, at(x, t)).eps
        noise = draw(generator) if eta > 0 else None
        step = scheduler.step(eps, t, x, eta, use_clipped_model_output=clip == "x0_and_eps", variance_noise=noise)
        states.append(x := step.prev_sample)
    return states


def ddpm_states(path: Any, times: list[float], variance: str, clip: bool) -> list[Tensor]:
    scheduler = theirs("DDPMScheduler", beta_schedule=betas_as_theirs(path), variance_type=variance, clip_sample=clip)
    whole = [int(t) for t in times]
    in_float64(scheduler).set_timesteps(timesteps=whole)
    generator = fresh_generator()
    x, states = draw(generator), []
    for t in whole:
        eps = WavyDenoiser(path)(x, at(x, t)).eps
        states.append(x := scheduler.step(eps, t, x, generator).prev_sample)
    return states


@each_path
@pytest.mark.parametrize("clip", ["none", "x0", "x0_and_eps"])
@pytest.mark.parametrize("eta", [0, 0.3, 1])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddim_equals_diffusers(path: Any, steps: int, eta: float, clip: Any) -> None:
    same(our_states(DDIM(steps=steps, eta=eta, grid="uniform", clip=clip), path), ddim_states(path, steps, eta, clip))


def test_ddim_over_all_steps_equals_diffusers() -> None:
    ours = our_states(DDIM(steps=1000, eta=0.3, grid="uniform", clip="x0_and_eps"), VPLinear())
    same(ours, ddim_states(VPLinear(), 1000, 0.3, "x0_and_eps"))


@each_path
@pytest.mark.parametrize("clip", ["none", "x0"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("steps", [10, 50])
def test_respaced_ancestral_sampling_equals_diffusers(path: Any, steps: int, variance: Any, clip: Any) -> None:
    """On a grid that ends at t = 0: where it ends elsewhere, diffusers adds noise to the finished image."""
    ours = our_states(Ancestral(steps=steps, grid="quadratic", variance=variance, clip=clip), path)
    same(ours, ddpm_states(path, time_grid("quadratic", path, steps), variance, clip != "none"))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_sampling_over_all_steps_equals_diffusers(variance: Any) -> None:
    ours = our_states(Ancestral(steps=1000, variance=variance, clip="x0"), VPLinear())
    same(ours, ddpm_states(VPLinear(), EVERY_STEP, variance, clip=True))


def dpm_states(path: Any, sampler: DPMSolverPP) -> list[Tensor]:
    """Their `step` rounds the state to float32 in between, so its parts are called one by one, in its order."""
    points = sampler.points(path)
    kind = "sde-dpmsolver++" if sampler.variant == "2m_sde" else "dpmsolver++"
    scheduler = on_points(theirs("DPMSolverMultistepScheduler", algorithm_type=kind, final_sigmas_type="zero"), points)
    generator = fresh_generator()
    x, states, outputs = draw(generator), [], list[Tensor]()
    for number, point in enumerate(points[:-1]):
        scheduler._step_index = number
        eps = WavyDenoiser(path)(x, point.times(x)).eps
        outputs.append(scheduler.convert_model_output(eps, sample=x))
        last = number == len(points) - 2
        noise = torch.zeros_like(x) if last or kind == "dpmsolver++" else draw(generator)
        if number == 0 or last:
            x = scheduler.dpm_solver_first_order_update(outputs[-1], sample=x, noise=noise)
        else:
            x = scheduler.multistep_dpm_solver_second_order_update(outputs, sample=x, noise=noise)
        states.append(x)
    return states


@each_path
@each_grid
@each_length
@pytest.mark.parametrize("variant", ["2m", "2m_sde"])
def test_dpm_solver_equals_diffusers(path: Any, grid: Any, steps: int, variant: Any) -> None:
    sampler = DPMSolverPP(steps=steps, grid=grid, variant=variant, clip="none")
    same(our_states(sampler, path), dpm_states(path, sampler))


@each_path
@each_grid
@each_length
def test_unipc_equals_diffusers(path: Any, grid: Any, steps: int) -> None:
    """Theirs of order 2 with bh2, whose last step is of first order, as is every step to sigma = 0."""
    sampler = UniPC(steps=steps, grid=grid, clip="none")
    points = sampler.points(path)
    scheduler = on_points(
        theirs("UniPCMultistepScheduler", solver_order=2, solver_type="bh2", final_sigmas_type="zero"), points
    )
    x, states = draw(fresh_generator()), []
    for point in points[:-1]:
        eps = WavyDenoiser(path)(x, point.times(x)).eps
        states.append(x := scheduler.step(eps, torch.tensor(point.t), x).prev_sample)
    same(our_states(sampler, path), states)


@pytest.mark.parametrize("path", [VPLinear(), VPScaledLinear(), VPSigmoid()], ids=lambda path: path.kind)
@each_grid
@each_length
def test_heun_equals_diffusers(path: Any, grid: Any, steps: int) -> None:
    """Theirs walks in x / alpha, and scales that by alpha for the network. So does ours, unless sigma / alpha goes
    beyond 1,000, as on vp_cosine, where no grid could follow it.
    """
    sampler = Heun(steps=steps, grid=grid, clip="none")
    points = sampler.points(path)
    scheduler = on_points(theirs("HeunDiscreteScheduler"), points, twice=True)
    times = [points[0], *(point for point in points[1:-1] for _ in range(2))]
    counting = Counting(WavyDenoiser(path))
    y, states = draw(fresh_generator()) / points[0].alpha, []
    for number, point in enumerate(times):
        eps = counting(point.alpha * y, point.times(y)).eps
        y = scheduler.step(eps, torch.tensor(point.t), y).prev_sample
        if number % 2 == 1:  # the step's second evaluation
            states.append(point.alpha * y)
    states.append(y)
    assert len(counting.times) == sampler.evaluations(path)
    same(our_states(sampler, path), states)


@each_length
@pytest.mark.parametrize("grid", ["uniform", "linspace", "quadratic"])
def test_euler_on_rectified_flow_equals_diffusers(grid: Any, steps: int) -> None:
    """Theirs rounds the state to float32 in `step`, so it is asked for the change, from a state of 0."""
    path, sampler = RectifiedFlow(), Euler(steps=steps, grid=grid, clip="none")
    points = sampler.points(path)
    scheduler = theirs("FlowMatchEulerDiscreteScheduler")
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.tensor([point.sigma for point in points], dtype=torch.float64)
    scheduler.timesteps = 1000 * scheduler.sigmas[:-1]
    scheduler.set_begin_index(0)
    x, states = draw(fresh_generator()), []
    for t, point in zip(scheduler.timesteps, points, strict=False):
        prediction = WavyDenoiser(path)(x, point.times(x))
        x = x + scheduler.step(prediction.eps - prediction.x0, t, torch.zeros_like(x)).prev_sample
        states.append(x)
    ours = run(sampler, WavyDenoiser(path), path, draw(fresh_generator()), no_noise)
    same([state.x for state in ours], states)
