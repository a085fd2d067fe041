"""Samplers: pure functions of (denoiser, path, initial noise, noise source) that walk from noise to data.

A sampler is a record of its options, `steps` and `grid` among them, with one method, `trajectory`, which yields x after
every step; the last one is the sample.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from .denoiser import Denoiser
from .grids import Grid, time_grid
from .paths import Path
from .record import Record

NoiseSource = Callable[[int], Tensor]
"""Number of the step -> standard normal noise shaped like x."""


class DDIM(Record):
    """Denoising diffusion implicit models. Song, Meng & Ermon 2021, eq. 12 and 16."""

    kind: Literal["ddim"] = "ddim"
    steps: int = Field(50, ge=1)
    """Number of network evaluations; at most the path's T."""
    eta: float = Field(0.0, ge=0, le=1)
    """0: deterministic; 1: as much noise as ancestral sampling adds between these steps."""
    grid: Grid = "quadratic"
    """Where the steps lie; the DDIM paper's CIFAR-10 figures need quadratic."""
    clip: Literal["none", "x0", "x0_and_eps"] = "x0_and_eps"
    """Clip the predicted image to [-1, 1], or not; x0_and_eps also recomputes the noise that belongs to the
    clipped image."""

    def trajectory(self, denoiser: Denoiser, path: Path, x: Tensor, noise: NoiseSource) -> Iterator[Tensor]:
        """x: [B, C, H, W], standard normal at t = T - 1. Yields `steps` tensors of its shape, the last at t = -1."""
        for now, after in _steps(self.grid, path, self.steps):
            prediction = denoiser(x, now.times(x))
            x0, eps = prediction.x0, prediction.eps
            if self.clip != "none":
                x0 = x0.clamp(-1, 1)
            if self.clip == "x0_and_eps":
                eps = (x - now.alpha * x0) / now.sigma
            std = self.eta * _posterior_std(now, after)
            x = after.alpha * x0 + math.sqrt(max(after.sigma**2 - std**2, 0.0)) * eps
            if std > 0:
                x = x + std * noise(now.number)
            yield x


class Ancestral(Record):
    """DDPM's own sampler: draw from the reverse Markov chain. Ho et al. 2020, algorithm 2 and eq. 7."""

    kind: Literal["ancestral"] = "ancestral"
    steps: int = Field(1000, ge=1)
    """Number of network evaluations; at most the path's T. With fewer, beta is that of the steps taken together."""
    grid: Grid = "uniform"
    """Where the steps lie."""
    variance: Literal["fixed_small", "fixed_large"] = "fixed_large"
    """Variance of a step: beta_tilde (the posterior's) or beta; the DDPM paper reports fixed_large for CIFAR-10."""
    clip_x0: bool = True
    """Clip the predicted image to [-1, 1] before the posterior mean is taken."""

    def trajectory(self, denoiser: Denoiser, path: Path, x: Tensor, noise: NoiseSource) -> Iterator[Tensor]:
        """x: [B, C, H, W], standard normal at t = T - 1. Yields `steps` tensors of its shape, the last at t = -1."""
        for now, after in _steps(self.grid, path, self.steps):
            x0 = denoiser(x, now.times(x)).x0
            if self.clip_x0:
                x0 = x0.clamp(-1, 1)
            ratio = now.alpha / after.alpha  # sqrt(1 - beta) of this step
            beta = 1 - ratio**2
            x = (after.alpha * beta * x0 + ratio * after.sigma**2 * x) / now.sigma**2
            if after.sigma > 0:
                std = _posterior_std(now, after) if self.variance == "fixed_small" else math.sqrt(beta)
                x = x + std * noise(now.number)
            yield x


@dataclass(frozen=True)
class _Point:
    """One point of a time grid, its coefficients as Python floats: no tensor is read back inside a sampler's loop."""

    number: int
    t: int
    alpha: float
    sigma: float

    def times(self, x: Tensor) -> Tensor:
        """This time for every image of x. -> int64 [B]."""
        return torch.full((len(x),), self.t, device=x.device)


def _steps(grid: Grid, path: Path, steps: int) -> Iterator[tuple[_Point, _Point]]:
    """Neighbouring points of the grid, from the noisiest down to the data at t = -1."""
    times = torch.tensor([*time_grid(grid, path.T, steps), -1])
    columns = zip(times.tolist(), path.alpha(times).tolist(), path.sigma(times).tolist(), strict=True)
    return pairwise(_Point(number, *point) for number, point in enumerate(columns))


def _posterior_std(now: _Point, after: _Point) -> float:
    """Std of x at the next, cleaner time given x now and x0. Ho et al. 2020, eq. 7; Song et al. 2021 (DDIM), eq. 16."""
    return after.sigma / now.sigma * math.sqrt(1 - (now.alpha / after.alpha) ** 2)


Sampler = Annotated[DDIM | Ancestral, Field(discriminator="kind")]
