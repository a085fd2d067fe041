"""Guidance: from what a network predicts with and without a label, or what a classifier says, to what samplers see.

Every guidance turns a denoiser into another one, so that every sampler has all of them.
"""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from .denoiser import Denoiser, NetworkDenoiser, Prediction, expand
from .gaussian_path import GaussianPath
from .noisy_classifier import NoisyClassifier
from .record import Record

_SMALLEST_ALPHA = 1e-6  # below it nothing is left of the image that a classifier could tell


class NoGuidance(Record):
    """The network's prediction as it is."""

    evaluations: ClassVar[int] = 1
    """Of the network for each one that the sampler asks for."""
    classes: ClassVar[int] = 0
    """Classes that the guidance itself knows."""
    kind: Literal["none"] = "none"

    def guided(
        self,
        denoiser: NetworkDenoiser,
        label: Tensor | None,
        null: int,
        classifier: nn.Module | None = None,  # noqa: ARG002  # as all of its kind
    ) -> Denoiser:
        """The denoiser of images with these labels. label: int64 [B]; null: 0 where the network knows no classes."""
        return denoiser.of(label) if null and label is not None else denoiser


class _IntervalGuidance(Record):
    """Guidance of some strength, at some of the times."""

    scale: float = Field(2.0, ge=0)
    """How strongly."""
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

    def _scale(self, path: GaussianPath, t: Tensor, outside: float) -> Tensor:
        """`scale` within the interval. float64 [B]."""
        alpha, sigma = path.alpha(t), path.sigma(t)
        inside = sigma >= self.noise_above * alpha
        if self.noise_below is not None:
            inside &= sigma < self.noise_below * alpha
        return torch.where(inside, self.scale, outside).double()


class ClassifierFreeGuidance(_IntervalGuidance):
    """Away from the prediction without a label, beyond the one with it. Ho & Salimans 2021, eq. 6.

    prediction = unlabelled + scale (labelled - unlabelled), so that scale 0 ignores the label and 1 is no guidance;
    theirs is scale - 1. Both come from one call of the network, on twice the images.
    """

    evaluations: ClassVar[int] = 2
    classes: ClassVar[int] = 0
    kind: Literal["classifier_free"] = "classifier_free"
    scale: float = Field(2.0, ge=0)
    """0: the label is ignored; 1: the labelled prediction as it is; above: more typical, less varied images."""

    def guided(
        self,
        denoiser: NetworkDenoiser,
        label: Tensor | None,
        null: int,
        classifier: nn.Module | None = None,  # noqa: ARG002  # as all of its kind
    ) -> Denoiser:
        """The denoiser of images with these labels. label: int64 [B]; null: the label of images without one.

        A learned variance is the labelled prediction's, as in Peebles & Xie 2023's code.
        """
        assert label is not None
        both = denoiser.of(torch.cat((label, torch.full_like(label, null))))

        def guide(x_t: Tensor, t: Tensor) -> Prediction:
            doubled = both(torch.cat((x_t, x_t)), torch.cat((t, t)))
            scale = expand(self._scale(denoiser.path, t, outside=1.0), x_t)
            share = doubled.variance_share
            return Prediction(
                _extrapolated(doubled.x0, scale),
                _extrapolated(doubled.eps, scale),
                None if share is None else share.chunk(2)[0],
            )

        return guide


class ClassifierGuidance(_IntervalGuidance):
    """Along the gradient of a classifier of noisy images. Dhariwal & Nichol 2021, algorithm 2, on any path.

    eps - scale sigma grad log p(label | x_t), and x0 such that both still make up x_t. The network itself may know
    classes or not; scale 0 is no guidance, 1 the posterior of a perfect classifier.
    """

    evaluations: ClassVar[int] = 1
    kind: Literal["classifier"] = "classifier"
    scale: float = Field(1.0, ge=0)
    """0: the classifier is ignored; 1: by Bayes' rule; above: more typical, less varied images."""
    classifier: NoisyClassifier
    """The classifier, which is trained after the model where there is none yet."""

    @property
    def classes(self) -> int:
        """Classes that the classifier knows."""
        return self.classifier.classes

    def guided(
        self, denoiser: NetworkDenoiser, label: Tensor | None, null: int, classifier: nn.Module | None = None
    ) -> Denoiser:
        """The denoiser of images with these labels. label: int64 [B]. ValueError where there is no classifier."""
        if classifier is None or label is None:
            raise ValueError("guidance by a classifier needs the trained classifier, and a label for each image")
        network, path = classifier.eval(), denoiser.path
        plain = NO_GUIDANCE.guided(denoiser, label, null)

        def guide(x_t: Tensor, t: Tensor) -> Prediction:
            prediction = plain(x_t, t)
            alpha, sigma = path.alpha(t), path.sigma(t)
            # With alpha = 0 no classifier can tell, and x0 would be 0 / 0.
            scale = torch.where(alpha > _SMALLEST_ALPHA, self._scale(path, t, outside=0.0), 0.0)
            gradient = _log_probability_gradient(network, path, x_t, t, label)
            shift = expand(scale * sigma, x_t) * gradient
            to_image = sigma / alpha.clamp(min=_SMALLEST_ALPHA)
            return replace(prediction, x0=prediction.x0 + expand(to_image, x_t) * shift, eps=prediction.eps - shift)

        return guide


def _log_probability_gradient(
    classifier: nn.Module, path: GaussianPath, x_t: Tensor, t: Tensor, label: Tensor
) -> Tensor:
    """The gradient of log p(label | x_t) by x_t, also within inference mode. -> like x_t."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x_t.clone().requires_grad_()
        told = path.conditioning(t.clone()).to(x.dtype)
        log_p = F.log_softmax(classifier(x, told), dim=1).gather(1, label.clone()[:, None]).sum()
        (gradient,) = torch.autograd.grad(log_p, x)
    return gradient


def _extrapolated(doubled: Tensor, scale: Tensor) -> Tensor:
    labelled, unlabelled = doubled.chunk(2)
    return unlabelled + scale * (labelled - unlabelled)


NO_GUIDANCE = NoGuidance()

Guidance = Annotated[NoGuidance | ClassifierFreeGuidance | ClassifierGuidance, Field(discriminator="kind")]
