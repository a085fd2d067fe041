"""The weights of diffusers' U-Nets in ours, those with cross-attention too, which no UNet2DModel has."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.models.diffusers_layers import to_ours

TRANSFORMER = {
    "proj_in": "project_in",
    "proj_out": "project_out",
    "transformer_blocks.0": "block",
    "attn1": "self_attention",
    "attn2": "cross_attention",
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "to_out.0": "project",
    "ff.net.0.proj": "feed_forward.hidden",
    "ff.net.2": "feed_forward.out",
}


def in_transformer(theirs: str) -> str:
    """Name of the same layer in our spatial transformer."""
    for name, ours in TRANSFORMER.items():
        theirs = theirs.replace(name, ours)
    return theirs


def copy_weights(theirs: Any, ours: nn.Module, blocks_per_level: int) -> None:
    """Every weight of theirs into ours, and every one of ours from theirs."""
    weights: Mapping[str, Tensor] = theirs.state_dict()
    if any("transformer_blocks" in name for name in weights):
        weights = {_as_if_plain(name): weight for name, weight in weights.items()}
    ours.load_state_dict(to_ours(weights, ours, blocks_per_level))


def _as_if_plain(theirs: str) -> str:
    """Layers of a transformer by our names, but its norm by the one that plain attention has there."""
    block, attention, rest = theirs.partition(".attentions.")
    number, _, layer = in_transformer(rest).partition(".")
    if layer.startswith("norm."):
        layer = f"group_{layer}"
    return f"{block}{attention}{number}.{layer}" if attention else theirs
