"""A small plain U-Net to learn and to try things with: three levels, no attention, 28x28 pixels in minutes on a CPU.

The shape is that of Ronneberger et al. 2015: two convolutions a level, halved between levels, doubled again by
transposed convolutions, one skip a level. Group norm and the time after each first convolution are added.
"""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .embedding import TimeEmbedding, condition, label_embedding
from .record import Record
from .unet import check_halvings, group_count

_MULTIPLIERS = (1, 2, 4)


class SimpleUNet(Record):
    """Small plain U-Net of three levels, for images of 28x28 pixels and fewer. After Ronneberger et al. 2015."""

    kind: Literal["simple_unet"] = "simple_unet"
    base_channels: int = Field(32, ge=8, multiple_of=8)
    """Channels at full resolution; twice and four times as many on the levels below."""
    downsampling: Literal["max_pool", "strided"] = "max_pool"
    """max_pool: the largest of each 2x2 pixels; strided: a 3x3 convolution of stride 2."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of activations that each level drops in training."""

    def check_image_size(self, image_size: int) -> None:
        """ValueError unless `image_size` (pixels) halves evenly twice."""
        check_halvings(image_size, len(_MULTIPLIERS), "use another size or another kind of network")

    def build(self, image_size: int, channels: int, out_channels: int, classes: int) -> "PlainUNet":
        """A freshly initialised network for square images of `image_size` pixels; `classes` 0: without labels."""
        self.check_image_size(image_size)
        return PlainUNet(self, channels, out_channels, classes)


class PlainUNet(nn.Module):
    """(x_t [B, C, H, W], t [B], label int64 [B] or None) -> [B, out_channels, H, W]."""

    def __init__(self, config: SimpleUNet, channels: int, out_channels: int, classes: int) -> None:
        super().__init__()
        base = config.base_channels
        told, widths = 4 * base, [base * multiplier for multiplier in _MULTIPLIERS]
        self.time_embedding = TimeEmbedding(base, told, "iddpm")
        self.label_embedding = label_embedding(classes, told)
        self.down = nn.ModuleList(
            _TwoConvolutions(before, width, told, config.dropout)
            for before, width in zip([channels, *widths], widths, strict=False)
        )
        self.shrink = nn.ModuleList(_halving(config.downsampling, width) for width in widths[:-1])
        rising = list(reversed(widths[:-1]))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in rising)
        self.up = nn.ModuleList(_TwoConvolutions(2 * width, width, told, config.dropout) for width in rising)
        self.tail = nn.Conv2d(base, out_channels, 1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """t: the path's time; label: 0 to classes - 1, or `classes` for none."""
        embedding = condition(self.time_embedding(t), self.label_embedding, label)
        *outer, innermost = self.down
        h, skips = x, []
        for block, shrink in zip(outer, self.shrink, strict=True):
            h = block(h, embedding)
            skips.append(h)
            h = shrink(h)
        h = innermost(h, embedding)
        for grow, block in zip(self.grow, self.up, strict=True):
            h = block(torch.cat((grow(h), skips.pop()), dim=1), embedding)
        return cast(Tensor, self.tail(h))


class _TwoConvolutions(nn.Module):
    """Convolution, norm, plus time, swish, dropout; convolution, norm, swish."""

    def __init__(self, channels: int, out: int, told: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm1 = nn.GroupNorm(group_count(out), out)
        self.time = nn.Linear(told, out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(group_count(out), out)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: [B, C, H, W]; embedding: [B, told], after its swish -> [B, out, H, W]."""
        h = self.norm1(self.conv1(x)) + self.time(embedding)[:, :, None, None]
        return F.silu(self.norm2(self.conv2(self.dropout(F.silu(h)))))


def _halving(downsampling: str, width: int) -> nn.Module:
    return nn.MaxPool2d(2) if downsampling == "max_pool" else nn.Conv2d(width, width, 3, stride=2, padding=1)
