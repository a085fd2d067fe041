"""Gaussian paths x_t = alpha(t) x_0 + sigma(t) eps: how data become noise.

A path is a record of hyper-parameters with two methods, `alpha(t)` and `sigma(t)`. Discrete paths have T steps:
t = T - 1 is the noisiest, t = 0 has been noised once (Ho et al. 2020 count it as 1), and t = -1 is the data: alpha = 1,
sigma = 0. Tables are float64, since 1 - alpha_bar loses half its digits in float32 at the first steps.
"""

import math
from functools import lru_cache
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from .record import Record

_SMALLEST_ALPHA = 1e-30


class DiscretePath(Record):
    """A variance-preserving path given by its T noise increments beta_t: alpha^2 + sigma^2 = 1."""

    T: int = Field(1000, ge=2, le=100_000)
    """Number of noising steps."""

    @model_validator(mode="after")
    def _image_is_never_lost(self) -> Self:
        """x0 = (x_t - sigma eps) / alpha must stay finite in float32."""
        last = float(self.alpha(torch.tensor(self.T - 1, device="cpu")))
        if last < _SMALLEST_ALPHA:
            raise ValueError(
                f"alpha falls to {last:.1e} at the last of T = {self.T} steps, but float32 needs {_SMALLEST_ALPHA:.0e} "
                "to find the image again; use smaller betas or fewer steps"
            )
        return self

    def betas(self) -> Tensor:
        """beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}. -> float64 [T]."""
        raise NotImplementedError  # each path below states its own

    def alpha_bar(self, t: Tensor) -> Tensor:
        """Ho et al. 2020, eq. 4: the product of 1 - beta up to t. t: int64, -1 <= t < T -> float64, same shape."""
        return _alpha_bar_table(self, t.device)[t + 1]

    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data at step t. t: int64, -1 <= t < T -> float64, same shape."""
        return self.alpha_bar(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at step t. t: int64, -1 <= t < T -> float64, same shape."""
        return (1 - self.alpha_bar(t)).sqrt()


@lru_cache(maxsize=64)
def _alpha_bar_table(path: DiscretePath, device: torch.device) -> Tensor:
    """alpha_bar at t = -1, 0, ..., T - 1. -> float64 [T + 1] on `device`."""
    with torch.device("cpu"):  # the same table whatever the default device, which may be "meta"
        table = torch.cat((torch.ones(1, dtype=torch.float64), (1 - path.betas()).cumprod(0)))
    return table.to(device)


class VPLinear(DiscretePath):
    """DDPM's schedule: beta grows linearly. Ho et al. 2020, section 4."""

    kind: Literal["vp_linear"] = "vp_linear"
    beta_start: float = Field(1e-4, gt=0, lt=1)
    """beta at the first step."""
    beta_end: float = Field(0.02, gt=0, lt=1)
    """beta at the last step."""

    @model_validator(mode="after")
    def _beta_grows(self) -> "VPLinear":
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} is above beta_end {self.beta_end}; noise must grow with t")
        return self

    def betas(self) -> Tensor:
        return torch.linspace(self.beta_start, self.beta_end, self.T, dtype=torch.float64)


class VPCosine(DiscretePath):
    """Improved DDPM's schedule: alpha_bar falls like a squared cosine. Nichol & Dhariwal 2021, eq. 17."""

    kind: Literal["vp_cosine"] = "vp_cosine"
    s: float = Field(0.008, ge=0, lt=1)
    """Offset that keeps the first betas from being too small."""
    beta_max: float = Field(0.999, gt=0, lt=1)
    """Upper limit of beta, which keeps the last steps from being singular."""

    def betas(self) -> Tensor:
        u = torch.arange(self.T + 1, dtype=torch.float64) / self.T
        f = ((u + self.s) / (1 + self.s) * math.pi / 2).cos() ** 2
        return (1 - f[1:] / f[:-1]).clamp(max=self.beta_max)


Path = Annotated[VPLinear | VPCosine, Field(discriminator="kind")]
