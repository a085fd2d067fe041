"""Laws that single samplers obey exactly, and the known mistakes, kept here, that break them.

The mistakes are the ones found in public code. A law that lets its mistake pass would be no test.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from model import DDIM, GRIDS, Ancestral, Denoiser, Path, VPLinear, time_grid
from model.samplers import NoiseSource, _posterior_std, _steps

from .analytic import ConstantNetwork, IdealNetwork, WavyNetwork, exact_moments, run, seeded

PATH = VPLinear()
SHAPE = (1, 2, 2)


def ends_in_the_only_image(sampler: Any) -> bool:
    """Where all images are one, that one comes out: the last step adds no noise (Ho et al. 2020, algorithm 2)."""
    image = run(sampler, IdealNetwork(PATH, mean=0.3, std=0), PATH, *seeded(torch.arange(3), SHAPE))[-1]
    return torch.allclose(image, torch.full_like(image, 0.3), rtol=0, atol=1e-9)


def keeps_unit_variance(sampler: Any) -> bool:
    """For standard normal images x_t is standard normal at all times, and variance beta keeps it so in every step that
    adds noise, however many steps are taken together (Ho et al. 2020, section 3.2).
    """
    moments = exact_moments(sampler, IdealNetwork(PATH), PATH)
    return all(abs(variance - 1) < 1e-9 for _, variance in moments[:-1])


def follows_the_path(sampler: Any) -> bool:
    """With one image only, the states are alpha(t) x0 + sigma(t) eps with the eps of the start at all grid times."""
    times = torch.tensor([*time_grid(sampler.grid, PATH.T, sampler.steps)[1:], -1])
    eps = torch.randn(1, *SHAPE, dtype=torch.float64)
    start = PATH.alpha(torch.tensor(PATH.T - 1)) * 0.3 + PATH.sigma(torch.tensor(PATH.T - 1)) * eps
    states = torch.cat(run(sampler, IdealNetwork(PATH, mean=0.3, std=0), PATH, start, lambda _: eps))
    expected = PATH.alpha(times).view(-1, 1, 1, 1) * 0.3 + PATH.sigma(times).view(-1, 1, 1, 1) * eps
    return torch.allclose(states, expected, rtol=0, atol=1e-9)


def equals_ancestral_sampling(sampler: Any) -> bool:
    """DDIM with eta = 1 is DDPM with the posterior's variance (Song et al. 2021, section 4.1)."""
    x, noise = seeded(torch.arange(3), SHAPE)
    ancestral = Ancestral(
        steps=sampler.steps, grid=sampler.grid, variance="fixed_small", clip_x0=sampler.clip != "none"
    )
    pairs = zip(*(run(each, WavyNetwork(PATH), PATH, x, noise) for each in (sampler, ancestral)), strict=True)
    return all(torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in pairs)


def stays_in_range(sampler: Any) -> bool:
    """Whatever the network says, a clipped image ends in [-1, 1]."""
    x, noise = seeded(torch.arange(3), SHAPE)
    return bool(run(sampler, ConstantNetwork(20.0), PATH, x, noise)[-1].abs().max() <= 1 + 1e-9)


class NoiseOnTheLastStep(Ancestral):
    def trajectory(self, denoiser: Denoiser, path: Path, x: Tensor, noise: NoiseSource) -> Iterator[Tensor]:
        *states, last = super().trajectory(denoiser, path, x, noise)
        yield from states
        yield last + math.sqrt(path.betas()[0]) * noise(self.steps - 1)


class BetasOfSingleSteps(Ancestral):
    """beta[t] from the table, also where a step spans many of them."""

    def trajectory(self, denoiser: Denoiser, path: Path, x: Tensor, noise: NoiseSource) -> Iterator[Tensor]:
        for now, after in _steps(self.grid, path, self.steps):
            beta = path.betas()[now.t].item()
            x0 = denoiser(x, now.times(x)).x0
            x = (after.alpha * beta * x0 + math.sqrt(1 - beta) * after.sigma**2 * x) / now.sigma**2
            x = x + math.sqrt(beta) * noise(now.number)
            yield x


class ShiftedPath(VPLinear):
    """alpha_bar of step t + 1 at step t, as when a table that starts with the data is read like one that does not."""

    def alpha_bar(self, t: Tensor) -> Tensor:
        return super().alpha_bar((t + 1).clamp(max=self.T - 1))


