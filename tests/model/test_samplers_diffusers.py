"""Whole trajectories equal those of diffusers' schedulers, state for state, in float64."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from model import DDIM, GRIDS, Ancestral, Path, VPCosine, VPLinear, time_grid

from .analytic import WavyNetwork, run
from .reference import SCHEDULES, in_float64

PATHS = [VPLinear(), VPCosine()]
SHAPE = (2, 1, 3, 3)
TOLERANCE = {"rtol": 0, "atol": 1e-10}
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.kind)


def fresh_generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def draw(generator: torch.Generator) -> Tensor:
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def our_states(sampler: Any, path: Path) -> list[Tensor]:
    generator = fresh_generator()
    return run(sampler, WavyNetwork(path), path, draw(generator), lambda _: draw(generator))


def ddim_states(path: Path, steps: int, eta: float, clip: str) -> list[Tensor]:
    """Their "trailing" is our uniform grid where `steps` divides T; elsewhere they mistake which step comes next."""
    scheduler = DDIMScheduler(
        beta_schedule=SCHEDULES[path.kind], clip_sample=clip != "none", timestep_spacing="trailing"
    )
    in_float64(scheduler).set_timesteps(steps)
    assert scheduler.timesteps.tolist() == time_grid("uniform", path.T, steps)
    generator = fresh_generator()
    x, states = draw(generator), []
    for t in scheduler.timesteps.tolist():
        eps = WavyNetwork(path)(x, torch.full((len(x),), t))
        noise = draw(generator) if eta > 0 else None
        step = scheduler.step(eps, t, x, eta, use_clipped_model_output=clip == "x0_and_eps", variance_noise=noise)
        states.append(x := step.prev_sample)
    return states


def ddpm_states(path: Path, times: list[int], variance: str, clip: bool) -> list[Tensor]:
    scheduler = DDPMScheduler(beta_schedule=SCHEDULES[path.kind], variance_type=variance, clip_sample=clip)
    in_float64(scheduler).set_timesteps(timesteps=times)
    generator = fresh_generator()
    x, states = draw(generator), []
    for t in times:
        eps = WavyNetwork(path)(x, torch.full((len(x),), t))
        states.append(x := scheduler.step(eps, t, x, generator).prev_sample)
    return states


@each_path
@pytest.mark.parametrize("clip", ["none", "x0", "x0_and_eps"])
@pytest.mark.parametrize("eta", [0, 0.3, 1])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddim_equals_diffusers(path: Path, steps: int, eta: float, clip: Any) -> None:
    ours = our_states(DDIM(steps=steps, eta=eta, grid="uniform", clip=clip), path)
    for state, expected in zip(ours, ddim_states(path, steps, eta, clip), strict=True):
        torch.testing.assert_close(state, expected, **TOLERANCE)


def test_ddim_over_all_steps_equals_diffusers() -> None:
    ours = our_states(DDIM(steps=1000, eta=0.3, grid="uniform", clip="x0_and_eps"), VPLinear())
    expected = ddim_states(VPLinear(), 1000, 0.3, "x0_and_eps")
    torch.testing.assert_close(torch.stack(ours), torch.stack(expected), **TOLERANCE)


@each_path
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("steps", [10, 50])
def test_respaced_ancestral_sampling_equals_diffusers(path: Path, steps: int, variance: Any, clip: bool) -> None:
    """On a grid that ends at t = 0: where it ends elsewhere, diffusers adds noise to the finished image."""
    ours = our_states(Ancestral(steps=steps, grid="quadratic", variance=variance, clip_x0=clip), path)
    expected = ddpm_states(path, time_grid("quadratic", path.T, steps), variance, clip)
    torch.testing.assert_close(torch.stack(ours), torch.stack(expected), **TOLERANCE)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_sampling_over_all_steps_equals_diffusers(grid: Any, variance: Any) -> None:
    ours = our_states(Ancestral(steps=1000, grid=grid, variance=variance), VPLinear())
    expected = ddpm_states(VPLinear(), list(range(999, -1, -1)), variance, clip=True)
    torch.testing.assert_close(torch.stack(ours), torch.stack(expected), **TOLERANCE)
