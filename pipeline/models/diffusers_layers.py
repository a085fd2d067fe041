"""Which weights of diffusers' UNet2DModel are which of ours, and both from each other.

Theirs count blocks by level, ours in one row. Queries, keys and values are three layers there, and one in `adm_unet`.
Their attention has dense layers where ours has 1x1 convolutions, which hold the same numbers.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_OUTSIDE = {
    "time_embedding.dense1": "time_embedding.linear_1",
    "time_embedding.dense2": "time_embedding.linear_2",
    "label_embedding": "class_embedding",
    "head": "conv_in",
    "norm": "conv_norm_out",
    "tail": "conv_out",
}
_RESIDUAL = {"time": "time_emb_proj", "shortcut": "conv_shortcut"}
_ATTENTION = {
    "norm": ("group_norm",),
    "query_key_value": ("to_q", "to_k", "to_v"),
    "query_key_value.0": ("to_q",),
    "query_key_value.1": ("to_k",),
    "query_key_value.2": ("to_v",),
    "project": ("to_out.0",),
}
_FORMERLY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Attention's layers as the first versions of diffusers named them, and Google's DDPM models still do."""
_BLOCK = re.compile(r"(?P<side>down|middle|up)\.(?P<position>\d+)\.((?P<part>residual|attention)\.)?(?P<layer>.+)")
_IN_ATTENTION = re.compile(r"(.+\.attentions\.\d+)\.(\w+)\.(weight|bias)")
_DENSE_THERE = re.compile(r".+\.attention\.(query_key_value(\.\d)?|project)")


def their_names(ours: str, blocks_per_level: int) -> list[str]:
    """Names there of the layer that has this name in our `UNet`: one, or three of queries, keys and values."""
    if ours in _OUTSIDE:
        return [_OUTSIDE[ours]]
    found = _BLOCK.fullmatch(ours)
    assert found, ours
    side, position, part, layer = found["side"], int(found["position"]), found["part"], found["layer"]
    layers = _ATTENTION.get(layer, (layer,)) if part == "attention" else (_RESIDUAL.get(layer, layer),)
    if side == "middle":
        place = f"mid_block.{_part_there(part)}.{position}"
    else:
        blocks = blocks_per_level + (side == "up")
        level, number = divmod(position, blocks + 1)
        place = f"{side}_blocks.{level}."
        place += f"{side}samplers.0" if number == blocks else f"{_part_there(part)}.{number}"
    return [f"{place}.{layer}" for layer in layers]


def _part_there(part: str) -> str:
    """Where a level there keeps its residual blocks, or its attention."""
    return {"residual": "resnets", "attention": "attentions"}[part]


def to_ours(theirs: Mapping[str, Tensor], network: nn.Module, blocks_per_level: int) -> dict[str, Tensor]:
    """Their weights by our names, in the shapes of our network, in their own precision.

    ValueError, with the first name, where one is missing, of another shape, or left over.
    """
    left = {_today(name): tensor for name, tensor in theirs.items()}
    found = {}
    for name, parameter in network.state_dict().items():
        layer, _, kind = name.rpartition(".")
        names = [f"{there}.{kind}" for there in their_names(layer, blocks_per_level)]
        expected = [list(each.shape) for each in _as_theirs(layer, parameter, len(names))]
        for there, shape in zip(names, expected, strict=True):
            if there not in left or list(left[there].shape) != shape:
                has = f"is {list(left[there].shape)}" if there in left else "is missing"
                raise ValueError(f"{there} {has}, where the network that its config describes has {shape}")
        found[name] = torch.cat([left.pop(there) for there in names]).reshape(parameter.shape)
    if left:
        raise ValueError(f"{min(left)} is no weight of the network that its config describes")
    return found


def to_theirs(ours: Mapping[str, Tensor], blocks_per_level: int) -> dict[str, Tensor]:
    """Our weights by their names, in their shapes."""
    found = {}
    for name, tensor in ours.items():
        layer, _, kind = name.rpartition(".")
        names = their_names(layer, blocks_per_level)
        for there, part in zip(names, _as_theirs(layer, tensor, len(names)), strict=True):
            found[f"{there}.{kind}"] = part.contiguous()
    return found


def _as_theirs(layer: str, tensor: Tensor, parts: int) -> list[Tensor]:
    """One of our weights in as many parts, dense where theirs are."""
    if _DENSE_THERE.fullmatch(layer) and tensor.ndim > 1:
        tensor = tensor.flatten(1)
    return list(tensor.chunk(parts))


def _today(theirs: str) -> str:
    """The name that diffusers would give this weight now."""
    if found := _IN_ATTENTION.fullmatch(theirs):
        place, layer, kind = found.groups()
        return f"{place}.{_FORMERLY.get(layer, layer)}.{kind}"
    return theirs
