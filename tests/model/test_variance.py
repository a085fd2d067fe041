"""A learned variance lies between the posterior's and beta, and its loss teaches the variance and nothing else."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model import (
    Ancestral,
    ClassifierFreeGuidance,
    DDPMUNet,
    Eps,
    LearnedRange,
    ModelSpec,
    NetworkDenoiser,
    Prediction,
    Simple,
    TrainedModel,
    VPCosine,
    VPLinear,
    bound_term,
    denoising_loss,
    generate,
)
from model.clipping import clipped
from model.targets import V

from .unions import PATHS, admits, name_of

PATH = VPLinear()
SMALL = DDPMUNet(base_channels=16, channel_multipliers=(1,), blocks_per_level=1, attention_sizes=(), dropout=0)


class WithShare:
    """Predicts half of x_t as the image, and this share of log(beta)."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        return Prediction(x_t / 2, x_t / 2, torch.full_like(x_t, self.share))


def drawn(variance: str, share: float = 0.5, steps: int = 10) -> Tensor:
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).view(1, 1, 2, 3)
    sampler = Ancestral(steps=steps, variance=variance, clip="none")
    *_, last = sampler.trajectory(WithShare(share), PATH, x, lambda step: x.flip(3) + step)
    return last.x


@pytest.mark.parametrize(("share", "fixed"), [(0.0, "fixed_small"), (1.0, "fixed_large")])
def test_the_ends_of_the_range_are_the_fixed_variances(share: float, fixed: str) -> None:
    torch.testing.assert_close(drawn("learned", share), drawn(fixed), rtol=1e-12, atol=1e-12)


def test_the_middle_of_the_range_is_their_geometric_mean() -> None:
    """Of two steps only the first adds noise, so the image is affine in its standard deviation."""
    small, large, middle = drawn("fixed_small", steps=2), drawn("fixed_large", steps=2), drawn("learned", steps=2)
    now, after, _ = Ancestral(steps=2).points(PATH)
    beta = now.sigma**2 - (now.alpha / after.alpha) ** 2 * after.sigma**2
    beta_tilde = after.sigma**2 / now.sigma**2 * beta
    expected = (beta * beta_tilde) ** 0.25
    share = (expected - math.sqrt(beta_tilde)) / (math.sqrt(beta) - math.sqrt(beta_tilde))
    torch.testing.assert_close(middle, small + share * (large - small), rtol=1e-12, atol=1e-12)


def test_a_grid_that_visits_a_time_twice_adds_no_noise_there() -> None:
    sampler = Ancestral(steps=500, grid="quadratic_paper", variance="learned", clip="none")
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    *_, last = sampler.trajectory(WithShare(0.5), PATH, x, lambda _: x)
    assert last.x.isfinite().all()


def test_a_model_without_a_learned_variance_is_refused_by_name() -> None:
    def plain(x_t: Tensor, t: Tensor) -> Prediction:
        return Prediction(x_t, x_t)

    with pytest.raises(ValueError, match="variance learned, but the model has none; use fixed_small or fixed_large"):
        list(Ancestral(steps=2, variance="learned").trajectory(plain, PATH, torch.zeros(1, 1, 1, 1), torch.zeros))


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_only_paths_of_steps_have_a_variance_to_learn(path: Any) -> None:
    assert admits(LearnedRange(), path) == path.kind.startswith("vp_") * (path.kind != "vp_sde")
    if not admits(LearnedRange(), path):
        with pytest.raises(ValueError, match="learns the variance of a chain's steps, which a path in continuous time"):
            ModelSpec(image_size=4, channels=1, network=SMALL, path=path, target=V(), variance=LearnedRange())


