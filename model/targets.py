"""What the network predicts, as linear conversions between its output and the pair (x0, eps).

At a given time every target is linear in x_t and the output F, so it is six numbers: how x0 and eps follow from x_t and
F, and how the F that would be right follows from x0 and eps. The numbers are computed in float64; none of them divides
by what vanishes on the path, unless the target itself is singular there, and then `check` refuses the path.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from .continuous_paths import ContinuousPath
from .gaussian_path import GaussianPath
from .record import Record

_LARGEST_FACTOR = 1e30  # beyond it no float32


@dataclass(frozen=True)
class Conversion:
    """x0 = x0_x x_t + x0_out F;  eps = eps_x x_t + eps_out F;  F = out_x0 x0 + out_eps eps. All float64, shaped like t.

    `scale` multiplies x_t before the network sees it.
    """

    x0_x: Tensor
    x0_out: Tensor
    eps_x: Tensor
    eps_out: Tensor
    out_x0: Tensor
    out_eps: Tensor
    scale: Tensor


class _Target(Record):
    def check(self, path: GaussianPath) -> None:
        """ValueError where this target is singular on the path."""

    def conversion(self, path: GaussianPath, t: Tensor) -> Conversion:
        """The numbers at time t. t: float64 of any shape."""
        raise NotImplementedError  # each target below states its own


def _refuse_lost_image(kind: str, path: GaussianPath) -> None:
    if path.loses_image:
        raise ValueError(
            f"the noise ({kind}) does not tell the image where alpha = 0, as at the noisy end of this path; use target "
            "v, x0, edm or (in continuous time) velocity"
        )


class Eps(_Target):
    """The noise. Ho et al. 2020, eq. 14."""

    kind: Literal["eps"] = "eps"

    def check(self, path: GaussianPath) -> None:
        _refuse_lost_image(self.kind, path)

    def conversion(self, path: GaussianPath, t: Tensor) -> Conversion:
        alpha, sigma = path.alpha(t), path.sigma(t)
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        return Conversion(1 / alpha, -sigma / alpha, zero, one, zero, one, scale=one)


class X0(_Target):
    """The image. Salimans & Ho 2022, section 4."""

    kind: Literal["x0"] = "x0"

    def conversion(self, path: GaussianPath, t: Tensor) -> Conversion:
        alpha, sigma = path.alpha(t), path.sigma(t)
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        return Conversion(zero, one, 1 / sigma, -alpha / sigma, one, zero, scale=one)


class V(_Target):
    """v = alpha eps - sigma x0. Salimans & Ho 2022, section 4 and appendix D."""

    kind: Literal["v"] = "v"

    def conversion(self, path: GaussianPath, t: Tensor) -> Conversion:
        alpha, sigma = path.alpha(t), path.sigma(t)
        norm = alpha**2 + sigma**2
        return Conversion(
            alpha / norm, -sigma / norm, sigma / norm, alpha / norm, -sigma, alpha, scale=torch.ones_like(alpha)
        )


class Velocity(_Target):
    """dx_t / dt = alpha' x0 + sigma' eps; eps - x0 on rectified flow. Lipman et al. 2023, eq. 9; Liu et al. 2023."""

    kind: Literal["velocity"] = "velocity"

    def check(self, path: GaussianPath) -> None:
        if not isinstance(path, ContinuousPath):
            raise ValueError("velocity is dx/dt, which a path of separate steps does not have; use target v")
        end = torch.tensor(path.t_max, dtype=torch.float64, device="cpu")
        if path.loses_image and self.conversion(path, end).x0_out.abs() > _LARGEST_FACTOR:
            raise ValueError(
                "velocity does not tell the image where alpha = 0 and hardly changes, as at the noisy end of this "
                "path; use target v, x0 or edm"
            )

    def conversion(self, path: GaussianPath, t: Tensor) -> Conversion:
        assert isinstance(path, ContinuousPath)
        alpha, sigma = path.alpha(t), path.sigma(t)
        alpha_rate, sigma_rate = path.rates(t)
        norm = alpha * sigma_rate - sigma * alpha_rate
        return Conversion(
            sigma_rate / norm,
            -sigma / norm,
            -alpha_rate / norm,
            alpha / norm,
            alpha_rate,
            sigma_rate,
            scale=torch.ones_like(alpha),
        )


class Score(_Target):
    """The gradient of log p(x_t | x0), -eps / sigma; train it with snr weighting. Song et al. 2021, eq. 7."""

    kind: Literal["score"] = "score"

    def check(self, path: GaussianPath) -> None:
        _refuse_lost_image(self.kind, path)

    def conversion(self, path: GaussianPath, t: Tensor) -> Conversion:
        alpha, sigma = path.alpha(t), path.sigma(t)
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        return Conversion(1 / alpha, sigma**2 / alpha, zero, -sigma, zero, -1 / sigma, scale=one)


class EDM(_Target):
    """EDM's preconditioning: the network sees images of unit variance and predicts what c_skip does not.

    Karras et al. 2022, table 1, for any path: D = c_skip x_t / alpha + c_out F, with sigma / alpha for their sigma.
    With sigma_data = 1 on a variance-preserving path F is -v.
    """

    kind: Literal["edm"] = "edm"
    sigma_data: float = Field(0.5, ge=1e-6, le=1e6)
    """Standard deviation of the images' pixels, which lie in [-1, 1]."""

    def conversion(self, path: GaussianPath, t: Tensor) -> Conversion:
        alpha, sigma, data = path.alpha(t), path.sigma(t), self.sigma_data
        variance = (alpha * data) ** 2 + sigma**2  # of x_t
        std = variance.sqrt()
        return Conversion(
            x0_x=data**2 * alpha / variance,
            x0_out=sigma * data / std,
            eps_x=sigma / variance,
            eps_out=-alpha * data / std,
            out_x0=sigma / (data * std),
            out_eps=-alpha * data / std,
            scale=1 / std,
        )


Target = Annotated[Eps | X0 | V | Velocity | Score | EDM, Field(discriminator="kind")]
