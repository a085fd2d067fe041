"""Small configurations of every kind of network, and what tests do with them."""

from typing import Any, TypeVar

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from model import (
    DDIM,
    ADMUNet,
    CrossAttention,
    DDPMUNet,
    DiT,
    Eps,
    Network,
    NetworkDenoiser,
    Simple,
    SimpleUNet,
    VPCosine,
    denoising_loss,
)
from model.ncsnpp import NCSNpp

from .unions import members

Module = TypeVar("Module", bound=nn.Module)
IMAGE_SIZE = 8
CLOSEST = 0.37
"""Root mean squared difference of the two most similar of the images that `overfit` learns; 0.75 is usual."""
LEVELS: dict[str, Any] = {
    "base_channels": 16,
    "channel_multipliers": (1, 2),
    "blocks_per_level": 1,
    "attention_sizes": (4,),
    "dropout": 0.0,
}
CROSSING: dict[str, Any] = LEVELS | {"cross_attention": CrossAttention(width=12, tokens=2, heads=4)}
SMALL: dict[str, Any] = {
    "ddpm_unet": DDPMUNet(**LEVELS),
    "adm_unet": ADMUNet(**LEVELS),
    "dit": DiT(width=96, depth=2, heads=4, patch_size=4),
    "simple_unet": SimpleUNet(base_channels=16),
    "ncsnpp": NCSNpp(**LEVELS),
    "ddpm_unet-cross_attention": DDPMUNet(**CROSSING),
    "adm_unet-cross_attention": ADMUNet(**CROSSING),
}
"""By name: the kind, and after a dash the option that is set."""
KINDS: list[str] = [member.model_fields["kind"].default for member in members(Network)]


def awake(network: Module) -> Module:
    """The network with all weights made random, those that start at zero too, so that every layer has a say."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, mean=parameter[0].item(), std=0.1)
    return network


def told(config: Any, classes: int, label: Tensor) -> Tensor | None:
    """What the network takes for these labels: themselves, a sequence of three embeddings where it needs one, or None.

    label: int64 [B].
    """
    crossing = getattr(config, "cross_attention", None)
    if classes:
        return label
    return None if crossing is None else torch.randn(len(label), 3, crossing.width)


def digits() -> Tensor:
    """The first 16 of scikit-learn's handwritten digits, in [-1, 1]. float32 [16, 1, 8, 8]."""
    return torch.from_numpy(load_digits().images[:16]).float()[:, None] / 8 - 1


def overfit(config: Any, steps: int, learning_rate: float = 4e-3, batch: int = 32) -> tuple[float, Tensor]:
    """Learns 16 images by heart, each with a label of its own, and draws each by its label with DDIM in 20 steps.

    The network predicts the noise. Returns the loss of the last 50 steps (1 for a network that predicts nothing) and
    each drawn image's root mean squared difference from the one that was asked for, [16].
    """
    path, images = VPCosine(), digits()
    network = config.build(IMAGE_SIZE, 1, 1, len(images))
    optimizer = torch.optim.Adam(network.parameters())
    label = torch.arange(batch) % len(images)
    losses = torch.zeros(steps)
    for step in range(steps):
        t = torch.randint(path.T, (batch,)).double()
        x0 = images[label]
        loss = denoising_loss(network, path, Eps(), Simple(), x0, t, torch.randn_like(x0), label).mean()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 50) * (1 - step / steps)
        optimizer.step()
        losses[step] = loss.detach()
    network.eval()
    with torch.inference_mode():
        denoiser = NetworkDenoiser(network, path, Eps()).of(torch.arange(len(images)))
        *_, last = DDIM(steps=20).trajectory(denoiser, path, torch.randn_like(images), torch.randn)
    return losses[-50:].mean().item(), (last.x - images).square().mean((1, 2, 3)).sqrt()


def every_gradient(config: Any, classes: int) -> dict[str, float]:
    """The largest gradient of each parameter, for a random loss in float64."""
    network = awake(config.build(IMAGE_SIZE, 1, 1, classes)).double()
    x, label = torch.randn(3, 1, IMAGE_SIZE, IMAGE_SIZE).double(), told(config, classes, torch.tensor([0, 1, 2]))
    network(x, torch.tensor([3, 500, 900]), label).square().mean().backward()
    return {
        name: 0.0 if parameter.grad is None else parameter.grad.abs().max().item()
        for name, parameter in network.named_parameters()
    }


def parameters(config: Any, image_size: int, channels: int, out_channels: int, classes: int) -> int:
    """Trainable numbers, counted without allocating them."""
    with torch.device("meta"):
        network: nn.Module = config.build(image_size, channels, out_channels, classes)
    return sum(parameter.numel() for parameter in network.parameters())


def shape_of(config: Any, image_size: int, channels: int, out_channels: int, classes: int) -> tuple[int, ...]:
    """Of the output for two images, without computing it: nothing may depend on the values."""
    with torch.device("meta"):
        network = config.build(image_size, channels, out_channels, classes)
        x, t = torch.empty(2, channels, image_size, image_size), torch.zeros(2)
        return tuple(network(x, t, told(config, classes, torch.zeros(2, dtype=torch.int64))).shape)
