"""What samplers share: the points of their time grid with all coefficients, and the states that they pass through.

A sampler is a record of its options with one method, `trajectory(denoiser, path, x, noise, start)`, a pure function of
its arguments. Coefficients are Python floats, computed once per grid, so that a sampler's loop never waits for the
device.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from .clipping import Clip, clipped
from .denoiser import Denoiser
from .gaussian_path import GaussianPath
from .grids import Grid, time_grid
from .record import Record

NoiseSource = Callable[[int], Tensor]
"""Number of the draw, from 0 -> standard normal noise shaped like x."""

_ROUNDING = 1e-9  # of a time


class State(NamedTuple):
    """x at one time of the way from noise to image."""

    t: float
    """The path's time; of an adaptive sampler the mean over the images of the batch."""
    x: Tensor
    """[B, C, H, W]."""


@dataclass(frozen=True)
class Point:
    """One time of a grid and what the path says there."""

    number: int
    """0 for the noisiest."""
    t: float
    alpha: float
    sigma: float
    lam: float
    """log(alpha / sigma); inf at the data, -inf where nothing is left of the image."""

    def times(self, x: Tensor) -> Tensor:
        """This time for every image of x. -> float64 [B]."""
        return torch.full((len(x),), self.t, dtype=torch.float64, device=x.device)


class SamplerBase(Record):
    """From noise to images. Options that every sampler has, and what it declares of itself."""

    order: ClassVar[int]
    """Of convergence in the number of steps; of samplers that add noise, that of the distribution's moments."""

    _eps_follows_x0: ClassVar[bool] = False
    """Whether the sampler sees an image only through the noise that belongs to it."""

    kind: str
    clip: Clip = "x0_and_eps"
    """How the predicted image is kept in range. x0: clipped to [-1, 1]; dynamic: clipped to its own 99.5th percentile
    and scaled back; with _and_eps, and always in euler, heun and rk45, the predicted noise is recomputed to fit."""

    def check(self, path: GaussianPath) -> None:
        """ValueError where this sampler cannot walk along the path."""
        raise NotImplementedError  # each sampler states its own

    def start(self, path: GaussianPath) -> float:
        """The time of the noise that `trajectory` wants, whose standard deviation is `path.prior_std` of it."""
        raise NotImplementedError  # each sampler states its own

    def evaluations(self, path: GaussianPath) -> int | None:
        """Calls of the network for each image; None where it depends on the images."""
        raise NotImplementedError  # each sampler states its own

    def trajectory(
        self, denoiser: Denoiser, path: GaussianPath, x: Tensor, noise: NoiseSource, start: float | None = None
    ) -> Iterator[State]:
        """From x [B, C, H, W], noise at time `start`, to the images: yields the state after each step.

        The last is at t_data. start: the time at which x is where that is x_t of an image, from the path's t_min to the
        sampler's own start. ValueError where `check` has one, and for another start.
        """
        self.check(path)
        noisiest = self.start(path)
        start = noisiest if start is None else start
        if not path.t_min <= start <= noisiest:
            raise ValueError(
                f"start {start:g} is none of this sampler's times on this path, expected {path.t_min:g} to {noisiest:g}"
            )
        return self._walk(clipped(denoiser, path, self.clip, self._eps_follows_x0), path, x, noise, start)

    def _walk(
        self, denoiser: Denoiser, path: GaussianPath, x: Tensor, noise: NoiseSource, start: float
    ) -> Iterator[State]:
        raise NotImplementedError  # each sampler states its own


class GridSampler(SamplerBase):
    """A sampler that steps from point to point of a grid, and from its last point to the data."""

    steps: int = Field(50, ge=1, le=100_000)
    """Number of steps; at most T on a path of T steps."""
    grid: Grid = "uniform"
    """Where the steps lie. Even in t: uniform, trailing, leading, linspace; denser near the data: quadratic, the DDIM
    paper's for CIFAR-10 (quadratic_paper: as in its code); even in the noise level: karras, lambda_uniform."""

    def check(self, path: GaussianPath) -> None:
        points = self.points(path)
        first = points[0]
        if first.lam > 0:
            raise ValueError(
                f"grid {self.grid} of {self.steps} steps starts at t = {first.t:g}, where more image than noise is "
                "left; use another grid or more steps"
            )
        for now, after in pairwise(points):
            if now.t != after.t and not after.lam > now.lam:
                raise ValueError(
                    f"nothing changes on this path between t = {now.t:g} and {after.t:g}, two of the sampler's times; "
                    "use a path that loses the image later, or fewer steps"
                )

    def start(self, path: GaussianPath) -> float:
        return time_grid(self.grid, path, self.steps)[0]

    def evaluations(self, path: GaussianPath) -> int:  # noqa: ARG002  # some need it
        return self.steps

    def points(self, path: GaussianPath, start: float | None = None) -> list[Point]:
        """The grid from its noisiest point, or from `start`, on, with the data as its last one.

        Numbers are those of the whole grid, so that each step draws the same noise wherever the way begins. A start
        between two points takes the noisier one's place; one that rounding alone tells from a point is that point.
        """
        times = [*time_grid(self.grid, path, self.steps), path.t_data]
        first = 0
        if start is not None:
            first = sum(t > start + _ROUNDING * abs(start) for t in times)
            if times[first] < start - _ROUNDING * abs(start):
                first -= 1
                times[first] = start
        t = torch.tensor(times, dtype=torch.float64, device="cpu")
        columns = (t, path.alpha(t), path.sigma(t), path.lam(t))
        return [Point(number, *row) for number, row in enumerate(torch.stack(columns, dim=1).tolist())][first:]

    def pairs(self, path: GaussianPath, start: float | None = None) -> Iterator[tuple[Point, Point]]:
        """Each step's beginning and end, from the noisiest, or from `start`, to the data."""
        return pairwise(self.points(path, start))

    def _walk(
        self, denoiser: Denoiser, path: GaussianPath, x: Tensor, noise: NoiseSource, start: float
    ) -> Iterator[State]:
        """Step after step. Samplers that look beyond one, or draw more than once in it, walk in a way of their own."""
        for now, after in self.pairs(path, start):
            x = self._step(denoiser, now, after, x, partial(noise, now.number))
            yield State(after.t, x)

    def _step(self, denoiser: Denoiser, now: Point, after: Point, x: Tensor, z: Callable[[], Tensor]) -> Tensor:
        """From x at `now` to x at the cleaner point `after`. z: draws noise like x."""
        raise NotImplementedError  # each sampler that does not walk otherwise states its own


def transition_variance(now: Point, after: Point) -> float:
    """Variance that the path adds between the cleaner point `after` and `now`. Kingma et al. 2021, appendix A.1."""
    return now.sigma**2 - (now.alpha / after.alpha) ** 2 * after.sigma**2


def posterior_std(now: Point, after: Point) -> float:
    """Std of x at the cleaner point given x now and x0. Ho et al. 2020, eq. 7; Song et al. 2021 (DDIM), eq. 16."""
    return after.sigma / now.sigma * math.sqrt(max(transition_variance(now, after), 0.0))


def posterior_mean(now: Point, after: Point, x: Tensor, x0: Tensor) -> Tensor:
    """Mean of x at the cleaner point given x now and x0. Ho et al. 2020, eq. 7, for any path."""
    ratio = now.alpha / after.alpha
    return (after.alpha * transition_variance(now, after) * x0 + ratio * after.sigma**2 * x) / now.sigma**2
