"""How likely real images are under a trained model, in bits for each pixel and channel: bits/dim.

Of images of 8 bits. For a model that is told classes it is the likelihood of an image given its class.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from model import (
    Bound,
    DiscretePath,
    LearnedRange,
    ModelSpec,
    Record,
    StepVariance,
    TrainedModel,
    bits_per_dim,
    bits_per_dim_of_density,
    bound_noise,
    clipped,
    dequantised,
    ode_log_likelihood,
    probe_signs,
    rate_distortion,
    to_unit_range,
    variational_bound,
)

Results = dict[str, NDArray[np.floating]]
"""What was measured, by name; the first axis of each is the images. `bits` are the bits/dim, float64 [N]."""

_SEED = 0  # of all random numbers, with the image's number


class BoundCurves(NamedTuple):
    """Means over the images, of a path of T steps."""

    terms: NDArray[np.float64]
    """The bound's terms at t = 0, ..., T - 1, bits/dim. [T]."""
    rate: NDArray[np.float64]
    """Bits/dim received by t = T - 1, ..., 0. [T]."""
    distortion: NDArray[np.float64]
    """Root mean squared error of the image predicted then, in grey levels of 0 to 255. [T]."""


class _Likelihood(Record):
    results: ClassVar[tuple[str, ...]]
    """Names of what `measure` gives."""

    images: int = Field(ge=2)
    """Number of images, the first of the split."""
    split: Literal["train", "heldout"] = "heldout"
    """Which images."""

    def check(self, spec: ModelSpec) -> None:
        """ValueError where this model has no such likelihood."""
        if spec.codec.kind != "identity":
            raise ValueError(
                f"bits/dim are of pixels, and this model's noise is on what codec {spec.codec.kind} makes of them; "
                "leave likelihoods out, or use codec identity"
            )


class VariationalBound(_Likelihood):
    """Upper bound by the chain of T steps: T evaluations of the network an image. Ho et al. 2020, eq. 5 and 13.

    The predicted image is clipped to [-1, 1], as in their code. Of each step one draw of noise.
    """

    results: ClassVar[tuple[str, ...]] = ("bits", "prior", "terms", "squared_error")
    kind: Literal["variational_bound"] = "variational_bound"
    variance: StepVariance = "fixed_large"
    """Variance of a step: beta_tilde (fixed_small), beta (fixed_large), or as the network has learned it."""

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if not isinstance(spec.path, DiscretePath):
            raise ValueError(
                f"variational_bound adds up the steps of a chain, which path {spec.path.kind} lacks; use ode"
            )
        if self.variance == "learned" and not isinstance(spec.variance, LearnedRange):
            raise ValueError("variance learned, but the model has none; use fixed_small or fixed_large")

    def measure(self, model: TrainedModel, images: Tensor, numbers: Tensor, label: Tensor | None) -> Results:
        """Of these images. images: uint8 [N, H, W, C]; numbers: int64 [N]; label: int64 [N].

        -> bits and prior, bits/dim, float64 [N]; terms, bits/dim, and squared_error, float32 [N, T], see `Bound`.
        """
        path, x0 = model.spec.path, to_unit_range(images)
        assert isinstance(path, DiscretePath)
        denoiser, size = clipped(model.denoiser(label), path, "x0"), x0[0].numel()
        with torch.inference_mode():
            noise = bound_noise(_SEED, numbers, tuple(x0.shape[1:]))
            bound = variational_bound(denoiser, path, x0, noise, self.variance)
        return {
            "bits": bits_per_dim(bound.total, size).cpu().numpy(),
            "prior": bits_per_dim(bound.prior, size).cpu().numpy(),
            "terms": bits_per_dim(bound.terms, size).T.float().cpu().numpy(),
            "squared_error": bound.squared_error.T.float().cpu().numpy(),
        }

    def scores(self, results: Results) -> dict[str, float]:
        """The mean over the images and its standard error."""
        return _mean_and_error("bits_per_dim_bound", results["bits"])

    def curves(self, results: Results) -> BoundCurves:
        """The terms one by one, and what a receiver would know on the way."""
        prior, terms, error = (torch.from_numpy(results[name]).double() for name in ("prior", "terms", "squared_error"))
        in_nats = math.log(2)  # of images of one dimension
        rate, distortion = rate_distortion(Bound(in_nats * prior, in_nats * terms.T, error.T), 1)
        return BoundCurves(terms.mean(0).numpy(), rate.numpy(), distortion.numpy())


class ODELikelihood(_Likelihood):
    """By the change of variables along the probability-flow ODE. Song et al. 2021, appendix D.2.

    Exact, but for the solver's tolerance and the probes' noise, for images spread uniformly over the width of their
    grey levels and taken to be at the path's cleanest time; its mean bounds the bits/dim of grey levels from above.
    """

    results: ClassVar[tuple[str, ...]] = ("bits", "probe_error")
    kind: Literal["ode"] = "ode"
    probes: int = Field(4, ge=2)
    """Random probes of the Jacobian's trace for each image; each costs a pass backwards in each evaluation."""
    rtol: float = Field(1e-5, gt=0)
    """Error allowed in a step, relative to the image and to its log density."""
    atol: float = Field(1e-5, gt=0)
    """Error allowed in a step: of the image, in units of [-1, 1], and of the log density, in nats a dimension."""

    def measure(self, model: TrainedModel, images: Tensor, numbers: Tensor, label: Tensor | None) -> Results:
        """Of these images, as in `VariationalBound`. -> bits/dim, and the standard error that probes leave of it.

        Both float64 [N]. FloatingPointError where the solver does not arrive.
        """
        x = dequantised(to_unit_range(images), _SEED, numbers)
        probes = probe_signs(_SEED, numbers, tuple(x.shape[1:]), self.probes)
        found = ode_log_likelihood(model.denoiser(label), model.spec.path, x, probes, self.rtol, self.atol)
        size = x[0].numel()
        return {
            "bits": bits_per_dim_of_density(found.estimate, size).cpu().numpy(),
            "probe_error": bits_per_dim(found.standard_error, size).cpu().numpy(),
        }

    def scores(self, results: Results) -> dict[str, float]:
        """The mean over the images, its standard error, and the part of that which more probes would take away."""
        errors = results["probe_error"].astype(np.float64)
        of_probes = float(np.sqrt(np.square(errors).sum())) / len(errors)
        name = "bits_per_dim_ode"
        return _mean_and_error(name, results["bits"]) | {f"{name}_standard_error_of_probes": of_probes}


Likelihood = Annotated[VariationalBound | ODELikelihood, Field(discriminator="kind")]
"""What to measure of real images: one of them, told apart by `kind`."""


def check_likelihoods(likelihoods: Sequence[VariationalBound | ODELikelihood], spec: ModelSpec) -> None:
    """ValueError where one of them is not for this model, or would have another one's name."""
    kinds = [likelihood.kind for likelihood in likelihoods]
    for likelihood in likelihoods:
        likelihood.check(spec)
        if kinds.count(likelihood.kind) > 1:
            raise ValueError(f"{likelihood.kind} stands twice, and its score has one name; leave one out")


def _mean_and_error(name: str, bits: NDArray[np.floating]) -> dict[str, float]:
    error = float(bits.std(ddof=1)) / math.sqrt(len(bits))
    return {name: float(bits.mean()), f"{name}_standard_error": error}