class AlphaBarOffByOne(DDIM):
    def trajectory(self, denoiser: Denoiser, _: Path, x: Tensor, noise: NoiseSource) -> Iterator[Tensor]:
        return super().trajectory(denoiser, ShiftedPath(), x, noise)


class SigmaWithoutRoot(DDIM):
    """Eq. 16's variance where its square root belongs."""

    def trajectory(self, denoiser: Denoiser, path: Path, x: Tensor, noise: NoiseSource) -> Iterator[Tensor]:
        for now, after in _steps(self.grid, path, self.steps):
            prediction = denoiser(x, now.times(x))
            std = self.eta * _posterior_std(now, after) ** 2
            x = after.alpha * prediction.x0 + math.sqrt(after.sigma**2 - std**2) * prediction.eps
            x = x + std * noise(now.number)
            yield x


class ClipAfterTheMean(Ancestral):
    """The predicted image is clipped when the mean has been taken of it, which is as good as not clipped."""

    def trajectory(self, denoiser: Denoiser, path: Path, x: Tensor, noise: NoiseSource) -> Iterator[Tensor]:
        unclipped = Ancestral.model_validate(self.model_dump() | {"clip_x0": False})
        return unclipped.trajectory(denoiser, path, x, noise)


LAWS: list[tuple[Callable[[Any], bool], Any, type[Any]]] = [
    (ends_in_the_only_image, Ancestral(steps=10, variance="fixed_small", clip_x0=False), NoiseOnTheLastStep),
    (keeps_unit_variance, Ancestral(steps=10, variance="fixed_large", clip_x0=False), BetasOfSingleSteps),
    (follows_the_path, DDIM(steps=10, eta=0, clip="none"), AlphaBarOffByOne),
    (equals_ancestral_sampling, DDIM(steps=10, eta=1, clip="none"), SigmaWithoutRoot),
    (stays_in_range, Ancestral(steps=10, clip_x0=True), ClipAfterTheMean),
]
each_law = pytest.mark.parametrize(("law", "sampler", "mistake"), LAWS, ids=[law.__name__ for law, _, _ in LAWS])


@each_law
@pytest.mark.parametrize("grid", GRIDS)
def test_sampler_obeys_its_law(law: Callable[[Any], bool], sampler: Any, mistake: type[Any], grid: str) -> None:
    assert law(sampler.model_copy(update={"grid": grid})), mistake


@each_law
@pytest.mark.parametrize("grid", GRIDS)
def test_known_mistake_breaks_the_law(law: Callable[[Any], bool], sampler: Any, mistake: type[Any], grid: str) -> None:
    assert not law(mistake.model_validate(sampler.model_dump() | {"grid": grid}))


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("clip", ["none", "x0_and_eps"])
@pytest.mark.parametrize("grid", GRIDS)
def test_ddim_with_eta_one_is_the_ancestral_sampler(grid: Any, clip: Any, steps: int) -> None:
    assert equals_ancestral_sampling(DDIM(steps=steps, grid=grid, eta=1, clip=clip))


@pytest.mark.parametrize("clip", ["x0", "x0_and_eps"])
def test_clipped_ddim_ends_in_range(clip: Any) -> None:
    assert stays_in_range(DDIM(steps=10, clip=clip))
    assert not stays_in_range(DDIM(steps=10, clip="none"))


def test_deterministic_ddim_draws_no_noise() -> None:
    def noise(step: int) -> Tensor:
        raise AssertionError(f"step {step} asked for noise")

    run(DDIM(steps=10, eta=0), WavyNetwork(PATH), PATH, torch.randn(2, *SHAPE), noise)


@pytest.mark.parametrize("sampler", [DDIM(steps=10, eta=0.5), Ancestral(steps=10)], ids=["ddim", "ancestral"])
def test_every_step_but_the_last_draws_its_own_noise(sampler: Any) -> None:
    drawn: list[int] = []

    def noise(step: int) -> Tensor:
        drawn.append(step)
        return torch.randn(2, *SHAPE)

    run(sampler, WavyNetwork(PATH), PATH, torch.randn(2, *SHAPE), noise)
    assert drawn == list(range(9))
