"""Between images as people store them (uint8, height x width x channels) and as networks see them."""

import torch
from torch import Tensor


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Rounds to the nearest grey level, values outside [-1, 1] to its ends. [B, C, H, W] -> uint8 [B, H, W, C].

    Truncation, which some reference code does, would darken every image by half a level and move its FID.
    """
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
