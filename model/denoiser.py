"""The denoiser: the only thing that objectives and samplers see of a trained model."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from .gaussian_path import GaussianPath
from .targets import Target
from .variance import FIXED_VARIANCE, Variance


@dataclass(frozen=True)
class Prediction:
    """What a denoiser makes of x_t; all [B, C, H, W]. Unless x0 was clipped, x_t = alpha(t) x0 + sigma(t) eps."""

    x0: Tensor
    eps: Tensor
    variance_share: Tensor | None = None
    """Share of log(beta) in the log variance of a step, log(posterior variance) having the rest; None: not learned."""


class Denoiser(Protocol):
    """Any callable (x_t [B, C, H, W], t float64 [B]) -> Prediction."""

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction: ...


class NetworkDenoiser:
    """A network on its path, with what it was trained to predict."""

    def __init__(
        self,
        network: nn.Module,
        path: GaussianPath,
        target: Target,
        label: Tensor | None = None,
        variance: Variance = FIXED_VARIANCE,
    ) -> None:
        self.network = network
        self.path = path
        self.target = target
        self.label = label
        self.variance = variance

    def of(self, label: Tensor) -> "NetworkDenoiser":
        """The same for images of these labels. int64 [B], the batch that it will be asked about."""
        return NetworkDenoiser(self.network, self.path, self.target, label, self.variance)

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        convert = self.target.conversion(self.path, t)
        conditioning = self.path.conditioning(t).to(x_t.dtype)
        label = () if self.label is None else (self.label,)
        raw = self.network(expand(convert.scale, x_t) * x_t, conditioning, *label).to(x_t.dtype)
        output, variance_share = self.variance.split(raw)
        return Prediction(
            x0=expand(convert.x0_x, x_t) * x_t + expand(convert.x0_out, x_t) * output,
            eps=expand(convert.eps_x, x_t) * x_t + expand(convert.eps_out, x_t) * output,
            variance_share=variance_share,
        )


def expand(factor: Tensor, x: Tensor) -> Tensor:
    """A number for each image, in x's dtype and shaped to multiply x. factor: [B] -> [B, 1, 1, 1]."""
    return factor.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def coefficients(path: GaussianPath, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha(t) and sigma(t) in x's dtype, shaped to multiply x. t: float64 [B] -> two of [B, 1, 1, 1]."""
    return expand(path.alpha(t), x), expand(path.sigma(t), x)
