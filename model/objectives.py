"""What training minimises."""

from torch import Tensor, nn

from .denoiser import expand
from .gaussian_path import GaussianPath
from .targets import Target
from .weightings import Weighting


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
) -> Tensor:
    """Weighted mean squared error of the network's output, an image at a time.

    With target eps and weighting simple it is Ho et al. 2020, eq. 14. x0, eps: [B, C, H, W]; t: float64 [B] between the
    path's t_min and t_max; label: int64 [B] for a network that knows classes; augmentation: [B, n] for one
    that is told how its images were changed -> float32 [B].
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    convert = target.conversion(path, t)
    x_t = expand(alpha, x0) * x0 + expand(sigma, x0) * eps
    wanted = expand(convert.out_x0, x0) * x0 + expand(convert.out_eps, x0) * eps
    conditioning = path.conditioning(t).to(x0.dtype)
    told: tuple[Tensor | None, ...] = () if label is None else (label,)
    if augmentation is not None:
        told = (label, augmentation)
    output: Tensor = network(expand(convert.scale, x0) * x_t, conditioning, *told)
    error = (output.float() - wanted).square().flatten(1).mean(1)
    return weighting.of_output(alpha, sigma, convert.x0_out).to(error.dtype) * error
