"""What the U-Nets of residual blocks share: their levels, and the way down and up with a skip from each block.

Ho et al. 2020, appendix B. A network of this family says only what its blocks are.
"""

from typing import Annotated, Protocol, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .cross_attention import CrossAttention, Sequences
from .embedding import condition, label_embedding
from .record import Record


class UNetConfig(Record):
    """Hyper-parameters of every U-Net of residual blocks with self-attention at chosen resolutions."""

    kind: str
    base_channels: int = Field(128, ge=8, multiple_of=8)
    """Channels at full resolution."""
    channel_multipliers: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 2, 2), min_length=1)
    """Channels of each level in units of base_channels; between levels the resolution halves."""
    blocks_per_level: int = Field(2, ge=1, le=100)
    """Residual blocks of each level on the way down; one more on the way up."""
    attention_sizes: tuple[int, ...] = (16,)
    """Side lengths, in pixels, of the feature maps that get self-attention; the middle block always has it."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of activations that residual and transformer blocks drop in training."""

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.base_channels * multiplier for multiplier in self.channel_multipliers]

    def check_image_size(self, image_size: int) -> None:
        """ValueError unless every level halves `image_size` (pixels) evenly and each attention size is a level's."""
        levels = len(self.channel_multipliers)
        check_halvings(image_size, levels, "use fewer channel_multipliers or another size")
        sizes = [image_size >> level for level in range(levels)]
        strangers = [size for size in self.attention_sizes if size not in sizes]
        if strangers:
            raise ValueError(
                f"attention_sizes {strangers} are no level's; the levels have {sizes} pixels; name some of these"
            )


class AttentiveUNetConfig(UNetConfig):
    """Hyper-parameters of those of them whose attention can also see a sequence of embeddings."""

    norm_groups: int | None = Field(None, ge=1)
    """Groups of every norm, as diffusers has it; null: 32, fewer where a norm has less than 128 channels."""
    cross_attention: CrossAttention | None = None
    """Transformer blocks that attend to a sequence of embeddings, in place of plain self-attention. Each class learns
    its sequence, in place of the one embedding that is added to the time; null: self-attention alone."""

    def check_image_size(self, image_size: int) -> None:
        """ValueError unless levels, attention sizes (pixels), groups and heads fit."""
        super().check_image_size(image_size)
        if self.norm_groups is not None and self.base_channels % self.norm_groups:
            raise ValueError(
                f"norm_groups {self.norm_groups} does not divide base_channels {self.base_channels}; use another "
                "number, or null"
            )
        if self.cross_attention is not None:
            self._check_heads(image_size, "cross_attention.heads", self.cross_attention.heads)

    def _check_heads(self, image_size: int, name: str, divisor: int) -> None:
        """ValueError unless `divisor`, the value of the field `name`, divides the channels wherever attention is."""
        attending = [width for level, width in enumerate(self.widths) if image_size >> level in self.attention_sizes]
        uneven = sorted({width for width in [*attending, self.widths[-1]] if width % divisor})
        if uneven:
            raise ValueError(
                f"{name} {divisor} does not divide the channels {uneven} of levels with attention; use another number"
            )


def check_halvings(image_size: int, levels: int, remedy: str) -> None:
    """ValueError unless `image_size` (pixels) halves evenly between all levels."""
    shrink = 2 ** (levels - 1)
    if image_size % shrink:
        raise ValueError(
            f"{levels} levels halve the image {levels - 1} times, but {image_size} pixels do not divide by {shrink}; "
            f"{remedy}"
        )


