"""Images of several kinds: with a mixture of Gaussians the ideal denoiser is no longer linear, but still a formula."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from model import RK45, EDMPath, RectifiedFlow, VPLinear

from .analytic import admitted, images, no_noise, three_blobs, two_humps, variants

PATHS: list[Any] = [VPLinear(), EDMPath(), RectifiedFlow()]
SETTINGS = variants(
    clip="none", steps=7, grid="uniform", s_noise=1.0, s_min=0.0, s_max=None, rtol=1e-4, atol=1e-4, corrector_steps=0
)
N = 1000


def drawn(sampler: Any, denoiser: Any) -> Tensor:
    """N images, with steps enough for what N images can tell."""
    path, shape = denoiser.path, (N, *denoiser.means[0].shape)
    if not isinstance(sampler, RK45):
        grid, steps = "quadratic" if path.loses_image else "lambda_uniform", 200 if sampler.order == 1 else 80
        sampler = sampler.model_copy(update={"grid": grid, "steps": steps})
    generator = torch.Generator().manual_seed(0)

    def normal(_: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return images(sampler, denoiser, path, path.prior_std(sampler.start(path)) * normal(0), normal)


@pytest.mark.parametrize(("sampler", "path"), admitted(SETTINGS, PATHS))
def test_sampled_mean_and_covariance_are_those_of_the_mixture(sampler: Any, path: Any) -> None:
    """Within four standard errors, which for these are measured from the fourth moments."""
    denoiser = three_blobs(path)
    mean, covariance = denoiser.moments()
    off = drawn(sampler, denoiser).flatten(1) - mean
    products = off[:, :, None] * off[:, None, :]
    assert (off.mean(0).abs() < 4 * off.std(0) / math.sqrt(N)).all()
    assert ((products.mean(0) - covariance).abs() < 4 * products.std(0) / math.sqrt(N)).all()


@pytest.mark.parametrize(("sampler", "path"), admitted(SETTINGS, PATHS))
def test_sampled_pixels_are_distributed_like_the_mixture(sampler: Any, path: Any) -> None:
    """Kolmogorov and Smirnov's statistic: sqrt(N) times it is above 1.95 once in a thousand."""
    denoiser = two_humps(path)
    share = denoiser.cumulative(drawn(sampler, denoiser).flatten().sort().values, path.t_data)
    steps = torch.arange(N + 1, dtype=torch.float64) / N
    statistic = torch.maximum((share - steps[:-1]).abs(), (share - steps[1:]).abs()).max()
    assert math.sqrt(N) * float(statistic) < 1.95


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.kind)
def test_images_keep_their_quantile(path: Any) -> None:
    """The ODE's solution in one dimension: noise at its p-th quantile becomes the image at its p-th quantile."""
    denoiser, share = two_humps(path), torch.tensor([0.02, 0.2, 0.29, 0.31, 0.5, 0.9]).double()
    alpha, sigma = path.at(path.t_max)
    x = (alpha * 0.17 + math.hypot(sigma, alpha * 0.54) * torch.special.ndtri(share)).view(-1, 1, 1, 1)
    clean = list(RK45(rtol=1e-8, atol=1e-8, clip="none").trajectory(denoiser, path, x, no_noise))[-2]
    shares = denoiser.cumulative(clean.x.flatten(), clean.t)
    torch.testing.assert_close(shares, denoiser.cumulative(x.flatten(), path.t_max), rtol=0, atol=1e-5)
