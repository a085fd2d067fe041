"""The diffusion transformer with adaLN-Zero blocks, layer for layer. Peebles & Xie 2023.

With the defaults, 4 channels in, 8 out and 1,000 classes it is DiT-S/2. What is theirs and easily missed: positions are
fixed sinusoids of column and row; all cosines of the time stand before all sines; the layers that modulate and the
output start at zero, so that each block starts as the identity and the network predicts exactly zero.
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from .embedding import TimeEmbedding, condition, label_embedding
from .record import Record

_SINUSOIDS = 256  # of the time


class DiT(Record):
    """Diffusion transformer with adaLN-Zero blocks. Peebles & Xie 2023, section 3."""

    kind: Literal["dit"] = "dit"
    patch_size: int = Field(2, ge=1)
    """Side of the square patches that become tokens, pixels."""
    width: int = Field(384, ge=8, multiple_of=4)
    """Channels of a token: 384, 768, 1024, 1152 in DiT-S, B, L, XL."""
    depth: int = Field(12, ge=1, le=1_000)
    """Blocks: 12, 12, 24, 28 in DiT-S, B, L, XL."""
    heads: int = Field(6, ge=1)
    """Attention heads; must divide width: 6, 12, 16, 16 in DiT-S, B, L, XL."""
    mlp_ratio: float = Field(4.0, ge=1)
    """Width of each block's hidden layer in units of width."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of activations that hidden layers drop in training."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide among {self.heads} heads; change one of them")
        return self

    def check_image_size(self, image_size: int) -> None:
        """ValueError unless patches tile the image (pixels)."""
        if image_size % self.patch_size:
            raise ValueError(
                f"{image_size} pixels do not divide into patches of {self.patch_size}; use another patch_size"
            )

    def build(self, image_size: int, channels: int, out_channels: int, classes: int) -> "Transformer":
        """A freshly initialised network for square images of `image_size` pixels; `classes` 0: without labels."""
        self.check_image_size(image_size)
        return Transformer(self, image_size, channels, out_channels, classes)


class Transformer(nn.Module):
    """(x_t [B, C, H, W], t [B], label int64 [B] or None) -> [B, out_channels, H, W]."""

    positions: Tensor

    def __init__(self, config: DiT, image_size: int, channels: int, out_channels: int, classes: int) -> None:
        super().__init__()
        width, self.patch_size, self.grid_size = config.width, config.patch_size, image_size // config.patch_size
        self.patches = nn.Conv2d(channels, width, config.patch_size, config.patch_size)
        self.register_buffer("positions", _positions(width, self.grid_size), persistent=False)
        self.time_embedding = TimeEmbedding(_SINUSOIDS, width, "iddpm")
        self.label_embedding = label_embedding(classes, width)
        blocks = [_Block(config) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, config.patch_size**2 * out_channels)
        self.apply(_initialise)
        nn.init.xavier_uniform_(self.patches.weight.view(width, -1))
        assert self.patches.bias is not None
        nn.init.zeros_(self.patches.bias)
        for layer in (self.time_embedding.dense1, self.time_embedding.dense2):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.modulation, self.out, *(block.modulation for block in blocks)):
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """t: the path's time; label: 0 to classes - 1, or `classes` for none."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        embedding = condition(self.time_embedding(t), self.label_embedding, label)
        for block in self.blocks:
            tokens = block(tokens, embedding)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=-1)
        return self._image(self.out(self.norm(tokens) * (1 + scale) + shift))

    def _image(self, tokens: Tensor) -> Tensor:
        """[B, N, p * p * C] -> [B, C, H, W]."""
        g, p = self.grid_size, self.patch_size
        return tokens.view(len(tokens), g, g, p, p, -1).permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, g * p, g * p)


class _Block(nn.Module):
    """Attention and a hidden layer, each modulated and gated by time and label."""

    def __init__(self, config: DiT) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Dropout(config.dropout), nn.Linear(hidden, width)
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: [B, N, width]; embedding: [B, width], after its swish."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self._attention(self.norm1(x) * (1 + scale1) + shift1)
        mixed: Tensor = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return mixed

    def _attention(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        qkv = self.query_key_value(x).view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0))
        projected: Tensor = self.project(mixed.transpose(1, 2).reshape(count, length, width))
        return projected


def _positions(width: int, size: int) -> Tensor:
    """Fixed sinusoids: half of the channels say the column, half the row. -> [1, size^2, width]."""
    quarter = width // 4
    frequencies = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(size, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat((angles.sin(), angles.cos()), dim=1)  # [size, width / 2]
    columns, rows = line.repeat(size, 1), line.repeat_interleave(size, dim=0)
    return torch.cat((columns, rows), dim=1)[None].float()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
