"""What training minimises: the denoising loss of a diffusion model, or the class of noisy images."""

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from .bound import bits_per_dim, bound_term
from .denoiser import expand
from .discrete_paths import DiscretePath
from .gaussian_path import GaussianPath
from .noisy_classifier import NoisyClassifier
from .spec import ModelSpec
from .targets import Target
from .variance import FIXED_VARIANCE, LearnedRange, Variance
from .weightings import Weighting


class Objective(Protocol):
    """A network and the loss that it is trained to lower."""

    @property
    def spec(self) -> ModelSpec:
        """The diffusion model, or the one that is guided."""

    def build(self) -> nn.Module:
        """The network, freshly initialised from torch's global generator."""

    def losses(
        self, network: nn.Module, x0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None, augmentation: Tensor | None
    ) -> Tensor:
        """One for each image: float32 [B]. x0: latents [B, C, H, W]; the rest as in `denoising_loss`."""


@dataclass(frozen=True)
class Denoising:
    """Training of the diffusion model itself."""

    spec: ModelSpec
    weighting: Weighting

    def build(self) -> nn.Module:
        """The model's network."""
        return self.spec.build()

    def losses(
        self, network: nn.Module, x0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None, augmentation: Tensor | None
    ) -> Tensor:
        """See `denoising_loss`."""
        spec = self.spec
        return denoising_loss(
            network, spec.path, spec.target, self.weighting, x0, t, eps, label, augmentation, spec.variance
        )


@dataclass(frozen=True)
class Classifying:
    """Training of the classifier that guides the diffusion model `spec`."""

    spec: ModelSpec
    classifier: NoisyClassifier

    def build(self) -> nn.Module:
        """The classifier's network."""
        channels, image_size, _ = self.spec.latent_shape
        return self.classifier.build(image_size, channels)

    def losses(
        self, network: nn.Module, x0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None, augmentation: Tensor | None
    ) -> Tensor:
        """Cross-entropy, nats, of the class of x_t. Dhariwal & Nichol 2021, section 4."""
        assert label is not None
        assert augmentation is None
        x_t, told = self.spec.noisy(x0, t, eps), self.spec.path.conditioning(t).to(x0.dtype)
        return F.cross_entropy(network(x_t, told).float(), label, reduction="none")


def denoising_loss(
    network: nn.Module,
    path: GaussianPath,
    target: Target,
    weighting: Weighting,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    label: Tensor | None = None,
    augmentation: Tensor | None = None,
    variance: Variance = FIXED_VARIANCE,
) -> Tensor:
    """Weighted mean squared error of the network's output, an image at a time.

    With target eps and weighting simple it is Ho et al. 2020, eq. 14. x0, eps: [B, C, H, W]; t: float64 [B] between the
    path's t_min and t_max; label: int64 [B] for a network that knows classes; augmentation: [B, n] for one that is told
    how its images were changed -> float32 [B]. With a learned variance the hybrid loss of Nichol & Dhariwal 2021, eq.
    16: plus bound_weight times the whole bound in bits/dim, of which T times this step's term is an estimate.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    convert = target.conversion(path, t)
    x_t = expand(alpha, x0) * x0 + expand(sigma, x0) * eps
    wanted = expand(convert.out_x0, x0) * x0 + expand(convert.out_eps, x0) * eps
    conditioning = path.conditioning(t).to(x0.dtype)
    told: tuple[Tensor | None, ...] = () if label is None else (label,)
    if augmentation is not None:
        told = (label, augmentation)
    raw: Tensor = network(expand(convert.scale, x0) * x_t, conditioning, *told)
    output, variance_share = variance.split(raw.float())
    error = (output - wanted).square().flatten(1).mean(1)
    loss = weighting.of_output(alpha, sigma, convert.x0_out).to(error.dtype) * error
    if variance_share is None:
        return loss
    assert isinstance(variance, LearnedRange)
    assert isinstance(path, DiscretePath)
    predicted = expand(convert.x0_x, x0) * x_t + expand(convert.x0_out, x0) * output.detach()  # the mean learns nothing
    bits = bits_per_dim(bound_term(path, x0, t, predicted, variance_share), x0[0].numel())
    return loss + variance.bound_weight * path.T * bits
