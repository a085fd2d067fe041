"""Samplers that solve the probability-flow ODE by one-step methods: Euler, Heun, and Runge-Kutta of adaptive step."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from .denoiser import Denoiser
from .gaussian_path import GaussianPath
from .grids import Grid
from .probability_flow import StraightLine, integrated
from .sampler import GridSampler, NoiseSource, Point, SamplerBase, State


class _EDMSampler(GridSampler):
    """A sampler that may add noise before each step. Karras et al. 2022, algorithm 2."""

    _eps_follows_x0: ClassVar[bool] = True

    grid: Grid = "karras"
    """Where the steps lie. Even in t: uniform, trailing, leading, linspace; denser near the data: quadratic, the DDIM
    paper's for CIFAR-10 (quadratic_paper: as in its code); even in the noise level: karras, lambda_uniform."""
    s_churn: float = Field(0.0, ge=0)
    """Noise added in all steps together; 0: deterministic. Karras et al. 2022, table 5, has values for their models."""
    s_min: float = Field(0.0, ge=0)
    """No noise is added where sigma / alpha is below."""
    s_max: float | None = Field(None, gt=0)
    """No noise is added where sigma / alpha is above; null: no upper limit."""
    s_noise: float = Field(1.0, gt=0)
    """Factor on the added noise; theirs is 1.003 to 1.007, against lost detail."""

    def check(self, path: GaussianPath) -> None:
        super().check(path)
        if self.s_max is not None and self.s_max <= self.s_min:
            raise ValueError(f"s_max {self.s_max} is not above s_min {self.s_min}; no step would add noise")
        if self.s_churn > 0 and path.loses_image:
            raise ValueError(
                "s_churn raises sigma / alpha, which is infinite at the noisy end of this path; set it to 0"
            )

    def _churned(self, now: Point, path: GaussianPath, x: Tensor, noise: NoiseSource) -> tuple[Point, Tensor]:
        """Algorithm 2, lines 4 to 6: back to a higher noise level, in continuous time even above the highest."""
        level = now.sigma / now.alpha if now.alpha else math.inf
        highest = math.inf if self.s_max is None else self.s_max
        if self.s_churn == 0 or not self.s_min <= level <= highest:
            return now, x
        gamma = min(self.s_churn / self.steps, math.sqrt(2) - 1)
        t = float(path.time(torch.tensor(-math.log(level * (1 + gamma)), dtype=torch.float64, device="cpu")))
        alpha, sigma = path.at(t)
        added = max((sigma / alpha) ** 2 - level**2, 0.0)
        x = alpha / now.alpha * x + alpha * math.sqrt(added) * self.s_noise * noise(now.number)
        return replace(now, t=t, alpha=alpha, sigma=sigma, lam=math.log(alpha / sigma)), x

    def _walk(
        self, denoiser: Denoiser, path: GaussianPath, x: Tensor, noise: NoiseSource, start: float
    ) -> Iterator[State]:
        """Euler's step, corrected by Heun's where the order is 2."""
        line = StraightLine(path)
        for point, after in self.pairs(path, start):
            now, x = self._churned(point, path, x, noise)
            slope = line.slope(denoiser(x, now.times(x)))
            length = line.tau(after.alpha, after.sigma) - line.tau(now.alpha, now.sigma)
            y = x / line.scale(now.alpha, now.sigma)
            scale = line.scale(after.alpha, after.sigma)
            x = scale * (y + length * slope)
            if self.order == 2 and after.sigma > 0:
                x = scale * (y + length * (slope + line.slope(denoiser(x, after.times(x)))) / 2)
            yield State(after.t, x)


class Euler(_EDMSampler):
    """Euler's method on the probability-flow ODE; without churn, DDIM with eta 0. Karras et al. 2022, section 4."""

    order: ClassVar[int] = 1
    kind: Literal["euler"] = "euler"


class Heun(_EDMSampler):
    """Heun's method on the probability-flow ODE, Euler's for the step to the data. Karras et al. 2022, algorithm 2.

    In the variables of `StraightLine`, which are theirs on paths such as edm, ve_sde and vp_linear.
    """

    order: ClassVar[int] = 2
    kind: Literal["heun"] = "heun"
    steps: int = Field(18, ge=1, le=100_000)
    """Number of steps, with two evaluations of the network each, but for the last; at most T on a path of T steps."""

    def evaluations(self, path: GaussianPath) -> int:  # noqa: ARG002  # the base class's signature
        return 2 * self.steps - 1


class RK45(SamplerBase):
    """Runge-Kutta of order 5 with adaptive steps on the probability-flow ODE, then one step to the data.

    Dormand & Prince 1980, as Song et al. 2021, appendix D.4, use it. Each image has steps of its own, so that none
    depends on its batch; the batch is evaluated until its last image has arrived, which one look a step finds out.
    """

    _eps_follows_x0: ClassVar[bool] = True

    order: ClassVar[int] = 5
    kind: Literal["rk45"] = "rk45"
    rtol: float = Field(1e-4, gt=0)
    """Error allowed in a step, relative to the image scaled by the path."""
    atol: float = Field(1e-4, gt=0)
    """Error allowed in a step, in units of the images' [-1, 1]."""

    def check(self, path: GaussianPath) -> None:
        """Any path will do."""

    def start(self, path: GaussianPath) -> float:
        return path.t_max

    def evaluations(self, path: GaussianPath) -> None:  # noqa: ARG002  # the base class's signature
        return None

    def _walk(
        self,
        denoiser: Denoiser,
        path: GaussianPath,
        x: Tensor,
        noise: NoiseSource,  # noqa: ARG002  # as all of its kind
        start: float,
    ) -> Iterator[State]:
        for state in self._integrate(denoiser, path, x, start, path.t_min):
            x = state.x
            yield state
        yield State(
            path.t_data, denoiser(x, torch.full((len(x),), path.t_min, dtype=torch.float64, device=x.device)).x0
        )

    def inversion(self, denoiser: Denoiser, path: GaussianPath, x: Tensor) -> Iterator[State]:
        """From images x [B, C, H, W], taken to be at t_min, to noise at t_max; with clip none they come back."""
        return self._integrate(denoiser, path, x, path.t_min, path.t_max)

    def _integrate(
        self, denoiser: Denoiser, path: GaussianPath, x: Tensor, start: float, end: float
    ) -> Iterator[State]:
        """The state after each try. FloatingPointError where the steps do not arrive."""
        line = StraightLine(path)

        def slope(tau: Tensor, y: Tensor) -> Tensor:
            t = line.time(tau)
            return line.slope(denoiser(line.x(y, t), t))

        first, last = (line.tau(*path.at(t)) for t in (start, end))
        begin = x / line.scale(*path.at(start))
        for mean_t, tau, y in integrated(slope, begin, first, last, self.rtol, self.atol, line.time):
            yield State(mean_t, line.x(y, line.time(tau)))
