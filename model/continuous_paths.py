"""Paths in continuous time: the stochastic differential equations of Song et al. 2021, EDM and rectified flow."""

import math
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from .gaussian_path import GaussianPath


class ContinuousPath(GaussianPath):
    """A path with derivatives; the data are at t = 0."""

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives of alpha and sigma by t, for t > 0. -> two float64, like t."""
        raise NotImplementedError  # each path below states its own


class UnitTimePath(ContinuousPath):
    """A continuous path whose noise is complete at t = 1."""

    first_time: float = Field(1e-3, ge=1e-6, lt=1)
    """The cleanest time at which the network is trained and asked."""

    @property
    def t_min(self) -> float:
        return self.first_time

    @property
    def t_max(self) -> float:
        return 1.0


class _SDE(UnitTimePath):
    """alpha = exp(-B / 2) with B the integral of a beta(t) that grows linearly. Song et al. 2021, appendix B and C."""

    beta_min: float = Field(0.1, gt=0)
    """beta(0): noise per unit of time at the data."""
    beta_max: float = Field(20.0, gt=0)
    """beta(1)."""

    @model_validator(mode="after")
    def _beta_grows(self) -> Self:
        if self.beta_min >= self.beta_max:
            raise ValueError(f"beta_min {self.beta_min} is not below beta_max {self.beta_max}; noise must grow with t")
        return self

    def conditioning(self, t: Tensor) -> Tensor:
        """999 t, as if it were one of 1,000 steps. Song et al. 2021, published code."""
        return 999 * t

    def alpha(self, t: Tensor) -> Tensor:
        return (-self._noise(t) / 2).exp()

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _noise(self, t: Tensor) -> Tensor:
        """B(t), the integral of beta from 0 to t."""
        t = t.double()
        return t * self.beta_min + t**2 / 2 * (self.beta_max - self.beta_min)

    def _time_of_noise(self, noise: Tensor) -> Tensor:
        """The positive root of the quadratic `_noise`, without a difference of like numbers; also at 0 and inf."""
        linear = self.beta_min / noise
        return 2 / (linear + (linear**2 + 2 * (self.beta_max - self.beta_min) / noise).sqrt())


class VPSDE(_SDE):
    """The variance-preserving SDE, DDPM's limit of many steps. Song et al. 2021, eq. 11 and 29."""

    kind: Literal["vp_sde"] = "vp_sde"

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self._noise(t))).sqrt()

    def time(self, lam: Tensor) -> Tensor:
        return self._time_of_noise(F.softplus(-2 * lam.double()))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.alpha(t), self.sigma(t)
        return -self._beta(t) / 2 * alpha, self._beta(t) / 2 * alpha**2 / sigma

    def prior_std(self, t: float) -> float:  # noqa: ARG002  # the same at all noisy times
        return 1.0


class SubVPSDE(_SDE):
    """The SDE with less variance than the VP one at every time between its ends. Song et al. 2021, eq. 12 and 29."""

    kind: Literal["sub_vp_sde"] = "sub_vp_sde"

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._noise(t))

    def time(self, lam: Tensor) -> Tensor:
        noise_to_data = (-lam.double()).exp()  # sigma / alpha = 1 / alpha - alpha = 2 sinh(B / 2)
        return self._time_of_noise(2 * torch.asinh(noise_to_data / 2))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alpha(t)
        return -self._beta(t) / 2 * alpha, self._beta(t) * alpha**2


class VESDE(UnitTimePath):
    """The variance-exploding SDE: noise is added, the image is not scaled. Song et al. 2021, eq. 9, appendix C.

    sigma jumps from 0 at the data to sigma_min right after, as theirs does.
    """

    kind: Literal["ve_sde"] = "ve_sde"
    sigma_min: float = Field(0.01, ge=1e-6)
    """Noise at the clean end, in units of the images' [-1, 1]."""
    sigma_max: float = Field(50.0, le=1e6)
    """Noise at t = 1: about the largest distance between two training images."""
    first_time: float = Field(1e-5, ge=1e-6, lt=1)
    """The cleanest time at which the network is trained and asked."""

    @model_validator(mode="after")
    def _noise_grows(self) -> Self:
        _check_range(self.sigma_min, self.sigma_max)
        return self

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        t = t.double()
        return torch.where(t > 0, self.sigma_min * (self.sigma_max / self.sigma_min) ** t, 0.0)

    def time(self, lam: Tensor) -> Tensor:
        return (-lam.double() - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        growth = math.log(self.sigma_max / self.sigma_min)
        return torch.zeros_like(t, dtype=torch.float64), growth * self.sigma(t)

    def conditioning(self, t: Tensor) -> Tensor:
        """log(sigma) / 4, as on the edm path."""
        return self.sigma(t).log() / 4


class EDMPath(ContinuousPath):
    """Time is the noise itself: alpha = 1, sigma = t. Karras et al. 2022, table 1; train it with logit_normal times.

    What elsewhere is even in t is here even in log(sigma): an even grid from 80 would hardly see an image.
    """

    kind: Literal["edm"] = "edm"
    sigma_min: float = Field(0.002, ge=1e-6)
    """Noise at the cleanest time that the network is asked at, in units of the images' [-1, 1]."""
    sigma_max: float = Field(80.0, le=1e6)
    """Noise from which sampling starts."""

    @model_validator(mode="after")
    def _noise_grows(self) -> Self:
        _check_range(self.sigma_min, self.sigma_max)
        return self

    @property
    def t_min(self) -> float:
        return self.sigma_min

    @property
    def t_max(self) -> float:
        return self.sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return t.double()

    def time(self, lam: Tensor) -> Tensor:
        return (-lam.double()).exp()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t, dtype=torch.float64), torch.ones_like(t, dtype=torch.float64)

    def conditioning(self, t: Tensor) -> Tensor:
        """log(sigma) / 4. Karras et al. 2022, table 1."""
        return t.double().log() / 4

    def training_time(self, u: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** u.double()


class RectifiedFlow(UnitTimePath):
    """The straight line from image to noise: alpha = 1 - t, sigma = t. Liu et al. 2023; Lipman et al. 2023."""

    kind: Literal["rectified_flow"] = "rectified_flow"

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.double()

    def sigma(self, t: Tensor) -> Tensor:
        return t.double()

    def time(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam.double())

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t, dtype=torch.float64), torch.ones_like(t, dtype=torch.float64)

    def conditioning(self, t: Tensor) -> Tensor:
        """1,000 t. Esser et al. 2024, published code."""
        return 1000 * t


def _check_range(sigma_min: float, sigma_max: float) -> None:
    if sigma_min >= sigma_max:
        raise ValueError(f"sigma_min {sigma_min} is not below sigma_max {sigma_max}; noise must grow with t")
