"""A model's description without its weights, and the one function that turns weights and seeds into images."""

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from .ddpm_unet import DDPMUNet
from .denoiser import NetworkDenoiser
from .images import to_uint8
from .paths import Path
from .random import Stream, normal
from .record import Record
from .sampler import State
from .samplers import Sampler
from .targets import Eps, Target

Network = DDPMUNet  # the choice of networks; a second one makes it a union on `kind`


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

    @model_validator(mode="after")
    def _target_is_regular(self) -> Self:
        self.target.check(self.path)
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.image_size, self.image_size)

    def build(self) -> nn.Module:
        """The network, freshly initialised from torch's global generator."""
        return self.network.build(self.image_size, self.channels)


@torch.inference_mode()
def trajectory(spec: ModelSpec, sampler: Sampler, network: nn.Module, seeds: Tensor) -> Iterator[State]:
    """Time and x_t of every image: the initial noise, then after each step. Image i depends on seed i alone.

    seeds: int64 [N] >= 0, on the network's device. The states are float32 [N, C, H, W]; the last are the images.
    """
    sampler.check(spec.path)
    start = sampler.start(spec.path)
    x = spec.path.prior_std(start) * normal(0, Stream.INITIAL_NOISE, seeds, spec.image_shape)
    step_noise = partial(_step_noise, seeds, spec.image_shape)
    yield State(start, x)
    denoiser = NetworkDenoiser(network.eval(), spec.path, spec.target)
    yield from sampler.trajectory(denoiser, spec.path, x, step_noise)


def generate(spec: ModelSpec, sampler: Sampler, network: nn.Module, seeds: Tensor) -> Tensor:
    """The images of `seeds`. seeds: int64 [N] >= 0, on the network's device -> uint8 [N, H, W, C]."""
    ((_, x),) = deque(trajectory(spec, sampler, network, seeds), maxlen=1)  # the states before the last are not kept
    if not x.isfinite().all():
        raise FloatingPointError("images are not finite: NaN has no grey level")
    return to_uint8(x)


def _step_noise(seeds: Tensor, shape: tuple[int, ...], step: int) -> Tensor:
    return normal(0, Stream.STEP_NOISE, seeds, shape, step)
