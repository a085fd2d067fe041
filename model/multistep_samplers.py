"""Samplers that solve the ODE exactly but for the prediction, which they extrapolate: DPM-Solver++ and UniPC.

Both step in lambda = log(alpha / sigma) with the predicted image. Steps from lambda = -inf, where nothing is left of
the image, and to +inf, the data, are of first order, which is exact there in the limit.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from .denoiser import Denoiser
from .gaussian_path import GaussianPath
from .sampler import GridSampler, NoiseSource, Point, State


class _Earlier(NamedTuple):
    """The image predicted at an earlier point of finite lambda."""

    lam: float
    x0: Tensor


class _LambdaSampler(GridSampler):
    def check(self, path: GaussianPath) -> None:
        super().check(path)
        points = self.points(path)
        if any(now.t == after.t for now, after in pairwise(points)):
            raise ValueError(
                f"grid {self.grid} visits some of its {self.steps} times twice, and a step of length 0 has no "
                "extrapolation; use quadratic"
            )


class DPMSolverPP(_LambdaSampler):
    """DPM-Solver++ of second order. Lu et al. 2022b, algorithms 1 (2s) and 2 (2m)."""

    order: ClassVar[int] = 2
    kind: Literal["dpm_solver_pp"] = "dpm_solver_pp"
    variant: Literal["2m", "2s", "2m_sde"] = "2m"
    """2m: multistep, one evaluation of the network a step; 2s: singlestep, two; 2m_sde: multistep with noise."""

    def evaluations(self, path: GaussianPath) -> int:
        if self.variant != "2s":
            return self.steps
        return sum(2 if _finite(now, after) else 1 for now, after in self.pairs(path))

    def _walk(
        self, denoiser: Denoiser, path: GaussianPath, x: Tensor, noise: NoiseSource, start: float
    ) -> Iterator[State]:
        earlier: _Earlier | None = None
        for now, after in self.pairs(path, start):
            x0 = image = denoiser(x, now.times(x)).x0
            if not _finite(now, after):
                pass  # first order
            elif self.variant == "2s":
                x0 = self._halfway(denoiser, path, now, after, x, x0)
            elif earlier is not None:
                x0 = _extrapolated(now, after, x0, earlier)
            if self.variant == "2m_sde":
                x = _noisy_step(now, after, x, x0, noise)
            else:
                x = _exponential_step(now, after, x, x0)
            earlier = _Earlier(now.lam, image) if math.isfinite(now.lam) else None
            yield State(after.t, x)

    @staticmethod
    def _halfway(denoiser: Denoiser, path: GaussianPath, now: Point, after: Point, x: Tensor, x0: Tensor) -> Tensor:
        """The image predicted half a step on, in lambda. Algorithm 1 with r = 1/2, where it takes x0's place."""
        lam = (now.lam + after.lam) / 2
        t = float(path.time(torch.tensor(lam, dtype=torch.float64, device="cpu")))
        middle = Point(now.number, t, *path.at(t), lam)
        return denoiser(_exponential_step(now, middle, x, x0), middle.times(x)).x0


class UniPC(_LambdaSampler):
    """UniPC with a predictor and a corrector of two points each, B(h) = e^h - 1. Zhao et al. 2023, section 3.

    The corrector uses the prediction that the next step needs anyway, so a step is one evaluation of the network; it
    raises the order from 2 to 3 (their section 3); on a path that loses the image the first step is of first order, and
    2 remains. The states are the predictor's.
    """

    order: ClassVar[int] = 3
    kind: Literal["unipc"] = "unipc"

    def _walk(
        self,
        denoiser: Denoiser,
        path: GaussianPath,
        x: Tensor,
        noise: NoiseSource,  # noqa: ARG002  # as all of its kind
        start: float,
    ) -> Iterator[State]:
        before: Point | None = None
        begun, known = x, list[_Earlier]()  # where the last step began; images predicted so far, the newest first
        for now, after in self.pairs(path, start):
            x0 = denoiser(x, now.times(x)).x0
            if before is not None and known:
                x = self._corrected(before, now, begun, known, x0)
            known = [_Earlier(now.lam, x0), *known[:1]] if math.isfinite(now.lam) else []
            begun, before = x, now
            two_points = len(known) > 1 and _finite(now, after)
            x = _exponential_step(now, after, x, _extrapolated(now, after, x0, known[1]) if two_points else x0)
            yield State(after.t, x)

    @staticmethod
    def _corrected(before: Point, now: Point, begun: Tensor, known: list[_Earlier], x0: Tensor) -> Tensor:
        """UniC: the step to `now` again, with the image x0 predicted there. One known point, or two."""
        newest = known[0]
        if len(known) == 1:
            return _exponential_step(before, now, begun, newest.x0 + (x0 - newest.x0) / 2)
        h = now.lam - before.lam
        decay = math.expm1(-h)
        b = (-1 / h - 1 / decay, 2 / h**2 + (2 / h - 1) / decay)
        ratio = (known[1].lam - newest.lam) / h
        weight_earlier = (b[0] - b[1]) / (1 - ratio)
        weight_now = b[0] - weight_earlier
        image = newest.x0 + weight_earlier / ratio * (known[1].x0 - newest.x0) + weight_now * (x0 - newest.x0)
        return _exponential_step(before, now, begun, image)


def _finite(now: Point, after: Point) -> bool:
    return math.isfinite(now.lam) and math.isfinite(after.lam)


def _extrapolated(now: Point, after: Point, x0: Tensor, earlier: _Earlier) -> Tensor:
    """The image x0, predicted at `now`, carried on to the middle of the step. Lu et al. 2022b, algorithm 2."""
    ratio = (now.lam - earlier.lam) / (after.lam - now.lam)
    return x0 + (x0 - earlier.x0) / (2 * ratio)


def _exponential_step(now: Point, after: Point, x: Tensor, x0: Tensor) -> Tensor:
    """The ODE's solution for a prediction that stays x0. Lu et al. 2022b, proposition 4.1."""
    return after.sigma / now.sigma * x - after.alpha * math.expm1(now.lam - after.lam) * x0


def _noisy_step(now: Point, after: Point, x: Tensor, x0: Tensor, noise: NoiseSource) -> Tensor:
    """The SDE's solution for a prediction that stays x0: SDE-DPM-Solver++ of Lu et al. 2022b."""
    h = after.lam - now.lam
    x = after.sigma / now.sigma * math.exp(-h) * x - after.alpha * math.expm1(-2 * h) * x0
    return x + after.sigma * math.sqrt(-math.expm1(-2 * h)) * noise(now.number) if after.sigma > 0 else x
