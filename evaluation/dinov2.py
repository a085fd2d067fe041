"""DINOv2's vision transformer (Oquab et al. 2023) as a feature extractor, from its published weights in a local file.

Features are the class token after the last norm, of images resized to 224x224 by Pillow's bicubic interpolation and
normalised by ImageNet's mean and deviation: Stein et al. 2023, "Exposing flaws of generative model evaluation metrics".
"""

import math
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from .errors import EvaluationError
from .weights_file import WeightsFile

IMAGE_SIZE, PATCH_SIZE, HEAD_WIDTH = 224, 14, 64
GRID = IMAGE_SIZE // PATCH_SIZE
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images in [0, 1]


class DINOv2(WeightsFile):
    """DINOv2's ViT-S/14, B/14 or L/14 from a local file: by Stein et al. 2023 the closest to what people see."""

    kind: Literal["dinov2"] = "dinov2"
    weights: str
    """State dict file in the published naming, such as dinov2_vitl14_pretrain.pth; its size says which network."""


class VisionTransformer(nn.Module):
    """Pre-norm transformer over 16x16 patches and a class token; parameters are named as in the published file."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.width = width
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, width, PATCH_SIZE, stride=PATCH_SIZE)))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID**2, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """The class token's features. images: uint8 [B, 3, H, W] -> float32 [B, D]."""
        x = resized(images)
        mean, deviation = (x.new_tensor(channels)[:, None, None] for channels in (MEAN, DEVIATION))
        patches = self.patch_embed((x / 255 - mean) / deviation).flatten(2).mT
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1) + self.pos_embed
        return (self.norm(self.blocks(tokens))[:, 0],)


class Block(nn.Module):
    """Attention and perceptron, each added to the tokens by a learned scale for every feature. [B, N, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, 4 * width), act=nn.GELU(), fc2=nn.Linear(4 * width, width))
        )
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        scaled: Tensor = self.ls2(self.mlp(self.norm2(tokens)))
        return tokens + scaled


class Attention(nn.Module):
    """Of every token to all, with heads of 64 features. [B, N, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        query, key, value = self.qkv(tokens).unflatten(2, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.proj(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return mixed


class LayerScale(nn.Module):
    """Touvron et al. 2021, "Going deeper with image transformers", eq. 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        return tokens * self.gamma


def resized(images: Tensor) -> Tensor:
    """As Pillow resizes square images, to a grey level: antialiased, and rounded after either axis, rows first.

    images: uint8 [B, C, H, W] -> float32 [B, C, 224, 224] in 0..255.
    """
    x = images.float()
    for size in ((images.shape[2], IMAGE_SIZE), (IMAGE_SIZE, IMAGE_SIZE)):
        x = interpolate(x, size=size, mode="bicubic", antialias=True).round().clamp(0, 255)
    return x


def build_vision_transformer(state: dict[str, Tensor], source: Path) -> VisionTransformer:
    """The network whose weights these are. EvaluationError, which names their source, where they are of another."""
    try:
        return _built(state)
    except (KeyError, ValueError, RuntimeError) as error:
        first_words = " ".join(str(error).split())[:200]
        raise EvaluationError(
            f"{source}: not the weights of DINOv2's ViT-S/14, B/14 or L/14 without registers ({first_words}); use "
            f"dinov2_vits14_pretrain.pth, dinov2_vitb14_pretrain.pth or dinov2_vitl14_pretrain.pth"
        ) from None


def _built(state: dict[str, Tensor]) -> VisionTransformer:
    """KeyError, ValueError or RuntimeError where a name or a shape is not the published one."""
    width = state["cls_token"].shape[-1]
    if width % HEAD_WIDTH:
        raise ValueError(f"{width} features are not heads of {HEAD_WIDTH}")
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    with torch.device("meta"):
        network = VisionTransformer(width, depth)
    weights = {name: value.float() for name, value in state.items() if name != "mask_token"}  # for training only
    network.load_state_dict(weights | {"pos_embed": _positions(weights["pos_embed"])}, assign=True)
    return network.eval().requires_grad_(False)


def _positions(embedding: Tensor) -> Tensor:
    """Position embedding of the 16x16 patches from that of a larger square. [1, 1 + M^2, D] -> [1, 257, D].

    As published: bicubic without antialiasing, by the factor (16 + 0.1) / M, whose tenth shifts the samples a little.
    """
    side = math.isqrt(embedding.shape[1] - 1)
    if side**2 + 1 != embedding.shape[1]:
        raise ValueError(f"pos_embed is {list(embedding.shape)}, expected [1, 1 + a square, D]")
    if side == GRID:
        return embedding
    square = embedding[:, 1:].mT.unflatten(2, (side, side))
    factor = (GRID + 0.1) / side
    patches = interpolate(square, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([embedding[:, :1], patches.flatten(2).mT], dim=1)
