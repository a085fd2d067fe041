"""The probability-flow ODE: the variables in which it is nearly straight, and its solution by adaptive steps."""

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from .denoiser import Prediction, expand
from .gaussian_path import GaussianPath

Number = TypeVar("Number", float, Tensor)

_LARGEST_TAU = 1000.0

# Coefficients of Dormand & Prince 1980, table 2 (RK5(4)7M): rows of stages, and what the two orders differ by.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_MOST_TRIES = 10_000


class StraightLine:
    """Variables in which denoising is a straight line wherever the prediction stays: y = x / scale against tau.

    x / alpha against sigma / alpha, as in EDM (Karras et al. 2022, eq. 4); on paths where that grows beyond 1,000, so
    that no grid could follow it, x / (alpha + sigma) against sigma / (alpha + sigma), as in rectified flow.
    Euler's method is DDIM in both. Works on floats and on tensors.
    """

    def __init__(self, path: GaussianPath) -> None:
        self.path = path
        alpha, sigma = path.at(path.t_max)
        self._flow = sigma > _LARGEST_TAU * alpha

    def scale(self, alpha: Number, sigma: Number) -> Number:
        """The factor x / y."""
        return alpha + sigma if self._flow else alpha

    def tau(self, alpha: Number, sigma: Number) -> Number:
        """Falls to 0 at the data."""
        return sigma / self.scale(alpha, sigma)

    def time(self, tau: Tensor) -> Tensor:
        """The path's time at tau > 0, where a network can be asked: from t_min to t_max. float64, like tau."""
        noise_to_data = tau / (1 - tau) if self._flow else tau
        return self.path.time(-noise_to_data.log()).clamp(self.path.t_min, self.path.t_max)

    def x(self, y: Tensor, t: Tensor) -> Tensor:
        """The x that is y at these times. t: float64 [B]."""
        return expand(self.scale(self.path.alpha(t), self.path.sigma(t)), y) * y

    def slope(self, prediction: Prediction) -> Tensor:
        """The slope dy / dtau."""
        return prediction.eps - prediction.x0 if self._flow else prediction.eps


Slope = Callable[[Tensor, Tensor], Tensor]
"""(tau float64 [B], y [B, ...]) -> dy / dtau, like y."""


def root_mean_square(x: Tensor) -> Tensor:
    """Of all numbers of each image. [B, ...] -> float64 [B]."""
    return x.double().square().flatten(1).mean(1).sqrt()


def integrated(
    slope: Slope,
    y: Tensor,
    first: float,
    last: float,
    rtol: float,
    atol: float,
    time: Callable[[Tensor], Tensor],
    norm: Callable[[Tensor], Tensor] = root_mean_square,
) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Solves dy / dtau = slope from tau = first to last, for each image of the batch by steps of its own.

    After each try: the mean time over the images, their tau float64 [B], and y [B, ...]; at the end all tau are `last`.
    Errors are measured against atol + rtol |y|, and a step is taken where the norm of that ratio is at most 1. time:
    the path's time at tau. One look at the device a try. FloatingPointError where the steps do not arrive.
    """
    tau = torch.full((len(y),), first, dtype=torch.float64, device=y.device)
    h = torch.full_like(tau, math.copysign(first / 10, last - first))
    k = slope(tau, y)
    for _ in range(_MOST_TRIES):
        h = torch.where(h.abs() > (last - tau).abs(), last - tau, h)  # 0 for an image that has arrived
        proposal, k_proposal, error = _dormand_prince(slope, tau, y, k, h)
        allowed = atol + rtol * torch.maximum(y.abs(), proposal.abs())
        off = norm(error / allowed)
        accepted = off <= 1
        tau = torch.where(accepted, torch.where(h == last - tau, last, tau + h), tau)
        y = torch.where(expand(accepted, y) > 0, proposal, y)
        k = torch.where(expand(accepted, y) > 0, k_proposal, k)
        h = h * (0.9 * off**-0.2).clamp(0.2, 10)
        looks = torch.stack((time(tau).mean(), off.isfinite().all().double(), (tau == last).all().double()))
        mean_t, finite, arrived = looks.tolist()
        yield mean_t, tau, y
        if arrived:
            return
        if not finite:
            break
    raise FloatingPointError(f"rk45: steps became too small or images not finite after t = {mean_t:.4g}")


def _dormand_prince(slope: Slope, tau: Tensor, y: Tensor, k: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Y at tau + h, the slope there, and the estimated error of y. k: the slope at tau; tau, h: float64 [B]."""
    slopes, width = [k], expand(h, y)
    for row in _STAGES:
        proposal = y + width * sum(weight * each for weight, each in zip(row, slopes, strict=True))
        slopes.append(slope(tau + sum(row) * h, proposal))
    error = width * sum(weight * each for weight, each in zip(_ERROR, slopes, strict=True))
    return proposal, slopes[-1], error
