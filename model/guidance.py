"""Guidance: from what a network predicts with and without a label to what the sampler sees.

Every guidance turns a denoiser into another one, so that every sampler has all of them.
"""

from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from .denoiser import Denoiser, NetworkDenoiser, Prediction, expand
from .record import Record


class NoGuidance(Record):
    """The network's prediction as it is."""

    evaluations: ClassVar[int] = 1
    """Of the network for each one that the sampler asks for."""
    kind: Literal["none"] = "none"

    def guided(self, denoiser: NetworkDenoiser, label: Tensor, null: int) -> Denoiser:  # noqa: ARG002  # as all of its kind
        """The denoiser of images with these labels. label: int64 [B]."""
        return denoiser.of(label)


class ClassifierFreeGuidance(Record):
    """Away from the prediction without a label, beyond the one with it. Ho & Salimans 2021, eq. 6.

    prediction = unlabelled + scale (labelled - unlabelled), so that scale 0 ignores the label and 1 is no guidance;
    theirs is scale - 1. Both come from one call of the network, on twice the images.
    """

    evaluations: ClassVar[int] = 2
    kind: Literal["classifier_free"] = "classifier_free"
    scale: float = Field(2.0, ge=0)
    """0: the label is ignored; 1: the labelled prediction as it is; above: more typical, less varied images."""
    noise_above: float = Field(0.0, ge=0)
    """Guided only where sigma / alpha is at least this. Kynkaanniemi et al. 2024."""
    noise_below: float | None = Field(None, gt=0)
    """Guided only where sigma / alpha is less than this; null: no upper limit."""

    @model_validator(mode="after")
    def _interval_is_one(self) -> Self:
        if self.noise_below is not None and self.noise_below <= self.noise_above:
            raise ValueError(
                f"noise_below {self.noise_below} is not above noise_above {self.noise_above}; nothing would be guided"
            )
        return self

    def guided(self, denoiser: NetworkDenoiser, label: Tensor, null: int) -> Denoiser:
        """The denoiser of images with these labels. label: int64 [B]; null: the label of images without one."""
        both = denoiser.of(torch.cat((label, torch.full_like(label, null))))

        def guide(x_t: Tensor, t: Tensor) -> Prediction:
            doubled = both(torch.cat((x_t, x_t)), torch.cat((t, t)))
            scale = expand(self._scale(denoiser, t), x_t)
            return Prediction(_extrapolated(doubled.x0, scale), _extrapolated(doubled.eps, scale))

        return guide

    def _scale(self, denoiser: NetworkDenoiser, t: Tensor) -> Tensor:
        """`scale` within the interval, 1 elsewhere. float64 [B]."""
        alpha, sigma = denoiser.path.alpha(t), denoiser.path.sigma(t)
        inside = sigma >= self.noise_above * alpha
        if self.noise_below is not None:
            inside &= sigma < self.noise_below * alpha
        return torch.where(inside, self.scale, 1.0).double()


def _extrapolated(doubled: Tensor, scale: Tensor) -> Tensor:
    labelled, unlabelled = doubled.chunk(2)
    return unlabelled + scale * (labelled - unlabelled)


NO_GUIDANCE = NoGuidance()

Guidance = Annotated[NoGuidance | ClassifierFreeGuidance, Field(discriminator="kind")]
