"""Samplers that start in the middle: from x_t of an image, at any time of the path."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from model import (
    DDIM,
    RK45,
    Ancestral,
    DPMSolverPP,
    EDMPath,
    PredictorCorrector,
    RectifiedFlow,
    State,
    UniPC,
    VPLinear,
    time_grid,
)

from .analytic import (
    PATHS,
    Counting,
    GaussianDenoiser,
    WavyDenoiser,
    admitted,
    name_of,
    neighbours,
    no_noise,
    run,
    seeded,
    variants,
)

PATH = VPLinear()
SHAPE = (2, 3, 4)
STEPS = 7
EVERY = [each for each in variants(steps=STEPS, rtol=1e-3, atol=1e-3) if getattr(each, "variance", "") != "learned"]
WITHOUT_MEMORY = [sampler for sampler in EVERY if not isinstance(sampler, RK45 | DPMSolverPP | UniPC)]
every_sampler = pytest.mark.parametrize("sampler", EVERY, ids=name_of)


def states_from(sampler: Any, x: Tensor, noise: Any, start: float | None) -> list[State]:
    return list(sampler.trajectory(WavyDenoiser(PATH), PATH, x, noise, start))


@every_sampler
def test_the_noisiest_start_is_the_whole_way(sampler: Any) -> None:
    x, noise = seeded(torch.arange(3), SHAPE)
    whole, started = (states_from(sampler, x, noise, start) for start in (None, sampler.start(PATH)))
    assert all(a.t == b.t and torch.equal(a.x, b.x) for a, b in zip(whole, started, strict=True))


@pytest.mark.parametrize("sampler", WITHOUT_MEMORY, ids=name_of)
def test_from_a_state_of_the_whole_way_on_all_is_the_same(sampler: Any) -> None:
    """Bit for bit, also of samplers that add noise: each step draws what it would have drawn."""
    x, noise = seeded(torch.arange(3), SHAPE)
    whole = states_from(sampler, x, noise, None)
    for step in (1, 4, STEPS - 1):
        if whole[step - 1].t > whole[step].t:  # quadratic_paper has some times twice
            rest = states_from(sampler, whole[step - 1].x, noise, whole[step - 1].t)
            assert all(torch.equal(a.x, b.x) for a, b in zip(whole[step:], rest, strict=True)), step


def test_noise_numbered_from_the_start_would_be_another() -> None:
    x, noise = seeded(torch.arange(3), SHAPE)
    whole = states_from(Ancestral(steps=STEPS), x, noise, None)
    renumbered = states_from(Ancestral(steps=STEPS), whole[2].x, lambda step: noise(step - 3), whole[2].t)
    assert not torch.allclose(renumbered[-1].x, whole[-1].x)


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_between_two_points_the_start_takes_the_noisier_ones_place(path: Any) -> None:
    sampler = DDIM(steps=STEPS, grid="uniform")
    whole = sampler.points(path)
    start = (whole[2].t + whole[3].t) / 2
    points = sampler.points(path, start)
    assert points[1:] == whole[3:]
    assert (points[0].number, points[0].t) == (2, start)
    assert (points[0].alpha, points[0].sigma) == pytest.approx(path.at(start), rel=1e-14)


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_rounding_does_not_make_a_point_of_its_own(path: Any) -> None:
    sampler = DDIM(steps=STEPS, grid="uniform")
    t = sampler.points(path)[3].t
    for start in (t, math.nextafter(t, math.inf), math.nextafter(t, -math.inf)):
        assert sampler.points(path, start) == sampler.points(path)[3:]


def test_from_below_the_cleanest_point_it_is_one_step_to_the_data() -> None:
    sampler, counting = DDIM(steps=STEPS, grid="uniform"), Counting(WavyDenoiser(PATH))
    assert time_grid("uniform", PATH, STEPS)[-1] == 141
    states = list(sampler.trajectory(counting, PATH, *seeded(torch.arange(2), SHAPE), 0.0))
    assert [float(t[0]) for t in counting.times] == [0.0]
    assert [t for t, _ in states] == [-1.0]


@every_sampler
def test_a_start_outside_of_the_way_is_refused(sampler: Any) -> None:
    noisiest = sampler.start(PATH)
    for start in (noisiest + 1, -1.0, math.nan):
        with pytest.raises(ValueError, match=rf"start .* is none of this sampler's times .* 0 to {noisiest:g}"):
            states_from(sampler, *seeded(torch.arange(2), SHAPE), start)


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_rk45_solves_the_ode_from_any_time(path: Any) -> None:
    denoiser, sampler = neighbours(path), RK45(clip="none", rtol=1e-5, atol=1e-5)
    start = float(path.training_time(torch.tensor(0.6).double()))
    x = path.at(start)[1] * seeded(torch.arange(5), (1, 2, 3))[0]
    *_, arrived, _ = run_from(sampler, denoiser, x, start)
    torch.testing.assert_close(arrived.x, denoiser.solution(x, start, path.t_min), rtol=0, atol=1e-3)


def run_from(sampler: Any, denoiser: GaussianDenoiser, x: Tensor, start: float) -> list[State]:
    return list(sampler.trajectory(denoiser, denoiser.path, x, no_noise, start))


UNBIASED = [
    sampler
    for sampler in variants(clip="none", steps=STEPS, grid="uniform", s_noise=1.0, s_min=0.0, s_max=None, snr=0.1)
    if getattr(sampler, "variance", "") != "learned"
]
FAMILIES = [VPLinear(), EDMPath(), RectifiedFlow()]


@pytest.mark.parametrize(("sampler", "path"), admitted(UNBIASED, FAMILIES))
def test_images_half_noised_and_denoised_have_the_distribution_of_the_images(sampler: Any, path: Any) -> None:
    """x_t of images has the marginal p_t, which the sampler carries back to theirs. Within four standard errors."""
    generator = torch.Generator().manual_seed(0)

    def noise(_: int) -> Tensor:
        return torch.randn(1000, 1, 2, 3, generator=generator, dtype=torch.float64)

    denoiser = neighbours(path)
    root = torch.linalg.cholesky(denoiser.covariance)
    x0 = denoiser.mean + (noise(0).flatten(1) @ root.T).view(-1, 1, 2, 3)
    if not isinstance(sampler, RK45):
        grid, steps = "quadratic" if path.loses_image else "lambda_uniform", 300 if sampler.order == 1 else 100
        sampler = sampler.model_copy(update={"grid": grid, "steps": steps})
    start = min(float(path.training_time(torch.tensor(0.5).double())), sampler.start(path))
    alpha, sigma = path.at(start)
    *_, (_, drawn) = sampler.trajectory(denoiser, path, alpha * x0 + sigma * noise(0), noise, start)
    white = torch.linalg.solve_triangular(root, (drawn - denoiser.mean).flatten(1).T, upper=False)
    one = torch.eye(6, dtype=torch.float64)
    assert white.mean(1).abs().max() * math.sqrt(1000) < 4
    assert ((white @ white.T / 1000 - one) / (1 + one).sqrt()).abs().max() * math.sqrt(1000) < 4


def test_declared_evaluations_are_of_the_whole_way() -> None:
    """From the middle there are fewer: what is asked from there on."""
    sampler, counting = PredictorCorrector(steps=10, grid="uniform"), Counting(WavyDenoiser(PATH))
    list(sampler.trajectory(counting, PATH, *seeded(torch.arange(2), SHAPE), 499.0))
    assert (len(counting.times), sampler.evaluations(PATH)) == (10, 20)
    assert run(sampler, WavyDenoiser(PATH), PATH, *seeded(torch.arange(2), SHAPE))
