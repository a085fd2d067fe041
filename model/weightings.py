"""How much the error at each time counts in the loss.

A weighting is a factor w(t) on the squared error of the image, |x0 - prediction|^2; `simple` is 1 on the squared error
of the target itself, whatever it is. With k = d x0 / d F, an error of the output F is worth k^2 of the image's.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from .gaussian_path import GaussianPath
from .record import Record
from .targets import Target

_LARGEST_WEIGHT = 1e30  # the loss is float32


class _Weighting(Record):
    kind: str

    def check(self, path: GaussianPath, target: Target) -> None:
        """ValueError where the weights overflow, or vanish throughout, on the path."""
        t = path.training_time(torch.linspace(0, 1, 65, dtype=torch.float64, device="cpu")[:-1])
        weight = self.of_output(path.alpha(t), path.sigma(t), target.conversion(path, t).x0_out)
        if not (weight < _LARGEST_WEIGHT).all() or not (weight > 1 / _LARGEST_WEIGHT).any():
            raise ValueError(
                f"{self.kind} weights the loss by {float(weight.min()):.3g} to {float(weight.max()):.3g} on this path "
                "and target, more than float32 can hold; use other hyper-parameters or simple"
            )

    def of_output(self, alpha: Tensor, sigma: Tensor, x0_out: Tensor) -> Tensor:
        """Factor on the squared error of the network's output. All float64, shaped like t; x0_out is d x0 / d F."""
        return self.of_image(alpha, sigma) * x0_out**2

    def of_image(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Factor on the squared error of the image; SNR is (alpha / sigma)^2. All float64, shaped like t."""
        raise NotImplementedError  # each weighting below states one of the two


class Simple(_Weighting):
    """The plain squared error of what the network predicts. Ho et al. 2020, eq. 14."""

    kind: Literal["simple"] = "simple"

    def of_output(self, alpha: Tensor, sigma: Tensor, x0_out: Tensor) -> Tensor:  # noqa: ARG002  # as all of its kind
        return torch.ones_like(x0_out)


class SNR(_Weighting):
    """The squared error of the noise, whatever the network predicts. Salimans & Ho 2022, section 4."""

    kind: Literal["snr"] = "snr"

    def of_image(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / sigma) ** 2


class MinSNR(_Weighting):
    """Like snr, but clean times count no more than a limit. Hang et al. 2023, section 3.4."""

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = Field(5.0, gt=0)
    """Limit of the signal-to-noise ratio that counts."""

    def of_image(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return ((alpha / sigma) ** 2).clamp(max=self.gamma)


class P2(_Weighting):
    """Less weight on clean times, where details are made. Choi et al. 2022, eq. 8."""

    kind: Literal["p2"] = "p2"
    k: float = Field(1.0, gt=0)
    """Keeps the weight finite where there is hardly any signal."""
    gamma: float = Field(1.0, ge=0)
    """How strongly; 0 is snr."""

    def of_image(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        snr = (alpha / sigma) ** 2
        return snr / (self.k + snr) ** self.gamma


class EDMWeighting(_Weighting):
    """Unit weight on the output of a network with EDM's preconditioning. Karras et al. 2022, table 1."""

    kind: Literal["edm"] = "edm"
    sigma_data: float = Field(0.5, ge=1e-6, le=1e6)
    """Standard deviation of the images' pixels, which lie in [-1, 1]."""

    def of_image(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / sigma) ** 2 + self.sigma_data**-2


Weighting = Annotated[Simple | SNR | MinSNR | P2 | EDMWeighting, Field(discriminator="kind")]
