"""What every sampler owes: shapes, independence of the images of a batch, and the right distribution in the limit.

All of it walks over the members of the Sampler union with all their settings, so a new sampler is tested as it is.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from model import DDIM, EpsDenoiser, ModelSpec, VPCosine, VPLinear, time_grid, trajectory
from model.ddpm_unet import DDPMUNet

from .analytic import IdealNetwork, WavyNetwork, exact_moments, name_of, run, seeded, variants

PATH = VPLinear()
SHAPE = (2, 3, 4)
STEPS = 7
every_sampler = pytest.mark.parametrize("sampler", variants(steps=STEPS), ids=name_of)


@every_sampler
def test_one_state_a_step_all_finite(sampler: Any) -> None:
    x, noise = seeded(torch.arange(5), SHAPE)
    states = run(sampler, WavyNetwork(PATH), PATH, x, noise)
    assert len(states) == STEPS
    assert all(state.shape == x.shape and state.isfinite().all() for state in states)


@every_sampler
def test_same_seeds_give_the_same_states_bitwise(sampler: Any) -> None:
    first, second = (run(sampler, WavyNetwork(PATH), PATH, *seeded(torch.arange(5), SHAPE)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_sampler
def test_permuting_the_batch_permutes_the_images(sampler: Any) -> None:
    seeds = torch.tensor([3, 0, 4, 1, 2])
    permuted = run(sampler, WavyNetwork(PATH), PATH, *seeded(seeds, SHAPE))[-1]
    together = run(sampler, WavyNetwork(PATH), PATH, *seeded(torch.arange(5), SHAPE))[-1]
    torch.testing.assert_close(permuted, together[seeds], rtol=0, atol=1e-12)


@every_sampler
def test_an_image_does_not_depend_on_its_batch(sampler: Any) -> None:
    together = run(sampler, WavyNetwork(PATH), PATH, *seeded(torch.arange(5), SHAPE))[-1]
    alone = [run(sampler, WavyNetwork(PATH), PATH, *seeded(torch.tensor([seed]), SHAPE))[-1] for seed in range(5)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-12)


@every_sampler
def test_initial_noise_is_left_as_it_was(sampler: Any) -> None:
    x, noise = seeded(torch.arange(2), SHAPE)
    before = x.clone()
    run(sampler, WavyNetwork(PATH), PATH, x, noise)
    assert torch.equal(x, before)


@every_sampler
def test_network_sees_the_times_of_the_grid_and_nothing_else(sampler: Any) -> None:
    seen: list[torch.Tensor] = []

    class Spy(WavyNetwork):
        def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            seen.append(t)
            return super().forward(x_t, t)

    run(sampler, Spy(PATH), PATH, *seeded(torch.arange(3), SHAPE))
    assert [t.tolist() for t in seen] == [[t] * 3 for t in time_grid(sampler.grid, PATH.T, STEPS)]
    assert {t.dtype for t in seen} == {torch.int64}


@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_images_that_are_all_the_same_are_reproduced_exactly(sampler: Any, steps: int) -> None:
    """The ideal network then knows x0 from any x_t, so any number of steps ends in it, and without noise on top."""
    sampler = sampler.model_copy(update={"steps": steps})
    image = run(sampler, IdealNetwork(PATH, mean=0.3, std=0), PATH, *seeded(torch.arange(4), SHAPE))[-1]
    torch.testing.assert_close(image, torch.full_like(image, 0.3), rtol=0, atol=1e-9)


@every_sampler
def test_gaussian_images_are_approached_with_more_steps(sampler: Any) -> None:
    network = IdealNetwork(PATH, mean=0.2, std=0.5)

    def error(steps: int) -> float:
        _, variance = exact_moments(sampler.model_copy(update={"steps": steps}), network, PATH)[-1]
        return abs(variance / 0.25 - 1)

    assert error(320) < 0.05
    assert error(320) < error(40) / 4


@every_sampler
def test_mean_of_gaussian_images_is_right(sampler: Any) -> None:
    """But for alpha(T - 1) = 0.006 of the mean, which sampling from pure noise leaves out."""
    sampler = sampler.model_copy(update={"steps": 50})
    mean, _ = exact_moments(sampler, IdealNetwork(PATH, mean=0.2, std=0.5), PATH)[-1]
    assert mean == pytest.approx(0.2, abs=0.007 * 0.2)


@dataclass(frozen=True)
class DrawnMoments:
    mean: float
    variance: float
    n: int


def drawn_moments(sampler: Any, mean: float, std: float) -> DrawnMoments:
    """Of 4,096 pixels that `trajectory` draws by its own noise."""
    spec = ModelSpec(image_size=8, channels=1, network=DDPMUNet(), path=PATH)
    for x in trajectory(spec, sampler, IdealNetwork(PATH, mean, std), torch.arange(64)):
        last = x.double()
    return DrawnMoments(last.mean().item(), last.var().item(), last.numel())


@pytest.mark.parametrize("sampler", variants(steps=250), ids=name_of)
def test_drawn_gaussian_images_have_the_exact_moments(sampler: Any) -> None:
    """Within four standard errors. Noise that repeated itself between steps or images would show here."""
    drawn = drawn_moments(sampler, mean=0.2, std=0.15)
    mean, variance = exact_moments(sampler, IdealNetwork(PATH, mean=0.2, std=0.15), PATH)[-1]
    assert abs(drawn.mean - mean) < 4 * (variance / drawn.n) ** 0.5
    assert abs(drawn.variance / variance - 1) < 4 * (2 / drawn.n) ** 0.5


@pytest.mark.parametrize("path", [VPLinear(), VPCosine()], ids=lambda path: path.kind)
@pytest.mark.parametrize("grid", ["uniform", "quadratic"])
def test_ddim_is_of_first_order(path: Any, grid: Any) -> None:
    """Twice the steps, half the error, against the closed solution of the ODE: x = mean + std (x_T - alpha mean) / s_T,
    where s_T^2 = alpha^2 std^2 + sigma^2.
    """
    mean, std, start = 0.2, 0.5, torch.full((1, 1, 1, 1), 1.3, dtype=torch.float64)
    T = torch.tensor(path.T - 1)
    spread = (path.alpha(T) ** 2 * std**2 + path.sigma(T) ** 2).sqrt()
    solution = mean + std * (start - path.alpha(T) * mean) / spread

    def error(steps: int) -> float:
        sampler = DDIM(steps=steps, grid=grid, clip="none")
        states = sampler.trajectory(EpsDenoiser(IdealNetwork(path, mean, std), path), path, start, lambda _: start)
        return (list(states)[-1] - solution).abs().item()

    for steps in (20, 40):
        assert 1.8 < error(steps) / error(2 * steps) < 2.2


@every_sampler
def test_float32_and_float64_agree(sampler: Any) -> None:
    x, noise = seeded(torch.arange(5), SHAPE)
    double = run(sampler, IdealNetwork(PATH, 0.2, 0.5), PATH, x, noise)[-1]
    single = run(sampler, IdealNetwork(PATH, 0.2, 0.5), PATH, x.float(), lambda step: noise(step).float())[-1]
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


@every_sampler
def test_more_steps_than_the_path_has_are_refused(sampler: Any) -> None:
    with pytest.raises(ValueError, match="a path of T = 5 steps has no grid of 7; ask for 1 to 5 steps"):
        run(sampler, WavyNetwork(VPLinear(T=5)), VPLinear(T=5), *seeded(torch.arange(2), SHAPE))
