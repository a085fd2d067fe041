"""Laws that single samplers obey exactly, and the known mistakes, kept here, that break them.

The mistakes are the ones found in public code. A law that lets its mistake pass would be no test.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import DDIM, Ancestral, DPMSolverPP, EDMPath, Euler, Grid, PredictorCorrector, State, UniPC, VPLinear
from model.denoiser import Denoiser
from model.gaussian_path import GaussianPath
from model.sampler import GridSampler, NoiseSource, posterior_std

from .analytic import (
    PATHS,
    ConstantDenoiser,
    WavyDenoiser,
    admits,
    exact_moments,
    images,
    name_of,
    no_noise,
    only_image,
    pixel,
    run,
    seeded,
)

PATH = VPLinear()
SHAPE = (1, 2, 2)
GRIDS = get_args(Grid)


def ends_in_the_only_image(sampler: Any) -> bool:
    """Where all images are one, that one comes out: the last step adds no noise (Ho et al. 2020, algorithm 2)."""
    image = images(sampler, only_image(PATH, SHAPE, 0.3), PATH, *seeded(torch.arange(3), SHAPE))
    return torch.allclose(image, torch.full_like(image, 0.3), rtol=0, atol=1e-9)


def keeps_unit_variance(sampler: Any) -> bool:
    """For standard normal images x_t is standard normal at all times, and variance beta keeps it so in every step that
    adds noise, however many steps are taken together (Ho et al. 2020, section 3.2).
    """
    moments = exact_moments(sampler, pixel(PATH))
    return all(abs(float(covariance) - 1) < 1e-9 for _, _, covariance in moments[:-1])


def follows_the_path(sampler: Any) -> bool:
    """With one image only, the states are alpha(t) x0 + sigma(t) eps with the eps of the start at all grid times."""
    eps = torch.randn(1, *SHAPE, dtype=torch.float64)

    def on_the_path(t: float) -> Tensor:
        alpha, sigma = PATH.at(t)
        return alpha * 0.3 + sigma * eps

    states = run(sampler, only_image(PATH, SHAPE, 0.3), PATH, on_the_path(sampler.start(PATH)), lambda _: eps)
    return all(torch.allclose(x, on_the_path(t), rtol=0, atol=1e-9) for t, x in states)


def equals_ancestral_sampling(sampler: Any) -> bool:
    """DDIM with eta = 1 is DDPM with the posterior's variance (Song et al. 2021, section 4.1)."""
    x, noise = seeded(torch.arange(3), SHAPE)
    ancestral = Ancestral(steps=sampler.steps, grid=sampler.grid, variance="fixed_small", clip=sampler.clip)
    return same_states(sampler, ancestral, PATH, x, noise)


def stays_in_range(sampler: Any) -> bool:
    """Whatever the network says, a clipped image ends in [-1, 1]."""
    image = images(sampler, ConstantDenoiser(PATH, 20.0), PATH, *seeded(torch.arange(3), SHAPE))
    return bool(image.abs().max() <= 1 + 1e-9)


def same_states(one: Any, other: Any, path: GaussianPath, x: Tensor, noise: NoiseSource) -> bool:
    pairs = zip(*(run(each, WavyDenoiser(path), path, x, noise) for each in (one, other)), strict=True)
    return all(a.t == b.t and torch.allclose(a.x, b.x, rtol=1e-10, atol=1e-9) for a, b in pairs)


class NoiseOnTheLastStep(Ancestral):
    def _walk(self, denoiser: Denoiser, path: Any, x: Tensor, noise: NoiseSource, start: float) -> Iterator[State]:
        *states, (t, last) = super()._walk(denoiser, path, x, noise, start)
        yield from states
        yield State(t, last + math.sqrt(path.betas()[0]) * noise(self.steps - 1))


class BetasOfSingleSteps(Ancestral):
    """beta[t] from the table, also where a step spans many of them."""

    def _walk(self, denoiser: Denoiser, path: Any, x: Tensor, noise: NoiseSource, start: float) -> Iterator[State]:
        for now, after in self.pairs(path):
            beta = path.betas()[round(now.t)].item()
            x0 = denoiser(x, now.times(x)).x0
            x = (after.alpha * beta * x0 + math.sqrt(1 - beta) * after.sigma**2 * x) / now.sigma**2
            x = x + math.sqrt(beta) * noise(now.number)
            yield State(after.t, x)


