"""A classifier of noisy images, whose gradient guides sampling. Dhariwal & Nichol 2021, section 4.

It is the way down of DDPM's U-Net, told the time as that is, with the mean over all pixels and one dense layer behind
it; theirs has attention in place of the mean.
"""

from typing import Annotated, Literal, cast

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .ddpm_unet import AttentionBlock, Downsample, ResidualBlock
from .embedding import TimeEmbedding
from .unet import UNetConfig, group_count


class NoisyClassifier(UNetConfig):
    """The way down of DDPM's U-Net. It is trained on the images and the path of the model that it guides."""

    kind: Literal["ddpm_encoder"] = "ddpm_encoder"
    classes: int = Field(ge=2)
    """Number of classes of the images."""
    base_channels: int = Field(64, ge=8, multiple_of=8)
    """Channels at full resolution."""
    channel_multipliers: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 2), min_length=1)
    """Channels of each level in units of base_channels; between levels the resolution halves."""
    blocks_per_level: int = Field(1, ge=1, le=100)
    """Residual blocks of each level."""
    attention_sizes: tuple[int, ...] = ()
    """Side lengths, in pixels, of the feature maps that get self-attention."""
    images: int = Field(1_000_000, ge=1)
    """Length of its training, images (with repetition)."""
    batch_size: int = Field(128, ge=1)
    """Global batch of its training, images."""
    learning_rate: float = Field(3e-4, gt=0)
    """Adam's step size in its training."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of its first weights, its order of images, its times and its noise."""

    def build(self, image_size: int, channels: int) -> "Encoder":
        """A freshly initialised network for square images of `image_size` pixels."""
        self.check_image_size(image_size)
        return Encoder(self, image_size, channels)


class Encoder(nn.Module):
    """(x_t [B, C, H, W], t [B]) -> logits [B, classes]."""

    def __init__(self, config: NoisyClassifier, image_size: int, channels: int) -> None:
        super().__init__()
        base = config.base_channels
        self.time_embedding = TimeEmbedding(base, 4 * base, "ddpm")
        self.head = nn.Conv2d(channels, base, 3, padding=1)
        self.down, self.attention = nn.ModuleList(), nn.ModuleList()
        width, size = base, image_size
        for level, out in enumerate(config.widths):
            for _ in range(config.blocks_per_level):
                self.down.append(ResidualBlock(width, out, 4 * base, config.dropout))
                self.attention.append(AttentionBlock(out) if size in config.attention_sizes else nn.Identity())
                width = out
            if level < len(config.widths) - 1:
                self.down.append(Downsample(width))
                self.attention.append(nn.Identity())
                size //= 2
        self.norm = nn.GroupNorm(group_count(width), width)
        self.tail = nn.Linear(width, config.classes)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """t: the path's time, as the diffusion model is told it."""
        embedding = F.silu(self.time_embedding(t))
        h = self.head(x)
        for block, attention in zip(self.down, self.attention, strict=True):
            h = attention(block(h, embedding))
        return cast(Tensor, self.tail(F.silu(self.norm(h)).mean((2, 3))))
