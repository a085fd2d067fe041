"""One training step of Ho et al.'s 35.7M U-Net: ours, and a plain loop with diffusers'; and what a step costs.

Both have the same layers and as many parameters, no dropout, Adam's arithmetic with clipped gradients, and go round and
round a few batches that lie in memory: uint8 in ours, which pins them for a GPU as the reader does; floats that are on
the device already in theirs. Beyond their loop, ours averages the weights, leaves out steps that are not finite, keeps
the losses by quarter of the times, and draws all noise as a function of an image's position. Theirs has the loss,
clipping and optimizer of diffusers' own example of unconditional training, whose average is off by default.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import mse_loss
from torch.utils.flop_counter import FlopCounterMode

import model
from model import DDPMUNet, Denoising, EMAs, ModelSpec, Simple, Unconditional, VPLinear, fast_precision, to_unit_range
from pipeline.runfile.train_config import TrainConfig
from pipeline.training.train_step import Batch, Recipe, TrainStep

DDPM = DDPMUNet(dropout=0.0)
TINY = DDPMUNet(base_channels=32, channel_multipliers=(1, 2), blocks_per_level=1, attention_sizes=(2,), dropout=0.0)
"""For a look at whether a benchmark works."""
BATCHES = 8

Steps = Callable[[int], None]
"""Takes so many training steps."""


def image_size(network: DDPMUNet) -> int:
    """Height and width, pixels: those of CIFAR-10, or few."""
    return 4 if network == TINY else 32


def spec_of(network: DDPMUNet) -> ModelSpec:
    """DDPM on colour images."""
    return ModelSpec(image_size=image_size(network), channels=3, network=network, path=VPLinear())


def noise_images(network: DDPMUNet, count: int) -> Tensor:
    """Images to measure speed with. -> uint8 [count, H, W, 3]."""
    side = image_size(network)
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)


def new_step(network: DDPMUNet, batch_size: int, device: torch.device, **train: Any) -> TrainStep:
    """Ours. train: keys of a run file's section of that name."""
    config = TrainConfig(images=10**9, batch_size=batch_size, **train)
    return TrainStep(Recipe(Denoising(spec_of(network), Simple()), config, Unconditional()), device)


def take_step(step: TrainStep, images: Tensor) -> Tensor:
    """One step on images without labels, uint8 [B, H, W, 3]. -> its loss."""
    labels = torch.full((len(images),), -1)
    return step(Batch(step.state.images_seen, images, labels.pin_memory() if images.is_pinned() else labels))


def our_steps(
    network: DDPMUNet, batch_size: int, device: torch.device, *, channels_last: bool = False, **train: Any
) -> Steps:
    """Our training step. channels_last: in the memory format that its weights then give to what convolutions make."""
    step = new_step(network, batch_size, device, **train)
    if channels_last:
        step.state.network.to(memory_format=torch.channels_last)
        step.state.ema = EMAs(step.state.network, step.config.ema)  # in another format each weight is averaged alone
    images = noise_images(network, BATCHES * batch_size)
    batches = cycle((images.pin_memory() if device.type == "cuda" else images).split(batch_size))

    def run(steps: int) -> None:
        for _ in range(steps):
            take_step(step, next(batches))

    return run


def diffusers_unet(network: DDPMUNet) -> nn.Module:
    """The same network, as diffusers' google/ddpm-cifar10-32 describes it. ImportError where that is not installed."""
    from diffusers import UNet2DModel

    sizes = [image_size(network) >> level for level in range(len(network.channel_multipliers))]
    attends = ["Attn" if size in network.attention_sizes else "" for size in sizes]
    theirs: nn.Module = UNet2DModel(
        sample_size=image_size(network),
        block_out_channels=tuple(network.base_channels * each for each in network.channel_multipliers),
        layers_per_block=network.blocks_per_level,
        down_block_types=tuple(f"{each}DownBlock2D" for each in attends),
        up_block_types=tuple(f"{each}UpBlock2D" for each in reversed(attends)),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    assert parameter_count(theirs) == parameter_count(spec_of(network).build())
    return theirs


def diffusers_steps(
    network: DDPMUNet, batch_size: int, device: torch.device, *, bf16: bool = False, compiled: bool = False
) -> Steps:
    """A plain loop with diffusers' network, noise schedule and the settings of its example."""
    from diffusers import DDPMScheduler

    theirs = diffusers_unet(network).to(device)
    forward = torch.compile(theirs) if compiled else theirs
    scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    batches = cycle(to_unit_range(noise_images(network, BATCHES * batch_size)).to(device).split(batch_size))

    def run(steps: int) -> None:
        for _ in range(steps):
            x0 = next(batches)
            noise = torch.randn_like(x0)
            t = torch.randint(0, scheduler.config.num_train_timesteps, (batch_size,), device=device)
            with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
                predicted = forward(scheduler.add_noise(x0, noise, t), t, return_dict=False)[0]
            mse_loss(predicted.float(), noise).backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return run


@dataclass
class Timed:
    """A contestant that trains for about `turn_s` seconds when it is its turn, and is made at its first."""

    make: Callable[[], Steps]
    batch_size: int
    device: torch.device
    turn_s: float
    take: Steps | None = None
    steps: int = 0
    """Of a turn."""

    def images_per_s(self, _round: int = 0) -> float:
        """Of one turn. Before its first it takes steps that do not count, in which it compiles what has to be."""
        if self.take is None:
            self.take = self.make()
            self.take(2)
            self.steps = max(1, round(self.turn_s / self._seconds(self.take, 1)))
        return self.steps * self.batch_size / self._seconds(self.take, self.steps)

    def _seconds(self, take: Steps, steps: int) -> float:
        self._arrive()
        began = time.perf_counter()
        take(steps)
        self._arrive()
        return time.perf_counter() - began

    def _arrive(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def best_settings(device: torch.device) -> dict[str, Any]:
    """Keys of `train` with which our step is the fastest there."""
    return {"compile": True, "precision": fast_precision(device)}


def parameter_count(network: nn.Module) -> int:
    """Of all its weights."""
    return sum(parameter.numel() for parameter in network.parameters())


def counted_flops(work: Callable[[], Any]) -> int:
    """Of the convolutions and matrix products, attention's among them; a multiplication with its addition is two."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def training_flops(network: DDPMUNet) -> int:
    """Of forward and backward, for one image."""
    return sum(model.training_flops(Denoising(spec_of(network), Simple()), Unconditional()).values())