class Raw(nn.Module):
    """Puts out what it holds."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.output


def hybrid(weight: float, output: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Loss, gradient of the output, and the draws."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(4, 1, 3, 3, generator=generator).clamp(-1, 1) for _ in range(2))
    t = torch.tensor([0.0, 1.0, 300.0, 999.0]).double()
    network = Raw(output)
    losses = denoising_loss(network, PATH, Eps(), Simple(), x0, t, eps, variance=LearnedRange(bound_weight=weight))
    losses.sum().backward()
    assert network.output.grad is not None
    return losses.detach(), network.output.grad, (x0, eps, t)


def test_the_hybrid_loss_is_the_simple_one_plus_the_whole_bound_in_bits_estimated_from_one_step() -> None:
    output = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    losses, _, (x0, eps, t) = hybrid(0.01, output)
    predicted_eps, share = output[:, :1], (output[:, 1:] + 1) / 2
    alpha, sigma = (each.float().view(-1, 1, 1, 1) for each in (PATH.alpha(t), PATH.sigma(t)))
    predicted_x0 = (alpha * x0 + sigma * eps - sigma * predicted_eps) / alpha
    bits = bound_term(PATH, x0, t, predicted_x0, share) / (9 * math.log(2))
    expected = (predicted_eps - eps).square().mean((1, 2, 3)) + 0.01 * 1000 * bits
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


def test_the_bound_teaches_the_variance_alone() -> None:
    output = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    _, little, _ = hybrid(1e-6, output)
    _, much, _ = hybrid(1.0, output)
    assert torch.equal(little[:, 0], much[:, 0])
    torch.testing.assert_close(much[:, 1], 1e6 * little[:, 1], rtol=1e-4, atol=1e-5)
    assert (much[:, 1] != 0).all()


def test_descent_along_the_hybrid_loss_finds_a_variance_better_than_both_fixed_ones() -> None:
    """Of images N(0, 0.3^2) the right variance lies between the two, where the path still knows of the image."""
    x0 = 0.3 * torch.randn(4096, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    eps = torch.randn(4096, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    t = torch.full((4096,), 30.0, dtype=torch.float64)
    alpha, sigma = PATH.at(30.0)
    x0_hat = alpha * 0.09 / (alpha**2 * 0.09 + sigma**2) * (alpha * x0 + sigma * eps)
    share = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([share], lr=0.05)
    for _ in range(200):
        loss = bound_term(PATH, x0, t, x0_hat, share.expand(4096, 1, 1, 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fixed = [bound_term(PATH, x0, t, x0_hat, kind).mean().item() for kind in ("fixed_small", "fixed_large")]
    assert 0 < share.item() < 1
    assert loss.item() < min(fixed)


def test_clipping_and_guidance_keep_the_learned_share() -> None:
    x, t = torch.randn(2, 1, 3, 3), torch.tensor([5.0, 500.0]).double()
    for clip in ("none", "x0", "x0_and_eps", "dynamic", "dynamic_and_eps"):
        share = clipped(WithShare(0.3), PATH, clip)(x, t).variance_share
        assert share is not None
        assert (share == 0.3).all()

    class Labelled(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return label.view(-1, 1, 1, 1).expand(-1, 2, 3, 3).to(x.dtype) * 2 - 1

    plain = NetworkDenoiser(Labelled(), PATH, Eps(), variance=LearnedRange())
    guided = ClassifierFreeGuidance(scale=3).guided(plain, torch.tensor([0, 1]), null=2)(x, t)
    assert guided.variance_share is not None
    assert guided.variance_share[:, 0, 0, 0].tolist() == [0.0, 1.0]


def test_a_spec_with_a_learned_variance_builds_twice_the_outputs_and_samples() -> None:
    spec = ModelSpec(image_size=4, channels=1, network=SMALL, path=VPCosine(), variance=LearnedRange())
    network = spec.build()
    assert network(torch.zeros(2, 1, 4, 4), torch.tensor([0.0, 999.0])).shape == (2, 2, 4, 4)
    images = generate(TrainedModel(spec, network), Ancestral(steps=5, variance="learned"), torch.arange(3))
    assert images.shape == (3, 4, 4, 1)
