"""The U-Net of Improved DDPM and ADM, layer for layer. Nichol & Dhariwal 2021; Dhariwal & Nichol 2021.

With its defaults, 6 channels out, on 32x32x3 images it is Improved DDPM's network for CIFAR-10: 52,546,438 parameters.
What is theirs and easily missed: all cosines of the time stand before all sines; time and label scale and shift the
second norm, as (1 + scale) and shift; norms compute in float32; the last convolution of each block, the projection of
attention and the output start at exactly zero; all else starts as PyTorch has it; convolutions that shrink pad on all
sides; where resolutions change within residual blocks, they do so after the first swish.
"""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .cross_attention import SpatialTransformer
from .embedding import TimeEmbedding
from .unet import AttentiveUNetConfig, UNet, group_count


class ADMUNet(AttentiveUNetConfig):
    """U-Net with multi-head attention, scale-shift norm and resampling blocks. Dhariwal & Nichol 2021, section 3."""

    kind: Literal["adm_unet"] = "adm_unet"
    blocks_per_level: int = Field(3, ge=1, le=100)
    """Residual blocks of each level on the way down; one more on the way up."""
    attention_sizes: tuple[int, ...] = (16, 8)
    """Side lengths, in pixels, of the feature maps that get self-attention; the middle block always has it."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Share of activations that residual and transformer blocks drop in training."""
    heads: int = Field(4, ge=1)
    """Attention heads; must divide the channels of the levels that have attention. cross_attention has its own."""
    head_channels: int | None = Field(None, ge=1)
    """Channels of each head, instead of a fixed number of heads; 64 in ADM. cross_attention does not use it."""
    scale_shift_norm: bool = True
    """Time and label scale and shift the second norm of each block; else they are added before it."""
    resample_in_blocks: bool = False
    """Resolutions change within residual blocks (ADM, as BigGAN) rather than by convolutions between them."""

    def check_image_size(self, image_size: int) -> None:
        """ValueError unless levels, attention sizes (pixels) and heads fit."""
        super().check_image_size(image_size)
        if self.cross_attention is not None:
            return  # which has heads of its own
        name, divisor = ("heads", self.heads) if self.head_channels is None else ("head_channels", self.head_channels)
        self._check_heads(image_size, name, divisor)

    def build(self, image_size: int, channels: int, out_channels: int, classes: int) -> UNet:
        """A freshly initialised network for square images of `image_size` pixels; `classes` 0: without labels."""
        self.check_image_size(image_size)
        return UNet(self, _Parts(self), image_size, channels, out_channels, classes)


class _Parts:
    def __init__(self, config: ADMUNet) -> None:
        self.config, self.base = config, config.base_channels

    def time_embedding(self) -> TimeEmbedding:
        return TimeEmbedding(self.base, 4 * self.base, "iddpm")

    def head(self, channels: int) -> nn.Conv2d:
        return nn.Conv2d(channels, self.base, 3, padding=1)

    def residual(self, channels: int, out: int) -> "ResidualBlock":
        return ResidualBlock(self.config, channels, out)

    def attention(self, channels: int) -> "AttentionBlock | SpatialTransformer":
        if self.config.cross_attention is not None:
            # eps as Rombach et al. 2022, who have 1e-5 in all other norms
            norm = GroupNorm(channels, self.config.norm_groups, eps=1e-6)
            return SpatialTransformer(norm, self.config.cross_attention, self.config.dropout)
        head_channels = self.config.head_channels
        heads = self.config.heads if head_channels is None else channels // head_channels
        return AttentionBlock(channels, heads, self.config.norm_groups)

    def shrink(self, channels: int) -> nn.Module:
        if self.config.resample_in_blocks:
            return ResidualBlock(self.config, channels, channels, nn.AvgPool2d(2))
        return Downsample(channels)

    def grow(self, channels: int) -> nn.Module:
        if self.config.resample_in_blocks:
            return ResidualBlock(self.config, channels, channels, nn.Upsample(scale_factor=2.0, mode="nearest"))
        return Upsample(channels)

    def norm(self, channels: int) -> "GroupNorm":
        return GroupNorm(channels, self.config.norm_groups)

    def tail(self, channels: int, out_channels: int) -> nn.Conv2d:
        return _zero(nn.Conv2d(channels, out_channels, 3, padding=1))


class GroupNorm(nn.GroupNorm):
    """Computes in float32 what comes in half precision, and gives it back as it came."""

    def __init__(self, channels: int, norm_groups: int | None = None, eps: float = 1e-5) -> None:
        super().__init__(group_count(channels, norm_groups), channels, eps)

    def forward(self, input: Tensor) -> Tensor:
        """input: [B, C, ...] -> like it."""
        return super().forward(input.to(torch.promote_types(input.dtype, torch.float32))).to(input.dtype)


class ResidualBlock(nn.Module):
    """Norm, swish, resampling, convolution; norm of time and label, swish, dropout, convolution; plus the input."""

    def __init__(self, config: ADMUNet, channels: int, out: int, resample: nn.Module | None = None) -> None:
        super().__init__()
        self.scale_shift = config.scale_shift_norm
        self.norm1 = GroupNorm(channels, config.norm_groups)
        self.resample = nn.Identity() if resample is None else resample
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.time = nn.Linear(4 * config.base_channels, 2 * out if self.scale_shift else out)
        self.norm2 = GroupNorm(out, config.norm_groups)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = _zero(nn.Conv2d(out, out, 3, padding=1))
        self.shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: [B, C, H, W]; embedding: [B, 4 * base_channels], after its swish -> [B, out, H', W']."""
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        told = self.time(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + told)
        h = self.conv2(self.dropout(F.silu(h)))
        return cast(Tensor, self.shortcut(self.resample(x)) + h)


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, scaled by the root of a head's channels, added to its input."""

    def __init__(self, channels: int, heads: int, norm_groups: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(channels, norm_groups)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.project = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.query_key_value(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(1))  # [B, heads, H * W, C / heads]
        return x + cast(Tensor, self.project(mixed.transpose(-1, -2).reshape(x.shape)))


class Downsample(nn.Module):
    """Halves height and width: a 3x3 convolution of stride 2, padded by one pixel on all sides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x))


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
