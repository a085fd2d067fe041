"""At which times a network is trained: the distribution of t, and how evenly a batch covers it.

Every time is a function of the seed and the image's position in the endless stream of training images, never of rank or
world size; a global batch is `batch_size` positions from a multiple of it.
"""

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from .gaussian_path import GaussianPath
from .random import Stream, uniform
from .record import Record


class Times(NamedTuple):
    """The times of a batch, and what each loss is multiplied by to make up for times drawn more or less often."""

    t: Tensor
    """float64 [B]."""
    importance: Tensor
    """float32 [B]."""
    interval: Tensor | None = None
    """Of the loss history, int64 [B]; None where there is none."""


class LossHistory(nn.Module):
    """The last losses of each interval of the path; saved with the training, as the times depend on it."""

    losses: Tensor
    counts: Tensor

    def __init__(self, intervals: int, length: int) -> None:
        super().__init__()
        self.register_buffer("losses", torch.zeros(intervals, length))
        self.register_buffer("counts", torch.zeros(intervals, dtype=torch.int64))

    def add(self, interval: Tensor, losses: Tensor) -> None:
        """Takes up the losses of a global batch, in the order of its images. int64 [B], float32 [B]."""
        length = self.losses.shape[1]
        order = interval.argsort(stable=True)
        interval, losses = interval[order], losses[order]
        position = torch.arange(len(interval), device=interval.device)
        earlier = position - torch.searchsorted(interval, interval)  # images before this one in its interval
        remaining = torch.searchsorted(interval, interval, right=True) - position  # this one and those after it
        slot = interval * length + (self.counts[interval] + earlier) % length
        spare = self.losses.numel()  # where losses go that later ones of the same batch would overwrite
        slots = torch.cat((self.losses.flatten(), self.losses.new_zeros(1)))
        slots[torch.where(remaining <= length, slot, spare)] = losses
        self.losses.copy_(slots[:spare].view_as(self.losses))
        self.counts.index_add_(0, interval, torch.ones_like(interval))


class _TimeSampling(Record):
    def shares(self, seed: int, positions: Tensor, batch_size: int) -> Tensor:  # noqa: ARG002  # stratified needs it
        """Of each image a number in (0, 1). positions: int64 [B]; batch_size: of the global batch -> float64 [B]."""
        return uniform(seed, Stream.TIME, positions)

    def times(self, path: GaussianPath, shares: Tensor, history: LossHistory | None) -> Times:  # noqa: ARG002  # as all of its kind
        """What the shares stand for on this path."""
        return Times(path.training_time(shares), torch.ones_like(shares, dtype=torch.float32))

    def new_history(self) -> LossHistory | None:
        """An empty record of losses, where this way of sampling looks at one."""
        return None


class UniformTimes(_TimeSampling):
    """Every time alike, each image for itself. Ho et al. 2020, algorithm 1."""

    kind: Literal["uniform"] = "uniform"


class StratifiedTimes(_TimeSampling):
    """Uniform, but one time in each of batch_size equal intervals: less variance. After Kingma et al. 2021, I.1."""

    kind: Literal["stratified"] = "stratified"

    def shares(self, seed: int, positions: Tensor, batch_size: int) -> Tensor:
        return (positions % batch_size + super().shares(seed, positions, batch_size)) / batch_size


class AntitheticTimes(_TimeSampling):
    """Uniform, in pairs u and 1 - u. Song et al. 2021 (DDIM), published code."""

    kind: Literal["antithetic"] = "antithetic"

    def shares(self, seed: int, positions: Tensor, batch_size: int) -> Tensor:
        second = positions % 2
        u = super().shares(seed, positions - second, batch_size)
        return torch.where(second.bool(), 1 - u, u)


class LogitNormalTimes(_TimeSampling):
    """log(sigma / alpha) is normal: the logit-normal t of rectified flow, and EDM's log-normal sigma.

    Esser et al. 2024, section 3.1 (mean 0, std 1); Karras et al. 2022, table 1 (mean -1.2, std 1.2).
    """

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    """Of log(sigma / alpha)."""
    std: float = Field(1.0, gt=0)
    """Of log(sigma / alpha)."""

    def times(self, path: GaussianPath, shares: Tensor, history: LossHistory | None) -> Times:  # noqa: ARG002  # as all of its kind
        t = path.time(-(self.mean + self.std * torch.special.ndtri(shares)))
        return Times(path.nearest_training_time(t), torch.ones_like(shares, dtype=torch.float32))


class LossSecondMomentTimes(_TimeSampling):
    """Times more often where the loss is large: p proportional to sqrt(E[L^2]). Nichol & Dhariwal 2021, eq. 18.

    Intervals of the path take the place of their single steps; uniform until every interval has its losses.
    """

    kind: Literal["loss_second_moment"] = "loss_second_moment"
    intervals: int = Field(100, ge=2)
    """Into so many equal intervals is the path divided."""
    history: int = Field(10, ge=1)
    """Losses of each interval that are remembered."""
    uniform_share: float = Field(1e-3, gt=0, le=1)
    """Share of uniform times, so that no interval is forgotten."""

    def new_history(self) -> LossHistory:
        return LossHistory(self.intervals, self.history)

    def times(self, path: GaussianPath, shares: Tensor, history: LossHistory | None) -> Times:
        """The inverse of the distribution function, which is linear in each interval."""
        assert history is not None
        p = self._probabilities(history)
        cumulative = p.cumsum(0)
        interval = torch.searchsorted(cumulative, shares).clamp(max=self.intervals - 1)
        before = cumulative[interval] - p[interval]
        within = ((shares - before) / p[interval]).clamp(0, 1 - 1e-9)
        importance = 1 / (self.intervals * p[interval])
        return Times(path.training_time((interval + within) / self.intervals), importance.float(), interval)

    def _probabilities(self, history: LossHistory) -> Tensor:
        even = torch.full_like(history.counts, 1, dtype=torch.float64) / self.intervals
        moment = history.losses.double().square().mean(1).sqrt()
        total = moment.sum()
        complete = (history.counts >= self.history).all() & (total > 0)
        p = (1 - self.uniform_share) * moment / torch.where(total > 0, total, 1.0) + self.uniform_share * even
        return torch.where(complete, p, even)


TimeSampling = Annotated[
    UniformTimes | StratifiedTimes | AntitheticTimes | LogitNormalTimes | LossSecondMomentTimes,
    Field(discriminator="kind"),
]
"""At which times a network is trained: one of them, told apart by `kind`."""
