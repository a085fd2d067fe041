"""The U-Net of Ho et al. 2020 (appendix B and their published code), layer for layer.

With its defaults on 32x32x3 images it has 35,746,307 parameters, as theirs. What is theirs and easily missed:
attention has one head; convolutions that shrink pad on the right and bottom only; the last convolution of each
residual block, the projection of each attention block and the output start at almost zero; the time embedding holds
all sines before all cosines. Theirs takes no labels; ours are embedded as in Dhariwal & Nichol 2021.
"""

import math
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from .cross_attention import SpatialTransformer
from .embedding import TimeEmbedding
from .unet import AttentiveUNetConfig, UNet, group_count

_ALMOST_ZERO = 1e-10  # variance scale of the layers that Ho et al. initialise with "init_scale=0."


class DDPMUNet(AttentiveUNetConfig):
    """U-Net of residual blocks with self-attention at chosen resolutions. Ho et al. 2020, appendix B."""

    kind: Literal["ddpm_unet"] = "ddpm_unet"

    def build(self, image_size: int, channels: int, out_channels: int, classes: int) -> UNet:
        """A freshly initialised network for square images of `image_size` pixels; `classes` 0: without labels."""
        self.check_image_size(image_size)
        return UNet(self, _Parts(self), image_size, channels, out_channels, classes)


class _Parts:
    def __init__(self, config: DDPMUNet) -> None:
        self.base, self.dropout, self.cross_attention = config.base_channels, config.dropout, config.cross_attention
        self.norm_groups = config.norm_groups

    def time_embedding(self) -> TimeEmbedding:
        return TimeEmbedding(self.base, 4 * self.base, "ddpm", _dense)

    def head(self, channels: int) -> nn.Conv2d:
        return _conv(channels, self.base)

    def residual(self, channels: int, out: int) -> "ResidualBlock":
        return ResidualBlock(channels, out, 4 * self.base, self.dropout, self.norm_groups)

    def attention(self, channels: int) -> "AttentionBlock | SpatialTransformer":
        if self.cross_attention is not None:
            return SpatialTransformer(self.norm(channels), self.cross_attention, self.dropout)
        return AttentionBlock(channels, self.norm_groups)

    def shrink(self, channels: int) -> "Downsample":
        return Downsample(channels)

    def grow(self, channels: int) -> "Upsample":
        return Upsample(channels)

    def norm(self, channels: int) -> nn.GroupNorm:
        return _norm(channels, self.norm_groups)

    def tail(self, channels: int, out_channels: int) -> nn.Conv2d:
        return _conv(channels, out_channels, scale=_ALMOST_ZERO)


class ResidualBlock(nn.Module):
    """Norm, swish, convolution; plus time; norm, swish, dropout, convolution; plus the input."""

    def __init__(
        self, channels: int, out: int, time_channels: int, dropout: float, norm_groups: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = _norm(channels, norm_groups)
        self.conv1 = _conv(channels, out)
        self.time = _dense(time_channels, out)
        self.norm2 = _norm(out, norm_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv(out, out, scale=_ALMOST_ZERO)
        self.shortcut = nn.Identity() if channels == out else _conv(channels, out, kernel=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: [B, C, H, W]; embedding: [B, time_channels], after its swish -> [B, out, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return cast(Tensor, self.shortcut(x) + h)


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, one head, scaled by C^-1/2, added to its input."""

    def __init__(self, channels: int, norm_groups: int | None = None) -> None:
        super().__init__()
        self.norm = _norm(channels, norm_groups)
        self.query_key_value = nn.ModuleList(_conv(channels, channels, kernel=1) for _ in range(3))
        self.project = _conv(channels, channels, kernel=1, scale=_ALMOST_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in self.query_key_value)
        mixed: Tensor = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x + cast(Tensor, self.project(mixed.reshape(x.shape)))


class Downsample(nn.Module):
    """Halves height and width: a 3x3 convolution of stride 2, padded right and bottom (TensorFlow's "SAME")."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1))))


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


def _norm(channels: int, norm_groups: int | None) -> nn.GroupNorm:
    return nn.GroupNorm(group_count(channels, norm_groups), channels, eps=1e-6)


def _conv(
    channels: int, out: int, kernel: int = 3, stride: int = 1, padding: int | None = None, scale: float = 1.0
) -> nn.Conv2d:
    padding = kernel // 2 if padding is None else padding
    layer = nn.Conv2d(channels, out, kernel, stride, padding)
    _initialise(layer, scale)
    return layer


def _dense(features: int, out: int) -> nn.Linear:
    layer = nn.Linear(features, out)
    _initialise(layer, 1.0)
    return layer


def _initialise(layer: nn.Conv2d | nn.Linear, scale: float) -> None:
    """Uniform with variance scale / mean of fan-in and fan-out (TensorFlow's variance_scaling "fan_avg"); bias 0."""
    nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(scale))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
