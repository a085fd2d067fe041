"""Paths of T steps, given by their noise increments beta_t: DDPM's schedule and its successors.

t = T - 1 is the noisiest step, t = 0 has been noised once (Ho et al. 2020 count it as 1), t = -1 is the data. Networks
are trained at whole steps; in between, where some samplers ask, alpha_bar is interpolated linearly. Tables are float64,
since 1 - alpha_bar loses half its digits in float32 at the first steps.
"""

import math
from functools import lru_cache
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from .gaussian_path import GaussianPath


class DiscretePath(GaussianPath):
    """A variance-preserving path of T steps: alpha^2 + sigma^2 = 1."""

    T: int = Field(1000, ge=2, le=100_000)
    """Number of noising steps."""
    zero_terminal_snr: bool = False
    """Shift and scale sqrt(alpha_bar) so that nothing is left of the image at the last step; for x0, v and edm targets.
    Lin et al. 2023, algorithm 1."""

    def betas(self) -> Tensor:
        """Noise increments before any rescaling: 1 - alpha_bar_t / alpha_bar_{t-1}. -> float64 [T]."""
        raise NotImplementedError  # each path below states its own

    @property
    def t_data(self) -> float:
        return -1.0

    @property
    def t_min(self) -> float:
        return 0.0

    @property
    def t_max(self) -> float:
        return self.T - 1.0

    def alpha_bar(self, t: Tensor) -> Tensor:
        """Ho et al. 2020, eq. 4: the product of 1 - beta up to t. t: -1 <= t <= T - 1 -> float64, like t."""
        table = _alpha_bar_table(self, t.device)
        position = (t.double() + 1).clamp(0, self.T)
        step = position.long().clamp(max=self.T - 1)
        return torch.lerp(table[step], table[step + 1], position - step)

    def alpha(self, t: Tensor) -> Tensor:
        return self.alpha_bar(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self.alpha_bar(t)).sqrt()

    def time(self, lam: Tensor) -> Tensor:
        """Beyond the ends of the table, its ends."""
        table = _alpha_bar_table(self, lam.device)
        alpha_bar = torch.sigmoid(2 * lam.double())
        step = torch.searchsorted(-table, -alpha_bar).clamp(1, self.T) - 1
        share = (table[step] - alpha_bar) / (table[step] - table[step + 1])
        return step + share.clamp(0, 1) - 1

    def conditioning(self, t: Tensor) -> Tensor:
        """The number of the step. Ho et al. 2020, published code."""
        return t

    def training_time(self, u: Tensor) -> Tensor:
        return (u * self.T).floor().clamp(max=self.T - 1)

    def nearest_training_time(self, t: Tensor) -> Tensor:
        return t.round().clamp(self.t_min, self.t_max)

    def prior_std(self, t: float) -> float:  # noqa: ARG002  # the same at all noisy times
        return 1.0


@lru_cache(maxsize=64)
def _alpha_bar_table(path: DiscretePath, device: torch.device) -> Tensor:
    """alpha_bar at t = -1, 0, ..., T - 1. -> float64 [T + 1] on `device`."""
    with torch.device("cpu"):  # the same table whatever the default device, which may be "meta"
        table = (1 - path.betas()).cumprod(0)
        if path.zero_terminal_snr:
            root = table.sqrt()
            table = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        table = torch.cat((torch.ones(1, dtype=torch.float64), table))
    return table.to(device)


class _BetaRange(DiscretePath):
    """A path whose betas grow from one number to another."""

    beta_start: float = Field(1e-4, ge=1e-12, lt=1)
    """beta at the first step."""
    beta_end: float = Field(0.02, gt=0, lt=1)
    """beta at the last step."""

    @model_validator(mode="after")
    def _beta_grows(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} is above beta_end {self.beta_end}; noise must grow with t")
        return self


class VPLinear(_BetaRange):
    """DDPM's schedule: beta grows linearly. Ho et al. 2020, section 4."""

    kind: Literal["vp_linear"] = "vp_linear"

    def betas(self) -> Tensor:
        return torch.linspace(self.beta_start, self.beta_end, self.T, dtype=torch.float64)


class VPScaledLinear(_BetaRange):
    """Latent diffusion's schedule: the square root of beta grows linearly. Rombach et al. 2022, published code."""

    kind: Literal["vp_scaled_linear"] = "vp_scaled_linear"
    beta_start: float = Field(8.5e-4, ge=1e-12, lt=1)
    """beta at the first step."""
    beta_end: float = Field(0.012, gt=0, lt=1)
    """beta at the last step."""

    def betas(self) -> Tensor:
        return torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.T, dtype=torch.float64) ** 2


class VPSigmoid(_BetaRange):
    """beta rises along a sigmoid from -6 to 6. Song et al. 2021 (DDIM), published code."""

    kind: Literal["vp_sigmoid"] = "vp_sigmoid"

    def betas(self) -> Tensor:
        rise = torch.linspace(-6, 6, self.T, dtype=torch.float64).sigmoid()
        return self.beta_start + (self.beta_end - self.beta_start) * rise


class VPCosine(DiscretePath):
    """Improved DDPM's schedule: alpha_bar falls like a squared cosine. Nichol & Dhariwal 2021, eq. 17."""

    kind: Literal["vp_cosine"] = "vp_cosine"
    s: float = Field(0.008, ge=0, lt=1)
    """Offset that keeps the first betas from being too small."""
    beta_max: float = Field(0.999, ge=1e-6, lt=1)
    """Upper limit of beta, which keeps the last steps from being singular."""

    def betas(self) -> Tensor:
        u = torch.arange(self.T + 1, dtype=torch.float64) / self.T
        f = ((u + self.s) / (1 + self.s) * math.pi / 2).cos() ** 2
        return (1 - f[1:] / f[:-1]).clamp(max=self.beta_max)
