"""A model's description without its weights, and the one function that turns weights and seeds into images."""

from collections import deque
from collections.abc import Iterator
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from .ddpm_unet import DDPMUNet
from .denoiser import EpsDenoiser
from .images import to_uint8
from .paths import Path
from .random import Stream, normal
from .record import Record
from .samplers import Sampler

Network = DDPMUNet  # the choice of networks; a second one makes it a union on `kind`


class ModelSpec(Record):
    """All that is needed, beside the weights, to build a model again."""

    image_size: int = Field(ge=1)
    """Height and width, pixels."""
    channels: int = Field(ge=1)
    """1: grey, 3: RGB."""
    network: Network
    """The network that predicts the noise."""
    path: Path
    """How data become noise."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.image_size, self.image_size)

    def build(self) -> nn.Module:
        """The network, freshly initialised from torch's global generator."""
        return self.network.build(self.image_size, self.channels)


@torch.inference_mode()
def trajectory(spec: ModelSpec, sampler: Sampler, network: nn.Module, seeds: Tensor) -> Iterator[Tensor]:
    """x_t of every image: the initial noise, then after each step. Image i depends on seed i alone.

    seeds: int64 [N] >= 0, on the network's device. Yields float32 [N, C, H, W], steps + 1 times; the last is the image.
    """
    x = normal(0, Stream.INITIAL_NOISE, seeds, spec.image_shape)
    step_noise = partial(_step_noise, seeds, spec.image_shape)
    yield x
    yield from sampler.trajectory(EpsDenoiser(network.eval(), spec.path), spec.path, x, step_noise)


def generate(spec: ModelSpec, sampler: Sampler, network: nn.Module, seeds: Tensor) -> Tensor:
    """The images of `seeds`. seeds: int64 [N] >= 0, on the network's device -> uint8 [N, H, W, C]."""
    (x,) = deque(trajectory(spec, sampler, network, seeds), maxlen=1)  # the states before the last are not kept
    if not x.isfinite().all():
        raise FloatingPointError("images are not finite: NaN has no grey level")
    return to_uint8(x)


def _step_noise(seeds: Tensor, shape: tuple[int, ...], step: int) -> Tensor:
    return normal(0, Stream.STEP_NOISE, seeds, shape, step)
