"""What training minimises."""

from torch import Tensor, nn

from .denoiser import coefficients
from .paths import Path


def simple_loss(network: nn.Module, path: Path, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error of the predicted noise, an image at a time. Ho et al. 2020, eq. 14.

    x0, eps: [B, C, H, W]; t: int64 [B] in [0, T) -> float32 [B].
    """
    alpha, sigma = coefficients(path, t, x0)
    predicted: Tensor = network(alpha * x0 + sigma * eps, t)
    return (predicted.float() - eps).square().flatten(1).mean(1)
