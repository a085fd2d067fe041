"""Keeping the predicted image within its range while sampling."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from .denoiser import Denoiser, Prediction, coefficients
from .gaussian_path import GaussianPath

Clip = Literal["none", "x0", "x0_and_eps", "dynamic", "dynamic_and_eps"]

_PERCENTILE = 0.995


def clipped(denoiser: Denoiser, path: GaussianPath, clip: Clip, eps_follows: bool = False) -> Denoiser:
    """The denoiser, its image kept in range. eps_follows: as if the clip's name ended in _and_eps."""
    if clip == "none":
        return denoiser

    def clipping(x_t: Tensor, t: Tensor) -> Prediction:
        prediction = denoiser(x_t, t)
        x0 = _threshold(prediction.x0) if clip.startswith("dynamic") else prediction.x0.clamp(-1, 1)
        if not (eps_follows or clip.endswith("_and_eps")):
            return replace(prediction, x0=x0)
        alpha, sigma = coefficients(path, t, x_t)
        return replace(prediction, x0=x0, eps=(x_t - alpha * x0) / sigma)

    return clipping


def _threshold(x0: Tensor) -> Tensor:
    """Dynamic thresholding, an image at a time. Saharia et al. 2022, section 2.3."""
    limit = torch.quantile(x0.abs().flatten(1), _PERCENTILE, dim=1).clamp(min=1).view(-1, 1, 1, 1)
    return x0.clamp(-limit, limit) / limit