class ShiftedPath(VPLinear):
    """alpha_bar of step t + 1 at step t, as when a table that starts with the data is read like one that does not."""

    def alpha_bar(self, t: Tensor) -> Tensor:
        return super().alpha_bar((t + 1).clamp(max=self.T - 1))


class AlphaBarOffByOne(DDIM):
    def _walk(self, denoiser: Denoiser, path: Any, x: Tensor, noise: NoiseSource, start: float) -> Iterator[State]:
        return super()._walk(denoiser, ShiftedPath(), x, noise, start)


class UnscaledEps(DDIM):
    """The image is taken for x - sigma eps, as if x had not been scaled by alpha."""

    def _walk(self, denoiser: Denoiser, path: Any, x: Tensor, noise: NoiseSource, start: float) -> Iterator[State]:
        for now, after in self.pairs(path):
            eps = denoiser(x, now.times(x)).eps
            x = after.alpha * (x - now.sigma * eps) + after.sigma * eps
            yield State(after.t, x)


class SigmaWithoutRoot(DDIM):
    """Eq. 16's variance where its square root belongs."""

    def _walk(self, denoiser: Denoiser, path: Any, x: Tensor, noise: NoiseSource, start: float) -> Iterator[State]:
        for now, after in self.pairs(path):
            prediction = denoiser(x, now.times(x))
            std = self.eta * posterior_std(now, after) ** 2
            x = after.alpha * prediction.x0 + math.sqrt(after.sigma**2 - std**2) * prediction.eps
            x = x + std * noise(now.number)
            yield State(after.t, x)


class ClipAfterTheMean(Ancestral):
    """The predicted image is clipped when the mean has been taken of it, which is as good as not clipped."""

    def trajectory(
        self, denoiser: Denoiser, path: GaussianPath, x: Tensor, noise: NoiseSource, start: float | None = None
    ) -> Iterator[State]:
        unclipped = Ancestral.model_validate(self.model_dump() | {"clip": "none"})
        return unclipped.trajectory(denoiser, path, x, noise, start)


LAWS: list[tuple[Callable[[Any], bool], Any, type[Any]]] = [
    (ends_in_the_only_image, Ancestral(steps=10, variance="fixed_small", clip="none"), NoiseOnTheLastStep),
    (keeps_unit_variance, Ancestral(steps=10, variance="fixed_large", clip="none"), BetasOfSingleSteps),
    (follows_the_path, DDIM(steps=10, eta=0, clip="none"), AlphaBarOffByOne),
    (follows_the_path, DDIM(steps=10, eta=0, clip="none"), UnscaledEps),
    (equals_ancestral_sampling, DDIM(steps=10, eta=1, clip="none"), SigmaWithoutRoot),
    (stays_in_range, Ancestral(steps=10, clip="x0"), ClipAfterTheMean),
]
each_law = pytest.mark.parametrize(
    ("law", "sampler", "mistake"), LAWS, ids=[f"{law.__name__}-{mistake.__name__}" for law, _, mistake in LAWS]
)


@each_law
@pytest.mark.parametrize("grid", GRIDS)
def test_sampler_obeys_its_law(law: Callable[[Any], bool], sampler: Any, mistake: type[Any], grid: str) -> None:
    assert law(sampler.model_copy(update={"grid": grid})), mistake


@each_law
@pytest.mark.parametrize("grid", GRIDS)
def test_known_mistake_breaks_the_law(law: Callable[[Any], bool], sampler: Any, mistake: type[Any], grid: str) -> None:
    assert not law(mistake.model_validate(sampler.model_dump() | {"grid": grid}))


# Samplers that are the same: on every path and grid that both admit.


