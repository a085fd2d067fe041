"""What every sampler owes: shapes, independence of the images of a batch, evaluations as declared, the right images.

All of it walks over the members of the Sampler union with all their settings, so a new sampler is tested as it is.
"""

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model import (
    RK45,
    DPMSolverPP,
    EDMPath,
    Euler,
    GaussianPath,
    Heun,
    ModelSpec,
    Prediction,
    PredictorCorrector,
    RectifiedFlow,
    TrainedModel,
    UniPC,
    VPLinear,
    time_grid,
    trajectory,
)
from model.clipping import Clip
from model.ddpm_unet import DDPMUNet
from model.denoiser import Denoiser, coefficients
from model.sampler import NoiseSource

from .analytic import (
    PATHS,
    SAMPLERS,
    ConstantDenoiser,
    Counting,
    WavyDenoiser,
    adds_noise,
    admits,
    admitted,
    exact_moments,
    images,
    name_of,
    neighbours,
    no_noise,
    only_image,
    run,
    seeded,
    two_humps,
    two_pixels,
    variants,
)

PATH = VPLinear()
SHAPE = (2, 3, 4)
STEPS = 7
EVERY = variants(steps=STEPS, rtol=1e-3, atol=1e-3)
STEPPING = [sampler for sampler in EVERY if not isinstance(sampler, RK45)]
every_sampler = pytest.mark.parametrize("sampler", EVERY, ids=name_of)


def wavy_images(sampler: Any, seeds: Tensor) -> Tensor:
    return images(sampler, WavyDenoiser(PATH), PATH, *seeded(seeds, SHAPE))


@every_sampler
def test_states_fall_to_the_data_one_a_step_and_all_finite(sampler: Any) -> None:
    x, noise = seeded(torch.arange(5), SHAPE)
    states = run(sampler, WavyDenoiser(PATH), PATH, x, noise)
    times = [sampler.start(PATH), *(state.t for state in states)]
    assert times == sorted(times, reverse=True)
    assert times[-1] == PATH.t_data
    assert all(state.x.shape == x.shape and state.x.isfinite().all() for state in states)
    assert isinstance(sampler, RK45) or times[:-1] == time_grid(sampler.grid, PATH, STEPS)


@every_sampler
def test_same_seeds_give_the_same_states_bitwise(sampler: Any) -> None:
    first, second = (run(sampler, WavyDenoiser(PATH), PATH, *seeded(torch.arange(3), SHAPE)) for _ in range(2))
    assert all(torch.equal(a.x, b.x) for a, b in zip(first, second, strict=True))


