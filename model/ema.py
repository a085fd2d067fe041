"""Moving averages of a network's weights: the weights that one samples with.

A profile says how much the weights of each step count; an average follows one profile, in float32.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .record import Record

WIDEST_SIGMA_REL = 0.288
"""Of a power-function average. sqrt(1/12) = 0.2887 is the mean of all steps; wider ones would favour the first."""


class ExponentialEMA(Record):
    """Older weights count exponentially less; the length is in images, whatever the batch size."""

    kind: Literal["exponential"] = "exponential"
    half_life_images: float = Field(887_184, gt=0)
    """Images after which a weight's share has halved; 887,184 is a decay of 0.9999 per batch of 128 (Ho et al.
    2020)."""
    ramp: float | None = Field(0.05, gt=0)
    """The half-life is at most this share of the images seen, so that early weights are soon forgotten (Karras et
    al. 2022, appendix F.2); null: full length from the first step, as in Ho et al. 2020."""

    def decay(self, images_seen: int, batch_images: int) -> float:
        """Weight of the old average after a batch, in [0, 1). images_seen: this batch included."""
        half_life = self.half_life_images
        if self.ramp is not None:
            half_life = min(half_life, images_seen * self.ramp)
        return float(0.5 ** (batch_images / half_life)) if half_life > 0 else 0.0


class PowerFunctionEMA(Record):
    """Weights count by a power of their time. Karras et al. 2024, eq. 121; see `model.reconstruct_average`.

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) for tau in [0, t]. Initial weights do not count, and
    the length grows with the training.
    """

    kind: Literal["power_function"] = "power_function"
    sigma_rel: float = Field(0.1, gt=0, le=WIDEST_SIGMA_REL)
    """Standard deviation of p as a share of the images seen; 0.05 and 0.1 together give all lengths between and some
    around them (Karras et al. 2024, section 3.2)."""

    def decay(self, images_seen: int, batch_images: int) -> float:
        """(1 - batch / t)^(gamma + 1), in [0, 1), where t is images_seen. Karras et al. 2024, eq. 127."""
        if images_seen <= batch_images:
            return 0.0
        return float((1 - batch_images / images_seen) ** (gamma_of(self.sigma_rel) + 1))


def gamma_of(sigma_rel: float) -> float:
    """Exponent of the power function with this relative width, in (0, WIDEST_SIGMA_REL].

    The inverse of sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)): the largest root of gamma^3 + 7 gamma^2 +
    (16 - s) gamma + 12 - s, where s = sigma_rel^-2. Karras et al. 2024, eq. 123 and 126. All roots are real, so
    that they are cosines of thirds of an angle.
    """
    s = sigma_rel**-2
    radius = math.sqrt(s + 1 / 3) / math.sqrt(3)  # gamma = y - 7/3 turns it into y^3 - 3 radius^2 y + q
    q = 4 / 3 * s + 2 / 27
    return 2 * radius * math.cos(math.acos(-q / (2 * radius**3)) / 3) - 7 / 3


EMAProfile = Annotated[ExponentialEMA | PowerFunctionEMA, Field(discriminator="kind")]
"""How much the weights of each step count: one of them, told apart by `kind`."""


class EMA:
    """The average itself: a float32 copy of every parameter, in the network's order. Buffers are not averaged."""

    def __init__(self, network: nn.Module) -> None:
        self.names = [name for name, _ in network.named_parameters()]
        self.weights = [parameter.detach().float().clone() for parameter in network.parameters()]

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor], decay: float) -> None:
        """Average <- decay * average + (1 - decay) * parameters, for all tensors in one fused call."""
        torch._foreach_lerp_(self.weights, list(parameters), 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Name to weight, loadable by the network itself."""
        return dict(zip(self.names, self.weights, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the weights of `state`. KeyError where one is missing."""
        for name, weight in zip(self.names, self.weights, strict=True):
            weight.copy_(state[name])


class EMAs:
    """Averages of one network by several profiles at once, each of them a float32 copy of the parameters."""

    def __init__(self, network: nn.Module, first: EMAProfile, *others: EMAProfile) -> None:
        self.profiles = (first, *others)
        self.averages = [EMA(network) for _ in self.profiles]

    @property
    def first(self) -> EMA:
        """The average that images are drawn from."""
        return self.averages[0]

    def update(self, parameters: Iterable[Tensor], images_seen: int, batch_images: int) -> None:
        """Takes up the parameters after a batch. images_seen: this batch included."""
        parameters = list(parameters)
        for profile, average in zip(self.profiles, self.averages, strict=True):
            average.update(parameters, profile.decay(images_seen, batch_images))

    def state_dict(self) -> dict[str, Tensor]:
        """All weights, under the average's number and their own name: `0.conv.weight`."""
        return {
            f"{number}.{name}": weight
            for number, average in enumerate(self.averages)
            for name, weight in average.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over all averages. ValueError, and nothing is changed, unless names and shapes are the same."""
        check_alike(state, self.state_dict(), "averages")
        for number, average in enumerate(self.averages):
            average.load_state_dict({name: state[f"{number}.{name}"] for name in average.names})


def check_alike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """ValueError, naming a weight that is missing, unknown or of another shape."""
    for name in sorted(found.keys() | expected.keys()):
        shapes = [str(tuple(state[name].shape)) if name in state else "nothing" for state in (found, expected)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{what}: {name}: found {shapes[0]}, expected {shapes[1]}; give weights of one network and its profiles"
            )
