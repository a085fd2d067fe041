"""Exponential moving average of a network's weights: the weights that one samples with."""

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor, nn

from .record import Record


class EMAConfig(Record):
    """Length of the average, in images, so that it does not change its meaning with the batch size."""

    half_life_images: float = Field(887_184, gt=0)
    """Images after which a weight's share has halved; 887,184 is a decay of 0.9999 per batch of 128 (Ho et al.
    2020)."""
    ramp: float | None = Field(0.05, gt=0)
    """The half-life is at most this share of the images seen, so that early weights are soon forgotten (Karras et
    al. 2022, appendix F.2); null: full length from the first step, as in Ho et al. 2020."""

    def decay(self, images_seen: int, batch_images: int) -> float:
        """Weight of the old average in the update after `batch_images` more images, in [0, 1)."""
        half_life = self.half_life_images
        if self.ramp is not None:
            half_life = min(half_life, images_seen * self.ramp)
        return float(0.5 ** (batch_images / half_life)) if half_life > 0 else 0.0


class EMA:
    """The average itself: a float32 copy of every parameter, in the network's order. Buffers are not averaged."""

    def __init__(self, network: nn.Module) -> None:
        self.names = [name for name, _ in network.named_parameters()]
        self.weights = [parameter.detach().float().clone() for parameter in network.parameters()]

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor], decay: float) -> None:
        """Average <- decay * average + (1 - decay) * parameters, for all tensors in one fused call."""
        torch._foreach_lerp_(self.weights, list(parameters), 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Name to weight, loadable by the network itself."""
        return dict(zip(self.names, self.weights, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over the weights of `state`. KeyError where one is missing."""
        for name, weight in zip(self.names, self.weights, strict=True):
            weight.copy_(state[name])
