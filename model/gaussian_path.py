"""What every path has in common: x_t = alpha(t) x_0 + sigma(t) eps, from the data to noise.

A path is a record of hyper-parameters with `alpha(t)` and `sigma(t)`; all else follows from these two. Times are
float64: the data lie at `t_data`, where alpha = 1 and sigma = 0; a network is asked at times from `t_min`, the
cleanest, to `t_max`, the noisiest. lambda(t) = log(alpha / sigma) falls from +inf at the data; samplers and schedules
of every family meet in it.
"""

import torch
from torch import Tensor

from .record import Record

_SMALLEST_ALPHA = 1e-30  # below it sigma / alpha is no float32


class GaussianPath(Record):
    """How data become noise. Times are float64 tensors of any shape; results have the shape and device of t."""

    kind: str

    @property
    def t_data(self) -> float:
        """Time of the data."""
        return 0.0

    @property
    def t_min(self) -> float:
        """The cleanest time at which a network is asked."""
        raise NotImplementedError  # each path states its own

    @property
    def t_max(self) -> float:
        """The noisiest time, where sampling begins."""
        raise NotImplementedError  # each path states its own

    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data at time t. -> float64, like t."""
        raise NotImplementedError  # each path states its own

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at time t. -> float64, like t."""
        raise NotImplementedError  # each path states its own

    def time(self, lam: Tensor) -> Tensor:
        """The time at which lambda has this value, the inverse of `lam`. -> float64, like lam."""
        raise NotImplementedError  # each path states its own

    def lam(self, t: Tensor) -> Tensor:
        """lambda(t) = log(alpha / sigma), half the log signal-to-noise ratio: +inf at the data, -inf where alpha = 0.

        Lu et al. 2022 (DPM-Solver), section 2.
        """
        return self.alpha(t).log() - self.sigma(t).log()

    def conditioning(self, t: Tensor) -> Tensor:
        """What the network is told of t, in the units of its time embedding. -> float64, like t."""
        raise NotImplementedError  # each path states its own

    def training_time(self, u: Tensor) -> Tensor:
        """The time at the share u of the path, 0 <= u <= 1; even shares are even times. -> float64, like u."""
        return self.t_min + u * (self.t_max - self.t_min)

    def nearest_training_time(self, t: Tensor) -> Tensor:
        """Of all times that training visits, the one closest to t. -> float64, like t."""
        return t.clamp(self.t_min, self.t_max)

    def prior_std(self, t: float) -> float:
        """Standard deviation of the noise that sampling starts from at the noisy time t."""
        return self.at(t)[1]

    @property
    def loses_image(self) -> bool:
        """Whether nothing is left of the image at t_max: alpha = 0, lambda = -inf."""
        return self.at(self.t_max)[0] < _SMALLEST_ALPHA

    def at(self, t: float) -> tuple[float, float]:
        """Alpha and sigma at one time, as numbers."""
        time = torch.tensor(t, dtype=torch.float64, device="cpu")
        return float(self.alpha(time)), float(self.sigma(time))
