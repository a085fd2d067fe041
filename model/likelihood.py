"""How likely images are under a trained model: bounded by its chain of T steps, or exactly by its ODE.

All is in nats for each image, summed over pixels and channels, and float64; `bound.py` makes bits/dim of it. Every
random number is a function of (seed, number of the image), and of the step or the probe, alone.
"""

import math
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .bound import GREY_LEVELS, Decoder, FixedStep, bits_per_dim, bound_term, prior_term
from .denoiser import Denoiser, coefficients
from .discrete_paths import DiscretePath
from .gaussian_path import GaussianPath
from .probability_flow import StraightLine, integrated, root_mean_square
from .random import Stream, normal, signs, uniforms
from .sampler import NoiseSource
from .variance import StepVariance

FEWEST_PROBES = 2  # a standard error needs two


@dataclass(frozen=True)
class Bound:
    """The variational bound on minus the log-likelihood of each image, and how well it is known on the way."""

    prior: Tensor
    """What the noisiest x_t tells of the image. [B]."""
    terms: Tensor
    """By t = 0, ..., T - 1: at t > 0 the step from t to t - 1, at t = 0 the image itself. [T, B]."""
    squared_error: Tensor
    """Of the image predicted at each t, mean over pixels and channels, which lie in [-1, 1]. [T, B]."""

    @property
    def total(self) -> Tensor:
        """[B]."""
        return self.prior + self.terms.sum(0)


class RateDistortion(NamedTuple):
    """What a receiver knows while x_t arrives, from t = T - 1 (first) down to t = 0 (last)."""

    rate: Tensor
    """Bits/dim received so far. [T]."""
    distortion: Tensor
    """Root mean squared error of the image predicted from x_t, in grey levels of 0 to 255. [T]."""


@dataclass(frozen=True)
class LogLikelihood:
    """The logarithm of each image's density, by random probes."""

    estimate: Tensor
    """Mean over the probes. [B]."""
    standard_error: Tensor
    """Of the estimate, from the scatter of the probes. [B]."""


def bound_noise(seed: int, numbers: Tensor, shape: tuple[int, ...]) -> NoiseSource:
    """The noise of each step for the images of these numbers. numbers: int64 [B] -> a function of t to [B, *shape]."""
    return partial(normal, seed, Stream.BOUND_NOISE, numbers, shape)


def probe_signs(seed: int, numbers: Tensor, shape: tuple[int, ...], probes: int) -> Tensor:
    """Rademacher probes of the images of these numbers. numbers: int64 [B] -> float32 [P, B, *shape]."""
    return torch.stack([signs(seed, Stream.PROBE, numbers, shape, probe) for probe in range(probes)])


def dequantised(x: Tensor, seed: int, numbers: Tensor) -> Tensor:
    """Grey levels spread uniformly over their width, 2 / 255. x: [B, C, H, W] in [-1, 1]; numbers: int64 [B] -> like x.

    Theis et al. 2016, section 3.1. The darkest and the brightest level reach 1 / 255 beyond -1 and 1.
    """
    drawn = uniforms(seed, Stream.DEQUANTISATION, numbers, x[0].numel()).view(x.shape)
    return x + ((2 * drawn - 1) / GREY_LEVELS).to(x.dtype)


def variational_bound(
    denoiser: Denoiser,
    path: DiscretePath,
    x0: Tensor,
    noise: NoiseSource,
    variance: StepVariance,
    decoder: Decoder = "discretized",
) -> Bound:
    """The whole bound, a term of every t by one draw of noise each. Ho et al. 2020, eq. 5; its mean is over the noise.

    x0: [B, C, H, W]; noise: of t, shaped like x0, see `bound_noise`. Ho et al.'s code clips the predicted image to
    [-1, 1]; here that is the denoiser's business, see `clipping.py`. With the continuous decoder minus the total
    bounds the log density of x0. ValueError where a learned variance is asked of a model without one.
    """
    terms, squared_error = [], []
    for step in range(path.T):
        t = torch.full((len(x0),), step, dtype=torch.float64, device=x0.device)
        alpha, sigma = coefficients(path, t, x0)
        prediction = denoiser(alpha * x0 + sigma * noise(step), t)
        step_variance: FixedStep | Tensor | None = prediction.variance_share if variance == "learned" else variance
        if step_variance is None:
            raise ValueError("variance learned, but the model has none; use fixed_small or fixed_large")
        terms.append(bound_term(path, x0.double(), t, prediction.x0.double(), _in_float64(step_variance), decoder))
        squared_error.append((prediction.x0.double() - x0.double()).square().flatten(1).mean(1))
    return Bound(prior_term(path, x0.double()), torch.stack(terms), torch.stack(squared_error))


def _in_float64(variance: FixedStep | Tensor) -> FixedStep | Tensor:
    return variance.double() if isinstance(variance, Tensor) else variance


