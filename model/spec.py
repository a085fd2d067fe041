"""A model's description without its weights, and the one function that turns weights and seeds into images."""

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from .denoiser import Denoiser, NetworkDenoiser
from .guidance import NO_GUIDANCE, Guidance
from .images import to_uint8
from .networks import Network
from .paths import Path
from .random import Stream, normal
from .record import Record
from .sampler import State
from .samplers import Sampler
from .targets import Eps, Target


class ModelSpec(Record):
    """All that is needed, beside the weights, to build a model again."""

    image_size: int = Field(ge=1)
    """Height and width, pixels."""
    channels: int = Field(ge=1)
    """1: grey, 3: RGB."""
    network: Network
    """The network."""
    path: Path
    """How data become noise."""
    target: Target = Eps()
    """What the network predicts."""
    classes: int = Field(0, ge=0)
    """Classes that the network is told of; 0: none."""

    @model_validator(mode="after")
    def _target_is_regular(self) -> Self:
        self.target.check(self.path)
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.image_size, self.image_size)

    def default_label(self, seeds: Tensor) -> Tensor:
        """The class of each image where none is asked for: its seed modulo their number. int64 [N] -> int64 [N]."""
        return seeds % max(self.classes, 1)

    def build(self) -> nn.Module:
        """The network, freshly initialised from torch's global generator."""
        return self.network.build(self.image_size, self.channels, out_channels=self.channels, classes=self.classes)


@torch.inference_mode()
def trajectory(
    spec: ModelSpec,
    sampler: Sampler,
    network: nn.Module,
    seeds: Tensor,
    label: Tensor | None = None,
    guidance: Guidance = NO_GUIDANCE,
) -> Iterator[State]:
    """Time and x_t of all images: the initial noise, then after each step. Each depends on its seed and label alone.

    seeds: int64 [N] >= 0, on the network's device; label: int64 [N], by default the seed modulo the number of classes,
    which makes as many of each. The states are float32 [N, C, H, W]; the last are the images.
    """
    sampler.check(spec.path)
    start = sampler.start(spec.path)
    x = spec.path.prior_std(start) * normal(0, Stream.INITIAL_NOISE, seeds, spec.image_shape)
    step_noise = partial(_step_noise, seeds, spec.image_shape)
    yield State(start, x)
    plain = NetworkDenoiser(network.eval(), spec.path, spec.target)
    denoiser: Denoiser = plain
    if spec.classes:
        denoiser = guidance.guided(plain, spec.default_label(seeds) if label is None else label, null=spec.classes)
    yield from sampler.trajectory(denoiser, spec.path, x, step_noise)


def generate(
    spec: ModelSpec,
    sampler: Sampler,
    network: nn.Module,
    seeds: Tensor,
    label: Tensor | None = None,
    guidance: Guidance = NO_GUIDANCE,
) -> Tensor:
    """The images of `seeds`, as `trajectory` makes them. -> uint8 [N, H, W, C]."""
    states = trajectory(spec, sampler, network, seeds, label, guidance)
    ((_, x),) = deque(states, maxlen=1)  # the states before the last are not kept
    if not x.isfinite().all():
        raise FloatingPointError("images are not finite: NaN has no grey level")
    return to_uint8(x)


def _step_noise(seeds: Tensor, shape: tuple[int, ...], step: int) -> Tensor:
    return normal(0, Stream.STEP_NOISE, seeds, shape, step)
