"""All that changes while training, in memory; checkpoint.py has it on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model import EMAs, LossHistory

from .parallel import load_whole

if TYPE_CHECKING:  # a step needs neither Ray nor files
    from .curve_buffer import Point


@dataclass
class TrainState:
    """All that changes while training."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMAs
    images_seen: int = 0
    curve: "list[Point]" = field(default_factory=list)
    """Its points so far, on rank 0: a kill may keep the last ones from the driver's file."""
    history: LossHistory | None = None
    """Where the times depend on the losses so far."""
    skipped: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.int64))
    """Steps that were left out because they were not finite: in all, in a row up to now, and most in a row."""
    sums: list[float] = field(default_factory=list)
    """What the next point of the curve has taken up so far, of all workers; empty right after a point."""

    def begin_with(self, weights: Mapping[str, Tensor]) -> None:
        """Network and averages begin with these weights; all else is as at any beginning."""
        load_whole(self.network, weights)
        for ema in self.ema.averages:
            load_whole(ema, weights)