def rate_distortion(bound: Bound, dimensions: int) -> RateDistortion:
    """Means over the images, as if they were sent progressively. Ho et al. 2020, section 4.3, algorithms 3 and 4.

    The noisiest x_t costs the prior term, each cleaner one the term of the step that leads to it; what the image costs
    once x_0 (in their count x_1) is there is not in the rate. dimensions: C H W.
    """
    steps = bound.terms.mean(1).flip(0)[:-1]  # from the noisiest, without that of t = 0
    received = torch.cat((bound.prior.mean().view(1), steps)).cumsum(0)
    distortion = GREY_LEVELS / 2 * bound.squared_error.mean(1).flip(0).sqrt()
    return RateDistortion(bits_per_dim(received, dimensions), distortion)


def ode_log_likelihood(
    denoiser: Denoiser, path: GaussianPath, x: Tensor, probes: Tensor, rtol: float = 1e-5, atol: float = 1e-5
) -> LogLikelihood:
    """The log density of x by the change of variables along the probability-flow ODE. Song et al. 2021, appendix D.2.

    Of which distribution: that of x at t_min, when x at t_max is drawn from N(0, prior_std^2) and carried along the
    ODE. It is what `RK45` draws with clip none, but for its last step from t_min to the data; images are taken to be at
    t_min as they are, as in `RK45.inversion`. No more is approximate than the solver, by its tolerances, and the trace
    of the Jacobian: the mean of v' J v over the probes v, which is right on average. Hutchinson 1990.

    x: [B, C, H, W]; probes: [P, B, C, H, W] of -1 and 1, P >= 2, see `probe_signs`; rtol, atol: errors allowed in a
    step, of x scaled by the path and of the log density in nats for each dimension. The density is one of real numbers:
    for grey levels give `dequantised` images and make `bits_per_dim_of_density` of the result.

    The denoiser is differentiated by x_t, also within inference mode: it must not clip, and classifier guidance, whose
    gradient has no gradient, would give a wrong answer. FloatingPointError where the steps do not arrive.
    """
    if len(probes) < FEWEST_PROBES:
        raise ValueError(f"{len(probes)} probes leave no standard error; use {FEWEST_PROBES} or more")
    with torch.inference_mode(False), torch.no_grad():
        return _change_of_variables(denoiser, path, x.clone(), probes.to(x.dtype, copy=True), rtol, atol)


def _change_of_variables(
    denoiser: Denoiser, path: GaussianPath, x: Tensor, probes: Tensor, rtol: float, atol: float
) -> LogLikelihood:
    """In the variables of `StraightLine`, with one column more for the log density by each probe."""
    line, dimensions = StraightLine(path), x[0].numel()
    (scale_here, first), (scale_there, last) = (
        (line.scale(*point), line.tau(*point)) for point in (path.at(path.t_min), path.at(path.t_max))
    )

    def slope(tau: Tensor, state: Tensor) -> Tensor:
        t = line.time(tau)
        with torch.enable_grad():
            y = state[:, :dimensions].reshape(x.shape).requires_grad_()
            dy = line.slope(denoiser(line.x(y, t), t))
        return torch.cat((dy.detach().flatten(1), _traces(dy, y, probes) / dimensions), dim=1)

    def norm(error: Tensor) -> Tensor:
        return torch.maximum(*map(root_mean_square, (error[:, :dimensions], error[:, dimensions:])))

    start = torch.cat(((x / scale_here).flatten(1), x.new_zeros(len(x), len(probes))), dim=1)
    ((_, _, end),) = deque(integrated(slope, start, first, last, rtol, atol, line.time, norm), maxlen=1)
    y, gained = end.double().split((dimensions, len(probes)), dim=1)
    at_noise = _log_normal(scale_there * y, path.prior_std(path.t_max)) + dimensions * math.log(scale_there)
    each = at_noise[:, None] + dimensions * gained - dimensions * math.log(scale_here)
    return LogLikelihood(each.mean(1), each.std(1) / math.sqrt(len(probes)))


def _traces(dy: Tensor, y: Tensor, probes: Tensor) -> Tensor:
    """For each image and probe v, v' J v with the Jacobian J of dy by y. -> [B, P]."""
    columns = []
    for number, probe in enumerate(probes):
        (along,) = torch.autograd.grad(dy, y, probe, retain_graph=number < len(probes) - 1)
        columns.append((along * probe).flatten(1).sum(1))
    return torch.stack(columns, dim=1)


def _log_normal(x: Tensor, std: float) -> Tensor:
    """The log density of N(0, std^2). [B, D] -> [B]."""
    return -(0.5 * (x / std) ** 2 + math.log(std) + 0.5 * math.log(2 * math.pi)).sum(1)
