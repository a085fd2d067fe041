"""The denoiser: the only thing that objectives and samplers see of a trained model."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from .paths import Path


@dataclass(frozen=True)
class Prediction:
    """What a denoiser makes of x_t; both are [B, C, H, W], and x_t = alpha(t) x0 + sigma(t) eps holds."""

    x0: Tensor
    eps: Tensor


class Denoiser(Protocol):
    """Any callable (x_t [B, C, H, W], t int64 [B]) -> Prediction."""

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction: ...


class EpsDenoiser:
    """A network that predicts the noise. Ho et al. 2020, eq. 11 solved for x0."""

    def __init__(self, network: nn.Module, path: Path) -> None:
        self.network = network
        self.path = path

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        eps = self.network(x_t, t).to(x_t.dtype)
        alpha, sigma = coefficients(self.path, t, x_t)
        return Prediction(x0=(x_t - sigma * eps) / alpha, eps=eps)


def coefficients(path: Path, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha(t) and sigma(t) in x's dtype, shaped to multiply x. t: int64 [B] -> two of [B, 1, 1, 1]."""
    shape = (-1,) + (1,) * (x.ndim - 1)
    return path.alpha(t).to(x.dtype).view(shape), path.sigma(t).to(x.dtype).view(shape)