def pairs_of_twins() -> list[Any]:
    small = Ancestral(clip="none", variance="fixed_small")
    twins = [
        ("ddim eta 1 is ancestral", DDIM(clip="none", eta=1), small),
        ("no langevin steps is ancestral", PredictorCorrector(clip="none", corrector_steps=0), small),
        ("ddim is euler", DDIM(clip="none"), Euler(clip="none")),
        ("clipped ddim is clipped euler", DDIM(clip="x0_and_eps"), Euler(clip="x0_and_eps")),
        ("dynamic ddim is dynamic euler", DDIM(clip="dynamic_and_eps"), Euler(clip="dynamic_and_eps")),
    ]
    return [pytest.param(one, other, id=name.replace(" ", "-")) for name, one, other in twins]


@pytest.mark.parametrize("path", PATHS, ids=name_of)
@pytest.mark.parametrize(("one", "other"), pairs_of_twins())
def test_twins_visit_the_same_states(one: Any, other: Any, path: Any) -> None:
    for grid in GRIDS:
        for steps in (1, 7):
            a, b = (each.model_copy(update={"grid": grid, "steps": steps}) for each in (one, other))
            if admits(a, path):
                x, noise = seeded(torch.arange(2), SHAPE, path.prior_std(a.start(path)))
                assert same_states(a, b, path, x, noise), (grid, steps)


@settings(max_examples=60)
@given(
    path=st.sampled_from([path for path in PATHS if path.kind.startswith("vp") and not path.loses_image]),
    grid=st.sampled_from(GRIDS),
    steps=st.integers(1, 30),
    seed=st.integers(0, 2**20),
)
def test_vp_ddim_is_euler_in_the_space_of_sigma(path: Any, grid: Any, steps: int, seed: int) -> None:
    """With y = x / alpha and s = sigma / alpha: dy = eps ds (Song et al. 2021, eq. 13). To 1e-12 of the size of x.

    On vp_cosine y begins with x / 5e-5, whose last digits stay behind when the large terms have cancelled; there the
    size is that of the largest term so far.
    """
    sampler, denoiser = DDIM(steps=steps, grid=grid, clip="none"), WavyDenoiser(path)
    assume(admits(sampler, path))
    x, _ = seeded(torch.tensor([seed]), SHAPE)
    begun = path.at(sampler.start(path))[0]
    y, largest = x / begun, 1.0
    states = run(sampler, denoiser, path, x, no_noise)
    for (now, after), state in zip(sampler.pairs(path), states, strict=True):
        eps = denoiser(now.alpha * y, now.times(y)).eps
        terms = after.alpha * float(y.abs().max())
        largest = max(largest, terms) if begun < 1e-3 else max(1.0, float(state.x.abs().max()))
        y = y + (after.sigma / after.alpha - now.sigma / now.alpha) * eps
        torch.testing.assert_close(state.x, after.alpha * y, rtol=0, atol=1e-12 * largest)


@pytest.mark.parametrize("member", [DPMSolverPP, UniPC])
def test_a_single_lambda_step_is_ddim(member: Any) -> None:
    """Solvers that extrapolate have nothing to extrapolate from in their first step."""
    path = EDMPath()
    x, noise = seeded(torch.arange(2), SHAPE, 80.0)
    solver, ddim = (each(steps=6, grid="karras", clip="none") for each in (member, DDIM))
    first, expected = (run(each, WavyDenoiser(path), path, x, noise)[0] for each in (solver, ddim))
    torch.testing.assert_close(first.x, expected.x, rtol=1e-12, atol=1e-12)


def test_every_step_but_the_last_draws_its_own_noise() -> None:
    for sampler in (DDIM(steps=10, eta=0.5), Ancestral(steps=10), DPMSolverPP(steps=10, variant="2m_sde")):
        drawn: list[int] = []

        def noise(step: int, drawn: list[int] = drawn) -> Tensor:
            drawn.append(step)
            return torch.randn(2, *SHAPE)

        run(sampler, WavyDenoiser(PATH), PATH, torch.randn(2, *SHAPE), noise)
        assert drawn == list(range(9))


def test_a_sampler_without_a_step_of_its_own_cannot_walk() -> None:
    """Some state a `_walk` that needs none: so the base cannot ask for `_step`, and says when used that it lacks."""

    class Idle(GridSampler):
        kind: Literal["idle"] = "idle"
        order: ClassVar[int] = 1

    with pytest.raises(NotImplementedError):
        images(Idle(steps=2), only_image(PATH, SHAPE, 0.3), PATH, *seeded(torch.arange(3), SHAPE))
