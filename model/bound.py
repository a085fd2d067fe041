"""One term of the variational bound on the likelihood, step by step of a discrete path. Ho et al. 2020, eq. 5.

At t > 0 it is the divergence of the model's step from t to t - 1 from the posterior that knows the image; at t = 0 the
image's own cost given x at t = 0. In nats for each image, summed over pixels; all statistics of the path are float64.
"""

import math
from typing import Literal, TypeVar

import torch
from torch import Tensor

from .denoiser import expand
from .discrete_paths import DiscretePath

FixedStep = Literal["fixed_small", "fixed_large"]
Decoder = Literal["discretized", "continuous"]
GREY_LEVELS = 255  # steps between the darkest and the brightest of 8 bits, over [-1, 1]
GREY_LEVEL_BITS = math.log2(GREY_LEVELS / 2)
"""Bits/dim that a grey level of the width 2 / 255 costs beyond minus the log density of pixels in [-1, 1]."""
_SMALLEST_PROBABILITY = 1e-12  # of a grey level, so that its logarithm is finite; all 256 gain less than 3e-10 by it

Number = TypeVar("Number", float, Tensor)


def bits_per_dim(nats: Number, dimensions: int) -> Number:
    """Bits for each pixel and channel of an image of `dimensions` grey levels whose probability is exp(-nats)."""
    return nats / (dimensions * math.log(2))


def bits_per_dim_of_density(log_density: Number, dimensions: int) -> Number:
    """Bits/dim of grey levels whose pixels, spread uniformly over the width of their levels, have this log density.

    log_density: nats, of pixels in [-1, 1]. Its mean over the spreading bounds the bits/dim of the grey levels
    themselves from above. Theis et al. 2016, section 3.1.
    """
    return GREY_LEVEL_BITS - bits_per_dim(log_density, dimensions)


def log_variances(path: DiscretePath, t: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the posterior's variance and of beta, of the step from t to t - 1. float64, like t.

    At t = 0 the posterior has no variance and is given that of t = 1; beta is that of t = 0. Ho et al. 2020's code.
    """
    first = t.clamp(min=1)
    before = path.alpha_bar(first - 1)
    posterior = (1 - before) / (1 - path.alpha_bar(first)) * _beta(path, first)
    return posterior.log(), _beta(path, t).log()


def step_log_variance(path: DiscretePath, t: Tensor, variance: FixedStep | Tensor) -> Tensor:
    """Logarithm of the variance that the model gives its step from t to t - 1.

    variance: fixed_small, fixed_large (at t = 0 the small one: Ho et al. 2020's code), or the learned share of
    log(beta), [B, C, H, W] -> float64 [B, 1, 1, 1], or like the share.
    """
    small, excess = _small_and_excess(path, t, variance)
    return small + excess


def bound_term(
    path: DiscretePath,
    x0: Tensor,
    t: Tensor,
    predicted_x0: Tensor,
    variance: FixedStep | Tensor,
    decoder: Decoder = "discretized",
) -> Tensor:
    """The term of each image's own t. Ho et al. 2020, eq. 5 to 8 and 13; Nichol & Dhariwal 2021, eq. 4 to 6.

    x0, predicted_x0: [B, C, H, W]; t: float64 [B], whole steps -> nats, in x0's dtype [B]. Both Gaussians see the same
    x_t, so their means differ by the error of the predicted image alone. decoder: discretized gives the probability of
    each pixel's grey level of 8 bits, continuous the density of images that are real numbers.
    """
    small, excess = (each.to(x0.dtype) for each in _small_and_excess(path, t, variance))
    log_variance = small + excess
    alpha_bar, before = path.alpha_bar(t), path.alpha_bar(t - 1)
    share = expand(before.sqrt() * _beta(path, t) / (1 - alpha_bar), x0)  # of x0 in the posterior's mean
    off = share * (x0 - predicted_x0)
    divergence = 0.5 * (excess + torch.expm1(-excess) + off**2 * (-log_variance).exp())
    # At t = 0 the posterior's mean is x0 itself, so the model's is off by the same.
    cost = -_log_probability(x0, off, log_variance) if decoder == "discretized" else _cost(off, log_variance)
    return torch.where(_per_image(t) > 0, divergence, cost).flatten(1).sum(1)


def prior_term(path: DiscretePath, x0: Tensor) -> Tensor:
    """What the noisiest x_t still tells of the image: its divergence from pure noise. x0: [B, C, H, W] -> nats [B]."""
    alpha, sigma = path.at(path.t_max)
    each = 0.5 * ((alpha * x0) ** 2 + sigma**2 - 1 - 2 * math.log(sigma))
    return each.flatten(1).sum(1)


def _beta(path: DiscretePath, t: Tensor) -> Tensor:
    """The noise increment of the step from t to t - 1. float64, like t."""
    return 1 - path.alpha_bar(t) / path.alpha_bar(t - 1)


def _small_and_excess(path: DiscretePath, t: Tensor, variance: FixedStep | Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the small variance, and how far the step's is above it: a difference that loses no digits."""
    small, large = map(_per_image, log_variances(path, t))
    if isinstance(variance, Tensor):
        return small.to(variance.dtype), variance * (large - small).to(variance.dtype)
    return small, torch.where((_per_image(t) > 0) & (variance == "fixed_large"), large - small, 0.0)


def _per_image(numbers: Tensor) -> Tensor:
    return numbers.view(-1, 1, 1, 1)


def _cost(off: Tensor, log_variance: Tensor) -> Tensor:
    """Minus the logarithm of the density, nats for each pixel."""
    return 0.5 * (math.log(2 * math.pi) + log_variance + off**2 * (-log_variance).exp())


def _log_probability(x0: Tensor, off: Tensor, log_variance: Tensor) -> Tensor:
    """Logarithm of the probability of the grey level of x0; the outermost ones reach to infinity. Ho et al., eq. 13."""
    half, inverse_std = 1 / GREY_LEVELS, (-log_variance / 2).exp()
    # Of a tail far to the right nothing would be left in 1 - (1 - tail): mirrored, it lies to the left.
    flipped = torch.where(off > 0, -1.0, 1.0).to(off.dtype)
    near, far = flipped * off + half, flipped * off - half
    outward = torch.where(x0 * flipped > 1 - half, 1.0, _below(near * inverse_std))
    inward = torch.where(x0 * flipped < half - 1, 0.0, _below(far * inverse_std))
    return (outward - inward).clamp(min=_SMALLEST_PROBABILITY).log()


def _below(x: Tensor) -> Tensor:
    """The standard normal distribution function. torch.special.ndtr has no digits left below -5 in float32."""
    return 0.5 * torch.erfc(-math.sqrt(0.5) * x)