@every_sampler
def test_an_image_does_not_depend_on_its_batch(sampler: Any) -> None:
    together = wavy_images(sampler, torch.arange(3))
    alone = torch.cat([wavy_images(sampler, torch.tensor([seed])) for seed in range(3)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-12)


@settings(max_examples=30)
@given(st.sampled_from(EVERY), st.permutations(range(5)), st.integers(1, 5))
def test_an_image_depends_on_its_seed_alone(sampler: Any, order: list[int], cut: int) -> None:
    """Neither on its place in the batch nor on how many there are."""
    together = wavy_images(sampler, torch.arange(5))
    parts = [wavy_images(sampler, torch.tensor(part)) for part in (order[:cut], order[cut:]) if part]
    torch.testing.assert_close(torch.cat(parts), together[order], rtol=0, atol=1e-12)


@every_sampler
def test_initial_noise_is_left_as_it_was(sampler: Any) -> None:
    x, noise = seeded(torch.arange(2), SHAPE)
    before = x.clone()
    run(sampler, WavyDenoiser(PATH), PATH, x, noise)
    assert torch.equal(x, before)


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_network_is_called_as_often_as_declared_and_at_the_grids_times(path: Any) -> None:
    """Once or more at each, falling, the same for all images; some ask in between, and churn asks before."""
    for sampler in variants(path, steps=STEPS, rtol=1e-3, atol=1e-3):
        counting, declared = Counting(WavyDenoiser(path)), sampler.evaluations(path)
        run(sampler, counting, path, *seeded(torch.arange(3), (1, 1, 2), path.prior_std(sampler.start(path))))
        assert all(t.shape == (3,) and t.dtype == torch.float64 for t in counting.times)
        if isinstance(sampler, RK45):
            assert declared is None
            assert all(((path.t_min <= t) & (t <= path.t_max)).all() for t in counting.times)
            continue
        assert declared == len(counting.times), name_of(sampler)
        assert all((t == t[0]).all() for t in counting.times)
        if not sampler.model_dump().get("s_churn"):
            seen, grid = [float(t[0]) for t in counting.times], time_grid(sampler.grid, path, STEPS)
            assert set(grid) <= set(seen), name_of(sampler)
            assert seen == sorted(seen, reverse=True), name_of(sampler)
            assert declared != STEPS or seen == grid, name_of(sampler)


@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_images_that_are_all_the_same_are_reproduced_exactly(sampler: Any, steps: int) -> None:
    """The ideal denoiser then knows x0 from any x_t, so any number of steps ends in it, and without noise on top."""
    if not isinstance(sampler, RK45):
        sampler = sampler.model_copy(update={"steps": steps})
    if not admits(sampler, PATH):
        return  # quadratic_paper of 50 steps: some twice
    image = images(sampler, only_image(PATH, SHAPE, 0.3), PATH, *seeded(torch.arange(2), SHAPE))
    torch.testing.assert_close(image, torch.full_like(image, 0.3), rtol=0, atol=1e-9)


@every_sampler
def test_float32_and_float64_agree(sampler: Any) -> None:
    x, noise = seeded(torch.arange(5), (1, 2, 3))
    double = images(sampler, neighbours(PATH), PATH, x, noise)
    single = images(sampler, neighbours(PATH), PATH, x.float(), lambda step: noise(step).float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-4)


def draws_asked(sampler: Any, path: Any) -> list[int]:
    asked: list[int] = []
    x, noise = seeded(torch.arange(2), SHAPE, path.prior_std(sampler.start(path)))

    def asking(step: int) -> Tensor:
        asked.append(step)
        return noise(step)

    run(sampler, WavyDenoiser(path), path, x, asking)
    return asked


@every_sampler
def test_no_draw_of_noise_is_used_twice(sampler: Any) -> None:
    asked = draws_asked(sampler, PATH)
    assert sorted(set(asked)) == asked
    assert all(0 <= step < 2**24 for step in asked)  # what `random.words` has room for


@pytest.mark.parametrize("member", SAMPLERS, ids=lambda member: member.model_fields["kind"].default)
def test_samplers_whose_noise_is_off_draw_none(member: Any) -> None:
    deterministic = {"ddim", "euler", "heun", "dpm_solver_pp", "unipc", "rk45"}
    sampler = member()
    assert adds_noise(sampler, PATH) == (sampler.kind not in deterministic)


# Distributions: mean and covariance of many images, in standard errors.

FAMILIES = [path for path in PATHS if path.kind not in ("vp_cosine", "vp_sigmoid", "vp_scaled_linear")]
"""One path of T steps stands for all; the continuous ones are each different."""
UNBIASED = variants(
    clip="none",
    steps=STEPS,
    grid="uniform",
    s_noise=1.0,
    s_min=0.0,
    s_max=None,
    rtol=1e-4,
    atol=1e-4,
)
"""At settings that promise the right distribution."""


def fresh_noise(shape: tuple[int, ...]) -> tuple[Tensor, NoiseSource]:
    """Initial noise and draws of torch's own generator, many times faster than seeded ones."""
    generator = torch.Generator().manual_seed(0)
    return (x := torch.randn(shape, generator=generator, dtype=torch.float64)), lambda _: torch.randn(
        x.shape, generator=generator, dtype=torch.float64
    )


def standard_errors(x: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """Largest deviation of the sampled mean and covariance, along the axes in which they would be 0 and 1."""
    N, one = len(x), torch.eye(len(mean), dtype=torch.float64)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (x.flatten(1) - mean).T, upper=False)
    of_mean = white.mean(1).abs().max() * math.sqrt(N)
    of_covariance = ((white @ white.T / N - one) / (1 + one).sqrt()).abs().max() * math.sqrt(N)
    return float(torch.maximum(of_mean, of_covariance))


@pytest.mark.parametrize(("sampler", "path"), admitted(UNBIASED, FAMILIES))
def test_sampled_mean_and_covariance_are_those_of_the_images(sampler: Any, path: Any) -> None:
    """Of pixels that vary together. Within four standard errors of what 1,000 images can tell."""
    denoiser = neighbours(path)
    if not isinstance(sampler, RK45):
        grid, steps = "quadratic" if path.loses_image else "lambda_uniform", 300 if sampler.order == 1 else 100
        sampler = sampler.model_copy(update={"grid": grid, "steps": steps})
    x, noise = fresh_noise((1000, 1, 2, 3))
    drawn = images(sampler, denoiser, path, path.prior_std(sampler.start(path)) * x, noise)
    assert standard_errors(drawn, denoiser.mean.flatten(), denoiser.covariance) < 4


class EpsNetwork(nn.Module):
    """A denoiser in a network's clothes, for target eps on a path of T steps, where it is told t itself."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.denoiser(x_t, t.double()).eps


AFFINE = [
    sampler for sampler in variants(PATH, clip="none", steps=50, corrector_steps=0) if not isinstance(sampler, RK45)
]


@pytest.mark.parametrize("sampler", AFFINE, ids=name_of)
def test_drawn_images_have_the_samplers_exact_moments(sampler: Any) -> None:
    """Within four standard errors. Noise that repeated itself between steps, pixels or images would show here."""
    denoiser = two_pixels(PATH)
    _, mean, covariance = exact_moments(sampler, denoiser, lambda _: standard_normal(2))[-1]
    spec = ModelSpec(image_size=2, channels=1, network=DDPMUNet(), path=PATH)
    for state in trajectory(TrainedModel(spec, EpsNetwork(EachRow(denoiser))), sampler, torch.arange(1000)):
        last = state.x.double()
    assert standard_errors(last.view(-1, 1, 1, 2), mean, covariance) < 4


class EachRow:
    """Takes every row of two pixels for an image of its own."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        rows = self.denoiser(x_t.reshape(-1, 1, 1, 2), t.repeat_interleave(x_t.shape[2]))
        return Prediction(rows.x0.view_as(x_t), rows.eps.view_as(x_t))


def standard_normal(D: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64)


@pytest.mark.parametrize("snr", [0.16, 0.3, 0.5])
def test_langevin_steps_settle_where_theory_says(snr: float) -> None:
    """For x_t of pixels N(m, v) the unadjusted chain of step 2 (snr sigma)^2 has mean m and variance
    v / (1 - snr^2 sigma^2 / v).
    """
    path = EDMPath(sigma_max=1.0)
    counting, (x, noise) = Counting(IndependentPixels(path, mean=0.3, std=0.5)), fresh_noise((8, 1, 64, 64))
    run(
        PredictorCorrector(steps=1, corrector_steps=int(12 / snr**2), snr=snr, clip="none"),
        counting,
        path,
        2 * x,
        noise,
    )
    settled, n = counting.states[-1], x.numel()
    variance = 1.25 / (1 - snr**2 / 1.25)
    assert abs(float(settled.mean()) - 0.3) < 4 * math.sqrt(variance / n)
    assert abs(float(settled.var()) / variance - 1) < 4 * math.sqrt(2 / n)


class IndependentPixels:
    """E[x0 | x_t] of pixels that are each N(mean, std^2), however many there are."""

    def __init__(self, path: GaussianPath, mean: float, std: float) -> None:
        self.path, self.mean, self.std = path, mean, std

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = coefficients(self.path, t, x_t)
        off = (x_t - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
        return Prediction(self.mean + alpha * self.std**2 * off, sigma * off)


# What single samplers refuse and allow.


def test_more_steps_than_the_path_has_are_refused() -> None:
    for sampler in STEPPING:
        with pytest.raises(ValueError, match="a path of T = 5 steps has no grid of 7; ask for 1 to 5 steps"):
            run(sampler, WavyDenoiser(VPLinear(T=5)), VPLinear(T=5), *seeded(torch.arange(2), SHAPE))


@pytest.mark.parametrize("member", [DPMSolverPP, UniPC])
def test_multistep_samplers_refuse_a_grid_that_repeats_itself(member: Any) -> None:
    with pytest.raises(ValueError, match=r"grid quadratic_paper visits some of its 50 times twice, .*use quadratic"):
        member(steps=50, grid="quadratic_paper").check(PATH)


@pytest.mark.parametrize("member", [Euler, Heun])
def test_churn_is_refused_where_the_image_is_lost(member: Any) -> None:
    with pytest.raises(ValueError, match=r"s_churn raises sigma / alpha, which is infinite .*set it to 0"):
        member(s_churn=1.0, grid="uniform").check(RectifiedFlow())


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("path", [RectifiedFlow(), VPLinear(zero_terminal_snr=True)], ids=name_of)
def test_2s_takes_steps_from_and_to_infinity_at_one_evaluation(path: Any, steps: int) -> None:
    """There is no half way in lambda; the images are those of `only_image` all the same."""
    sampler, counting = DPMSolverPP(variant="2s", steps=steps), Counting(only_image(path, SHAPE, 0.3))
    image = images(sampler, counting, path, *seeded(torch.arange(3), SHAPE))
    assert sampler.evaluations(path) == len(counting.times) == (1 if steps == 1 else 2 * steps - 2)
    torch.testing.assert_close(image, torch.full_like(image, 0.3), rtol=0, atol=1e-9)


# RK45: its steps adapt to each image, so what others get from a grid must be shown of it.


def test_rk45_gives_each_image_its_own_steps() -> None:
    """A hard image, far out, does not change what an easy one comes out as."""
    denoiser, sampler = two_humps(PATH), RK45(clip="none")
    easy, hard = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (0.1, 400.0))
    counts = []
    for x in (easy, hard, torch.cat((easy, hard))):
        counting = Counting(denoiser)
        states = run(sampler, counting, PATH, x, no_noise)
        counts.append(len(counting.times))
    alone = images(sampler, denoiser, PATH, easy, no_noise)
    assert counts[0] != counts[1]
    assert counts[2] == max(counts)
    torch.testing.assert_close(states[-1].x[:1], alone, rtol=0, atol=1e-12)


def test_rk45_stops_at_images_that_are_not_finite() -> None:
    def nan(x_t: Tensor, t: Tensor) -> Prediction:  # noqa: ARG001
        return Prediction(x_t * math.nan, x_t * math.nan)

    with pytest.raises(FloatingPointError, match=r"rk45: steps became too small or images not finite after t = 999"):
        run(RK45(clip="none"), nan, PATH, torch.zeros(2, *SHAPE).double(), no_noise)


def test_rk45_gives_up_on_steps_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.probability_flow._MOST_TRIES", 20)
    with pytest.raises(FloatingPointError, match="rk45: steps became too small or images not finite after t = "):
        run(RK45(rtol=1e-12, atol=1e-12), WavyDenoiser(PATH), PATH, *seeded(torch.arange(2), SHAPE))


# Clipping, which test_clipping.py tests by itself: that samplers obey it.


def clip_cases() -> list[Any]:
    cases = []
    for member in SAMPLERS:
        for clip in get_args(Clip):
            sampler = member(clip=clip) if member is RK45 else member(clip=clip, steps=10)
            if clip != "none":
                cases.append(pytest.param(sampler, id=name_of(sampler)))
    return cases


@pytest.mark.parametrize("sampler", clip_cases())
def test_clipped_images_end_in_range(sampler: Any) -> None:
    x, noise = seeded(torch.arange(3), SHAPE)
    assert images(sampler, ConstantDenoiser(PATH, 20.0), PATH, x, noise).abs().max() <= 1 + 1e-9


@pytest.mark.parametrize("member", SAMPLERS, ids=lambda member: member.model_fields["kind"].default)
def test_unclipped_images_end_out_of_range(member: Any) -> None:
    sampler = member(clip="none") if member is RK45 else member(clip="none", steps=10)
    x, noise = seeded(torch.arange(3), SHAPE)
    assert images(sampler, ConstantDenoiser(PATH, 20.0), PATH, x, noise).abs().max() > 2
