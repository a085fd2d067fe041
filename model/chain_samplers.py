"""Samplers that walk DDPM's Markov chain backwards, or the chains with the same marginals: DDPM, DDIM, Langevin."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from .denoiser import Denoiser, Prediction
from .gaussian_path import GaussianPath
from .grids import Grid
from .sampler import GridSampler, NoiseSource, Point, State, posterior_mean, posterior_std, transition_variance
from .variance import StepVariance


class ReverseChain(GridSampler):
    """The reverse Markov chain, of which each step is a draw. Ho et al. 2020, eq. 7."""

    variance: StepVariance = "fixed_large"
    """Variance of a step: beta_tilde (the posterior's), beta, or for each pixel between them as the network has learned
    it; the DDPM paper reports fixed_large for CIFAR-10, where steps are many; with few, or where noise explodes (edm,
    ve_sde), fixed_small is the better one."""

    def _step(self, denoiser: Denoiser, now: Point, after: Point, x: Tensor, z: Callable[[], Tensor]) -> Tensor:
        """A draw of x at the cleaner point; z is asked for noise unless that is the data."""
        prediction = denoiser(x, now.times(x))
        x = posterior_mean(now, after, x, prediction.x0)
        return x + self._std(now, after, prediction) * z() if after.sigma > 0 else x

    def _std(self, now: Point, after: Point, prediction: Prediction) -> float | Tensor:
        small, large = posterior_std(now, after), math.sqrt(max(transition_variance(now, after), 0.0))
        if self.variance == "fixed_small":
            return small
        if self.variance == "fixed_large":
            return large
        if prediction.variance_share is None:
            raise ValueError("variance learned, but the model has none; use fixed_small or fixed_large")
        if small == 0:  # two points of the grid at one time
            return 0.0
        return small * (prediction.variance_share * math.log(large / small)).exp()


class Ancestral(ReverseChain):
    """DDPM's own sampler: draw from the reverse Markov chain. Ho et al. 2020, algorithm 2 and eq. 7.

    With fewer steps than T, beta is that of the steps taken together. No noise is added in the last step, so the rule
    for fixed_large's variance at t = 0 in Ho et al.'s code concerns likelihoods only.
    """

    order: ClassVar[int] = 1
    kind: Literal["ancestral"] = "ancestral"
    steps: int = Field(1000, ge=1, le=100_000)
    """Number of steps, one evaluation of the network each; at most T on a path of T steps."""


class DDIM(GridSampler):
    """Denoising diffusion implicit models. Song, Meng & Ermon 2021, eq. 12 and 16."""

    order: ClassVar[int] = 1
    kind: Literal["ddim"] = "ddim"
    grid: Grid = "quadratic"
    """Where the steps lie. Even in t: uniform, trailing, leading, linspace; denser near the data: quadratic, the DDIM
    paper's for CIFAR-10 (quadratic_paper: as in its code); even in the noise level: karras, lambda_uniform."""
    eta: float = Field(0.0, ge=0, le=1)
    """0: deterministic; 1: as much noise as ancestral sampling adds between these steps."""

    def _step(self, denoiser: Denoiser, now: Point, after: Point, x: Tensor, z: Callable[[], Tensor]) -> Tensor:
        return _renoised(after, denoiser(x, now.times(x)), self.eta * posterior_std(now, after), z)

    def inversion(self, denoiser: Denoiser, path: GaussianPath, x: Tensor) -> Iterator[State]:
        """From images x [B, C, H, W] to the noise that `trajectory` (eta 0, clip none) turns into about them again.

        The steps of the same grid backwards, with the prediction at the cleaner end of each; the first, from the data,
        where a network has nothing to say, takes the one at the cleanest time. Song et al. 2021 (DDIM), section 4.3.
        """
        self.check(path)
        *noisier, cleanest, _ = self.points(path)
        prediction = denoiser(x, cleanest.times(x))
        x = cleanest.alpha * x + cleanest.sigma * prediction.eps
        yield State(cleanest.t, x)
        for now, after in pairwise([cleanest, *reversed(noisier)]):
            prediction = denoiser(x, now.times(x))
            x = after.alpha * prediction.x0 + after.sigma * prediction.eps
            yield State(after.t, x)


class PredictorCorrector(GridSampler):
    """Langevin steps at each time, then one of ancestral sampling. Song et al. 2021, algorithms 2 and 4.

    A step's size is 2 (snr |z| / |score|)^2 with both norms as if x were pure noise: 2 snr^2 sigma^2. Theirs are means
    over the batch, which tie its images together. Where x is indeed noise, steps of this size leave 1 / (1 - snr^2)
    times the right variance; nearer to the data they matter less and less.
    """

    order: ClassVar[int] = 1
    kind: Literal["predictor_corrector"] = "predictor_corrector"
    steps: int = Field(500, ge=1, le=100_000)
    """Number of times, with 1 + corrector_steps evaluations of the network at each; at most T on a path of T steps."""
    corrector_steps: int = Field(1, ge=0, le=1_000)
    """Langevin steps at each time."""
    snr: float = Field(0.16, gt=0, lt=1)
    """Ratio of the score's to the noise's norm in a Langevin step; Song et al. tune 0.01 to 0.2."""

    def evaluations(self, path: GaussianPath) -> int:  # noqa: ARG002  # the base class's signature
        return self.steps * (1 + self.corrector_steps)

    def _walk(
        self, denoiser: Denoiser, path: GaussianPath, x: Tensor, noise: NoiseSource, start: float
    ) -> Iterator[State]:
        draws = 1 + self.corrector_steps
        for now, after in self.pairs(path, start):
            for step in range(self.corrector_steps):
                x = self._langevin(denoiser, now, x, noise(now.number * draws + step))
            x = posterior_mean(now, after, x, denoiser(x, now.times(x)).x0)
            if after.sigma > 0:
                x = x + posterior_std(now, after) * noise(now.number * draws + self.corrector_steps)
            yield State(after.t, x)

    def _langevin(self, denoiser: Denoiser, point: Point, x: Tensor, z: Tensor) -> Tensor:
        size = 2 * (self.snr * point.sigma) ** 2
        score = -denoiser(x, point.times(x)).eps / point.sigma
        return x + size * score + math.sqrt(2 * size) * z


def _renoised(after: Point, prediction: Prediction, std: float, z: Callable[[], Tensor]) -> Tensor:
    """The predicted image at `after`; of its noise a part of this std is fresh. Song, Meng & Ermon 2021, eq. 12."""
    x = after.alpha * prediction.x0 + math.sqrt(max(after.sigma**2 - std**2, 0.0)) * prediction.eps
    return x + std * z() if std > 0 else x
