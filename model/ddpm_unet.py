"""The U-Net of Ho et al. 2020 (appendix B and their published code), layer for layer.

With its defaults on 32x32x3 images it has 35,746,307 parameters, as theirs. What is theirs and easily missed:
attention has one head; convolutions that shrink pad on the right and bottom only; the last convolution of each
residual block, the projection of each attention block and the output start at almost zero; the time embedding holds
all sines before all cosines.
"""

import math
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .record import Record

_ALMOST_ZERO = 1e-10  # variance scale of the layers that Ho et al. initialise with "init_scale=0."


class DDPMUNet(Record):
    """U-Net of residual blocks with self-attention at chosen resolutions. Ho et al. 2020, appendix B."""

    kind: Literal["ddpm_unet"] = "ddpm_unet"
    base_channels: int = Field(128, ge=8, multiple_of=8)
    """Channels at full resolution."""
    channel_multipliers: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 2, 2), min_length=1)
    """Channels of each level in units of base_channels; between levels the resolution halves."""
    blocks_per_level: int = Field(2, ge=1)
    """Residual blocks of each level on the way down; one more on the way up."""
    attention_sizes: tuple[int, ...] = (16,)
    """Side lengths, in pixels, of the feature maps that get self-attention; the middle block always has it."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of activations that residual blocks drop in training."""

    def check_image_size(self, image_size: int) -> None:
        """ValueError unless every level halves `image_size` (pixels) evenly and each attention size is a level's."""
        shrink = 2 ** (len(self.channel_multipliers) - 1)
        if image_size % shrink:
            raise ValueError(
                f"{len(self.channel_multipliers)} levels halve the image {len(self.channel_multipliers) - 1} times, "
                f"but {image_size} pixels do not divide by {shrink}; use fewer channel_multipliers or another size"
            )
        sizes = [image_size >> level for level in range(len(self.channel_multipliers))]
        strangers = [size for size in self.attention_sizes if size not in sizes]
        if strangers:
            raise ValueError(f"attention_sizes {strangers} are no level's; the levels have {sizes} pixels")

    def build(self, image_size: int, channels: int) -> "UNet":
        """A freshly initialised network for square images of `image_size` pixels."""
        self.check_image_size(image_size)
        return UNet(self, image_size, channels)


class UNet(nn.Module):
    """Noise prediction network: (x_t [B, C, H, W], t [B]) -> [B, C, H, W]."""

    def __init__(self, config: DDPMUNet, image_size: int, channels: int) -> None:
        super().__init__()
        base, dropout = config.base_channels, config.dropout
        widths = [base * multiplier for multiplier in config.channel_multipliers]
        self.time_embedding = TimeEmbedding(base)
        self.head = _conv(channels, base)

        self.down = nn.ModuleList()
        skips, width, size = [base], base, image_size
        for level, out in enumerate(widths):
            for _ in range(config.blocks_per_level):
                self.down.append(_Level(width, out, 4 * base, dropout, size in config.attention_sizes))
                skips.append(width := out)
            if level < len(widths) - 1:
                self.down.append(Downsample(width))
                skips.append(width)
                size //= 2

        self.middle = nn.ModuleList(
            [
                _Level(width, width, 4 * base, dropout, attention=True),
                _Level(width, width, 4 * base, dropout, attention=False),
            ]
        )

        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(config.blocks_per_level + 1):
                attention = size in config.attention_sizes
                self.up.append(_Level(width + skips.pop(), out, 4 * base, dropout, attention))
                width = out
            if level > 0:
                self.up.append(Upsample(width))
                size *= 2

        self.norm = _norm(width)
        self.tail = _conv(width, channels, scale=_ALMOST_ZERO)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: [B, C, H, W]; t: [B], the path's time -> [B, C, H, W]."""
        embedding = self.time_embedding(t)
        h = self.head(x)
        skips = [h]
        for block in self.down:
            h = block(h, embedding)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for block in self.up:
            if isinstance(block, Upsample):
                h = block(h, embedding)
            else:
                h = block(torch.cat((h, skips.pop()), dim=1), embedding)
        return cast(Tensor, self.tail(F.silu(self.norm(h))))


class TimeEmbedding(nn.Module):
    """Sinusoids of the time through two dense layers. -> [B, 4 * base], with the swish that every block asks for."""

    frequencies: Tensor

    def __init__(self, base: int) -> None:
        super().__init__()
        half = base // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64) / (half - 1))
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.dense1 = _dense(base, 4 * base)
        self.dense2 = _dense(4 * base, 4 * base)

    def forward(self, t: Tensor) -> Tensor:
        """t: [B]. The angles stay float32 under autocast: in bfloat16, step 998 would be step 1000."""
        angles = t.float()[:, None] * self.frequencies
        sinusoids = torch.cat((angles.sin(), angles.cos()), dim=1)
        return F.silu(self.dense2(F.silu(self.dense1(sinusoids))))


class _Level(nn.Module):
    """A residual block, with attention behind it where asked."""

    def __init__(self, channels: int, out: int, time_channels: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.residual = ResidualBlock(channels, out, time_channels, dropout)
        self.attention = AttentionBlock(out) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h: Tensor = self.residual(x, embedding)
        return h if self.attention is None else self.attention(h)


class ResidualBlock(nn.Module):
    """Norm, swish, convolution; plus time; norm, swish, dropout, convolution; plus the input."""

    def __init__(self, channels: int, out: int, time_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = _conv(channels, out)
        self.time = _dense(time_channels, out)
        self.norm2 = _norm(out)
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

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
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


def _norm(channels: int) -> nn.GroupNorm:
    """Ho et al.'s 32 groups; fewer in narrow networks, of at least four channels each, as in Karras et al. 2022.

    Where that number does not divide the channels, the next smaller one that does.
    """
    groups = next(groups for groups in range(min(32, channels // 4), 0, -1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


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
