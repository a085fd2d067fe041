"""Which layer of diffusers' U-Nets is which of ours, and their weights in it."""

import re
from typing import Any

from torch import nn

RESIDUAL = {"time_emb_proj": "time", "conv_shortcut": "shortcut"}
ATTENTION = {
    "group_norm": "norm",
    "to_q": "query_key_value.0",
    "to_k": "query_key_value.1",
    "to_v": "query_key_value.2",
    "to_out.0": "project",
}
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
OUTSIDE = {
    "time_embedding.linear_1": "time_embedding.dense1",
    "time_embedding.linear_2": "time_embedding.dense2",
    "conv_in": "head",
    "conv_norm_out": "norm",
    "conv_out": "tail",
    "class_embedding": "label_embedding",
}
BLOCK = re.compile(
    r"(?P<side>down|mid|up)_blocks?\.?(?P<level>\d*)\.(?P<kind>resnets|attentions|downsamplers|upsamplers)"
    r"\.(?P<number>\d+)\.(?P<layer>.+)"
)


def our_name(theirs: str, blocks_per_level: int) -> str:
    """Name of the same layer in our network: theirs count blocks by level, ours in one row."""
    if theirs in OUTSIDE:
        return OUTSIDE[theirs]
    found = BLOCK.fullmatch(theirs)
    assert found, theirs
    side, kind, number, layer = found["side"], found["kind"], int(found["number"]), found["layer"]
    if kind == "attentions" and layer not in ATTENTION:
        layer = in_transformer(layer)
    else:
        layer = (ATTENTION if kind == "attentions" else RESIDUAL).get(layer, layer)
    if side == "mid":
        position = number
    else:
        blocks = blocks_per_level + (side == "up")
        position = int(found["level"]) * (blocks + 1) + (blocks if kind.endswith("samplers") else number)
    inner = {"resnets": "residual.", "attentions": "attention."}.get(kind, "")
    return f"{ {'mid': 'middle'}.get(side, side) }.{position}.{inner}{layer}"


def in_transformer(theirs: str) -> str:
    """Name of the same layer in our spatial transformer."""
    for name, ours in TRANSFORMER.items():
        theirs = theirs.replace(name, ours)
    return theirs


def copy_weights(theirs: Any, ours: nn.Module, blocks_per_level: int) -> None:
    """Every weight of theirs into ours, and every one of ours from theirs."""
    source = theirs.state_dict()
    targets = {name: parameter.data for name, parameter in ours.named_parameters()}
    for name in [name for name in targets if ".query_key_value.weight" in name or ".query_key_value.bias" in name]:
        layer, _, kind = name.rpartition(".")  # ADM's one layer is their three
        targets |= {f"{layer}.{part}.{kind}": third for part, third in enumerate(targets.pop(name).chunk(3))}
    for name, weight in source.items():
        layer, _, kind = name.rpartition(".")
        target = targets.pop(f"{our_name(layer, blocks_per_level)}.{kind}")
        target.copy_(weight.reshape(target.shape))  # their dense layers of attention are our 1x1 convolutions
    assert not targets