def group_count(channels: int, norm_groups: int | None = None) -> int:
    """Ho et al.'s 32 groups; fewer in narrow networks, of at least four channels each, as in Karras et al. 2022.

    Where that number does not divide the channels, the next smaller one that does. norm_groups: that many instead.
    """
    return norm_groups or next(groups for groups in range(min(32, channels // 4), 0, -1) if channels % groups == 0)


class Parts(Protocol):
    """What a U-Net is made of. Blocks are (x [B, C, H, W], embedding [B, 4 * base_channels]) -> [B, C', H', W']."""

    def time_embedding(self) -> nn.Module:
        """t: [B] -> [B, 4 * base_channels], before its swish."""

    def head(self, channels: int) -> nn.Module:
        """From the image to base_channels."""

    def residual(self, channels: int, out: int) -> nn.Module:
        """A block that keeps the resolution."""

    def attention(self, channels: int) -> nn.Module:
        """Each pixel looks at all: a module of x, or with `cross_attention` of (x, sequence [B, L, width])."""

    def shrink(self, channels: int) -> nn.Module:
        """A block that halves the resolution."""

    def grow(self, channels: int) -> nn.Module:
        """A block that doubles the resolution."""

    def norm(self, channels: int) -> nn.Module:
        """The last norm."""

    def tail(self, channels: int, out_channels: int) -> nn.Module:
        """From the last norm's swish to the output."""


class UNet(nn.Module):
    """(x_t [B, C, H, W], t [B], label int64 [B] or None) -> [B, out_channels, H, W].

    With `cross_attention` the label can also be a sequence, float [B, L, width].
    """

    def __init__(
        self,
        config: AttentiveUNetConfig,
        parts: Parts,
        image_size: int,
        channels: int,
        out_channels: int,
        classes: int,
    ) -> None:
        super().__init__()
        base, widths, crossing = config.base_channels, config.widths, config.cross_attention
        self.time_embedding = parts.time_embedding()
        self.label_embedding = label_embedding(classes, 4 * base) if crossing is None else None
        self.sequences = None if crossing is None else Sequences(crossing, classes)
        self.head = parts.head(channels)

        self.down = nn.ModuleList()
        skips, width, size = [base], base, image_size
        for level, out in enumerate(widths):
            for _ in range(config.blocks_per_level):
                self.down.append(_Level(parts, width, out, attention=size in config.attention_sizes))
                skips.append(width := out)
            if level < len(widths) - 1:
                self.down.append(parts.shrink(width))
                skips.append(width)
                size //= 2

        self.middle = nn.ModuleList(_Level(parts, width, width, attention=attention) for attention in (True, False))

        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(config.blocks_per_level + 1):
                attention = size in config.attention_sizes
                self.up.append(_Level(parts, width + skips.pop(), out, attention=attention))
                width = out
            if level > 0:
                self.up.append(parts.grow(width))
                size *= 2

        self.norm = parts.norm(width)
        self.tail = parts.tail(width, out_channels)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """t: the path's time; label: 0 to classes - 1, `classes` for none, or a sequence."""
        embedding, sequence = self._told(x, t, label)
        h = self.head(x)
        skips = [h]
        for block in self.down:
            h = block(h, embedding, sequence) if isinstance(block, _Level) else block(h, embedding)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding, sequence)
        for block in self.up:
            if isinstance(block, _Level):
                h = block(torch.cat((h, skips.pop()), dim=1), embedding, sequence)
            else:
                h = block(h, embedding)
        return cast(Tensor, self.tail(F.silu(self.norm(h))))

    def _told(self, x: Tensor, t: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What every block is told, [B, 4 * base_channels], and what attention sees, [B, L, width] in x's dtype."""
        time = self.time_embedding(t)
        if self.sequences is not None:
            sequence: Tensor = self.sequences(label, len(x))
            return F.silu(time), sequence.to(x.dtype)
        if label is not None and label.is_floating_point():
            raise ValueError(
                f"the network was built without cross_attention and takes no sequence, float {list(label.shape)}; "
                "pass int64 [B] or None, or set cross_attention"
            )
        return condition(time, self.label_embedding, label), None


class _Level(nn.Module):
    """A residual block, with attention behind it where asked."""

    def __init__(self, parts: Parts, channels: int, out: int, *, attention: bool) -> None:
        super().__init__()
        self.residual = parts.residual(channels, out)
        self.attention = parts.attention(out) if attention else None

    def forward(self, x: Tensor, embedding: Tensor, sequence: Tensor | None) -> Tensor:
        h: Tensor = self.residual(x, embedding)
        if self.attention is not None:
            h = self.attention(h) if sequence is None else self.attention(h, sequence)
        return h
