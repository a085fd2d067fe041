"""Cross-attention of an image on a sequence of embeddings, as in latent diffusion. Rombach et al. 2022, section 3.3.

After their published code, layer for layer, with one transformer block in each spatial transformer. What is theirs and
easily missed: queries, keys and values have no bias; the hidden layer is gated by the exact GELU (GEGLU) and four times
as wide as the block; the projection out starts at exactly zero, all else as PyTorch has it. The embeddings of a
sequence have no positions: whoever wants them to have some adds them before.
"""

from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .record import Record


class CrossAttention(Record):
    """What the network attends to beside the image. Rombach et al. 2022, section 3.3."""

    width: int = Field(512, ge=1)
    """Numbers in each embedding of the sequence; 512 in latent diffusion's class-conditional ImageNet model."""
    tokens: int = Field(8, ge=1)
    """Embeddings in the sequence that each class learns; a sequence that is given may have any number of them."""
    heads: int = Field(8, ge=1)
    """Heads of self- and cross-attention; must divide the channels of the levels that have attention."""


class Sequences(nn.Module):
    """What an image's blocks attend to: the learned sequence of its class, or the one that is given."""

    def __init__(self, config: CrossAttention, classes: int) -> None:
        super().__init__()
        self.width = config.width
        self.table = nn.Parameter(torch.randn(classes + 1, config.tokens, config.width)) if classes else None

    def forward(self, label: Tensor | None, count: int) -> Tensor:
        """label: int64 [B], or a sequence, float [B, L, width]; count: number of images B -> [B, L, width].

        ValueError where it is missing, does not fit, or is a class of a network without classes.
        """
        if label is not None and label.is_floating_point():
            return self._given(label, count)
        sequence = f"a sequence, float [B, L, {self.width}]"
        if self.table is None:
            found = "was given no sequence" if label is None else "takes no label"
            raise ValueError(f"the network was built without classes and {found}; pass {sequence}, or set classes")
        if label is None:
            null = len(self.table) - 1
            raise ValueError(
                f"the network has {null} classes and was given no label; pass int64 [B], {null} for none, or {sequence}"
            )
        _, tokens, width = self.table.shape
        return F.embedding(label, self.table.flatten(1)).view(-1, tokens, width)

    def _given(self, sequence: Tensor, count: int) -> Tensor:
        fits = (
            sequence.ndim == 3 and (len(sequence), sequence.shape[2]) == (count, self.width) and sequence.shape[1] > 0
        )
        if not fits:
            raise ValueError(
                f"the sequence is {list(sequence.shape)}, but {count} images and cross_attention.width {self.width} "
                f"need [{count}, L, {self.width}], L of 1 or more; pass such a one, or set width to the embeddings'"
            )
        return sequence


class SpatialTransformer(nn.Module):
    """A transformer block over all pixels, between two 1x1 convolutions, added to its input."""

    def __init__(self, norm: nn.GroupNorm, config: CrossAttention, dropout: float) -> None:
        """norm: the first layer, of the network's own kind; it knows the channels."""
        super().__init__()
        channels = norm.num_channels
        self.norm = norm
        self.project_in = nn.Conv2d(channels, channels, 1)
        self.block = TransformerBlock(channels, config, dropout)
        self.project_out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.project_out.weight)
        assert self.project_out.bias is not None
        nn.init.zeros_(self.project_out.bias)

    def forward(self, x: Tensor, sequence: Tensor) -> Tensor:
        """x: [B, C, H, W]; sequence: [B, L, width] -> [B, C, H, W]."""
        pixels = self.project_in(self.norm(x)).flatten(2).transpose(1, 2)
        pixels = self.block(pixels, sequence)
        return x + cast(Tensor, self.project_out(pixels.transpose(1, 2).reshape(x.shape)))


class TransformerBlock(nn.Module):
    """Pixels look at each other, then at the sequence, then go through a gated hidden layer; each after a norm."""

    def __init__(self, channels: int, config: CrossAttention, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, channels, config.heads, dropout)
        self.norm2 = nn.LayerNorm(channels)
        self.cross_attention = Attention(channels, config.width, config.heads, dropout)
        self.norm3 = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels, dropout)

    def forward(self, pixels: Tensor, sequence: Tensor) -> Tensor:
        """pixels: [B, N, C]; sequence: [B, L, width] -> [B, N, C]."""
        normed = self.norm1(pixels)
        pixels = pixels + self.self_attention(normed, normed)
        pixels = pixels + self.cross_attention(self.norm2(pixels), sequence)
        return pixels + cast(Tensor, self.feed_forward(self.norm3(pixels)))


class Attention(nn.Module):
    """Multi-head attention of pixels on a context, scaled by the root of a head's channels."""

    def __init__(self, channels: int, context_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(context_width, channels, bias=False)
        self.value = nn.Linear(context_width, channels, bias=False)
        self.project = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pixels: Tensor, context: Tensor) -> Tensor:
        """pixels: [B, N, C]; context: [B, L, context_width] -> [B, N, C]."""
        q, k, v = (
            layer(seen).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, seen in ((self.query, pixels), (self.key, context), (self.value, context))
        )
        mixed = F.scaled_dot_product_attention(q, k, v)  # [B, heads, N, C / heads]
        return cast(Tensor, self.dropout(self.project(mixed.transpose(1, 2).flatten(2))))


class FeedForward(nn.Module):
    """A hidden layer of four times the channels, each of its values gated by another. Shazeer 2020, eq. 6."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, 2 * 4 * channels)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(4 * channels, channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        value, gate = self.hidden(pixels).chunk(2, dim=-1)
        return cast(Tensor, self.out(self.dropout(value * F.gelu(gate))))
