"""`config.json` of diffusers' UNet2DModel, as far as a network of ours computes the same.

Each key is theirs, with the default that diffusers gives it where a file leaves it out. The time embedding tells which
of our networks it is: `freq_shift` 1 is Ho et al.'s (`ddpm_unet`), 0 Nichol & Dhariwal's (`adm_unet`).
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import nn

from model import ADMUNet, DDPMUNet, ModelSpec, Record

from ..runfile.schema import value_words

_ALWAYS = {"center_input_sample": False, "mid_block_scale_factor": 1.0, "add_attention": True}
_DDPM = {
    "flip_sin_to_cos": False,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "norm_eps": 1e-6,
    "resnet_time_scale_shift": "default",
}
_ADM = {"flip_sin_to_cos": True, "downsample_padding": 1, "norm_eps": 1e-5}

DownBlock = Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
Resampling = Literal["conv", "resnet"]


class TheirConfig(Record):
    """A config of diffusers. Keys that begin with "_" say how it was written, but for the class."""

    @model_validator(mode="before")
    @classmethod
    def _without_notes(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if not key.startswith("_") or key == "_class_name"}


class UNet2D(TheirConfig):
    """A UNet2DModel that is one of our networks."""

    class_name: Literal["UNet2DModel"] = Field(alias="_class_name")
    sample_size: int = Field(ge=1)
    in_channels: Literal[1, 3] = 3
    out_channels: int = Field(3, ge=1)
    center_input_sample: bool = False
    time_embedding_type: Literal["positional"] = "positional"
    num_train_timesteps: int | None = None  # of another time_embedding_type
    freq_shift: Literal[0, 1] = 0
    flip_sin_to_cos: bool = True
    norm_eps: float = 1e-5
    downsample_padding: int = 1
    downsample_type: Resampling = "conv"
    upsample_type: Resampling = "conv"
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    layers_per_block: int = Field(2, ge=1)
    down_block_types: tuple[DownBlock, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: tuple[UpBlock, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    time_embedding_dim: int | None = None
    mid_block_scale_factor: float = 1.0
    dropout: float = Field(0.0, ge=0, lt=1)
    act_fn: Literal["silu", "swish"] = "silu"
    attention_head_dim: int | None = Field(8, ge=1)
    norm_num_groups: int = Field(32, ge=1)
    attn_norm_num_groups: int | None = None
    add_attention: bool = True
    class_embed_type: None = None
    num_class_embeds: int | None = Field(None, ge=1)

    @field_validator("sample_size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value

    @field_validator(*_ALWAYS)
    @classmethod
    def _as_in_all_of_ours(cls, value: Any, info: ValidationInfo) -> Any:
        expected = _ALWAYS[str(info.field_name)]
        if value != expected:
            raise ValueError(
                f"found {value_words(value)}, expected {value_words(expected)}, which all our networks have"
            )
        return value

    @field_validator(*_DDPM)
    @classmethod
    def _as_in_the_one_of_this_time_embedding(cls, value: Any, info: ValidationInfo) -> Any:
        if (shift := info.data.get("freq_shift")) is None:
            return value  # which is a mistake of its own
        kind, fixed = ("ddpm_unet", _DDPM) if shift == 1 else ("adm_unet", _ADM)
        expected = fixed.get(str(info.field_name), value)
        if value != expected:
            raise ValueError(
                f"found {value_words(value)}, expected {value_words(expected)}, which {kind} has, our network of "
                f"freq_shift {shift}"
            )
        return value

    @field_validator("up_block_types")
    @classmethod
    def _mirror_of_the_way_down(cls, up: tuple[UpBlock, ...], info: ValidationInfo) -> tuple[UpBlock, ...]:
        if (down := info.data.get("down_block_types")) is None:
            return up
        if _attends(up)[::-1] != _attends(down):
            raise ValueError(
                f"found {value_words(up)}, expected the mirror image of down_block_types, with attention on the same "
                "levels, which all our networks have"
            )
        types = (info.data.get("downsample_type", "conv"), info.data.get("upsample_type", "conv"))
        if len(ways := _resamplings(down, up, *types)) > 1:
            raise ValueError(
                "with downsample_type and upsample_type some levels resample by resnet and some by conv, expected one "
                "way for all, which all our networks have"
            )
        if "resnet" in ways and info.data.get("freq_shift") == 1:
            raise ValueError(
                "levels resample by resnet, expected conv, which ddpm_unet has, our network of freq_shift 1"
            )
        return up

    @field_validator("block_out_channels")
    @classmethod
    def _multiples_of_the_first(cls, channels: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        down, size = info.data.get("down_block_types"), info.data.get("sample_size")
        if down is not None and len(channels) != len(down):
            raise ValueError(f"{len(channels)} of them, expected as many as down_block_types, {len(down)}")
        if (
            not channels
            or channels[0] < 8
            or channels[0] % 8
            or any(each < 1 or each % channels[0] for each in channels)
        ):
            raise ValueError(
                f"found {value_words(channels)}, expected a multiple of 8 and then multiples of it, which all our "
                "networks have"
            )
        if size is not None and size % 2 ** (len(channels) - 1):
            raise ValueError(f"{len(channels)} levels halve the image, but sample_size {size} does not divide so often")
        return channels

    @field_validator("time_embedding_dim")
    @classmethod
    def _four_times_the_first(cls, width: int | None, info: ValidationInfo) -> int | None:
        channels = info.data.get("block_out_channels")
        if width is not None and channels and width != 4 * channels[0]:
            raise ValueError(f"found {width}, expected {4 * channels[0]}, four times the first of block_out_channels")
        return width

    @field_validator("attention_head_dim")
    @classmethod
    def _divides_where_attention_is(cls, width: int | None, info: ValidationInfo) -> int | None:
        down, channels = info.data.get("down_block_types"), info.data.get("block_out_channels")
        if width is None or down is None or channels is None:
            return width
        attending = {each for each, attends in zip(channels, _attends(down), strict=True) if attends} | {channels[-1]}
        if uneven := sorted(each for each in attending if each % width):
            raise ValueError(f"{width} does not divide the channels {uneven} of levels with attention")
        return width

    @field_validator("norm_num_groups")
    @classmethod
    def _groups_divide(cls, groups: int, info: ValidationInfo) -> int:
        channels = info.data.get("block_out_channels")
        if channels and channels[0] % groups:
            raise ValueError(f"{groups} does not divide the channels {channels[0]} of the first level")
        return groups

    @field_validator("attn_norm_num_groups")
    @classmethod
    def _the_same_groups(cls, groups: int | None, info: ValidationInfo) -> int | None:
        others, told = info.data.get("norm_num_groups"), info.data.get("resnet_time_scale_shift")
        means = others if groups is None and told == "default" else groups
        if others is not None and told is not None and means != others:
            raise ValueError(
                f"found {value_words(groups)}, expected norm_num_groups, {others}: the norm of the attention in the "
                "middle is like all others in our networks"
            )
        return groups

    @property
    def network(self) -> DDPMUNet | ADMUNet:
        """Our network of this description, with `norm_groups` as many as there."""
        base = self.block_out_channels[0]
        levels: dict[str, Any] = {
            "base_channels": base,
            "channel_multipliers": tuple(width // base for width in self.block_out_channels),
            "blocks_per_level": self.layers_per_block,
            "attention_sizes": tuple(
                self.sample_size >> level for level, attends in enumerate(_attends(self.down_block_types)) if attends
            ),
            "dropout": self.dropout,
            "norm_groups": self.norm_num_groups,
        }
        if self.freq_shift == 1:
            return DDPMUNet(**levels)
        ways = _resamplings(self.down_block_types, self.up_block_types, self.downsample_type, self.upsample_type)
        return ADMUNet(
            **levels,
            **({"heads": 1} if self.attention_head_dim is None else {"head_channels": self.attention_head_dim}),
            scale_shift_norm=self.resnet_time_scale_shift == "scale_shift",
            resample_in_blocks="resnet" in ways,
        )


def unet_of(spec: ModelSpec) -> UNet2D:
    """The config of a model's network that has nothing of `foreign_layers`."""
    network = spec.network
    assert isinstance(network, DDPMUNet | ADMUNet)
    attends = _attending_levels(spec.image_size, network)
    resnet = isinstance(network, ADMUNet) and network.resample_in_blocks
    scale_shift = isinstance(network, ADMUNet) and network.scale_shift_norm
    resampling = "resnet" if resnet else "conv"
    return UNet2D.model_validate(
        {
            "_class_name": "UNet2DModel",
            "sample_size": spec.image_size,
            "in_channels": spec.channels,
            "out_channels": spec.variance.outputs * spec.channels,
            "freq_shift": int(isinstance(network, DDPMUNet)),
            **(_DDPM if isinstance(network, DDPMUNet) else _ADM),
            "downsample_type": resampling,
            "upsample_type": resampling,
            "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
            "layers_per_block": network.blocks_per_level,
            "down_block_types": _blocks(attends, resnet, ("DownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D")),
            "up_block_types": _blocks(attends[::-1], resnet, ("UpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D")),
            "block_out_channels": network.widths,
            "dropout": network.dropout,
            "attention_head_dim": min(_head_channels(spec.image_size, network), default=None),
            "norm_num_groups": min(norm_groups(spec)),
            "attn_norm_num_groups": min(norm_groups(spec)),
            "num_class_embeds": spec.classes + 1 if spec.classes else None,
        }
    )


def foreign_layers(spec: ModelSpec) -> Iterator[str]:
    """What a UNet2DModel cannot express of a model's network."""
    network = spec.network
    if not isinstance(network, DDPMUNet | ADMUNet):
        yield f"network: a UNet2DModel is a ddpm_unet or an adm_unet, and this model has {network.kind}"
        return
    if network.cross_attention is not None:
        yield "network.cross_attention: a UNet2DModel has none"
    if len(groups := norm_groups(spec)) > 1:
        yield (
            f"network: its norms have {sorted(groups)} groups, those of a UNet2DModel all have as many; a network "
            "of 128 base_channels or more can be written, or one that was trained with network.norm_groups"
        )
    if len(channels := _head_channels(spec.image_size, network)) > 1:
        yield (
            f"network.heads: on different levels they have {sorted(channels)} channels, those of a UNet2DModel all "
            "have as many; a network that was trained with network.head_channels can be written"
        )


def norm_groups(spec: ModelSpec) -> set[int]:
    """The numbers of groups that the norms of this model's network have."""
    with torch.device("meta"):
        network = spec.build()
    return {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)}


def _attending_levels(image_size: int, network: DDPMUNet | ADMUNet) -> list[bool]:
    return [image_size >> level in network.attention_sizes for level in range(len(network.widths))]


def _head_channels(image_size: int, network: DDPMUNet | ADMUNet) -> set[int]:
    """The numbers of channels that heads of attention have; none where each level has one head for all its channels."""
    if isinstance(network, DDPMUNet) or (network.head_channels is None and network.heads == 1):
        return set()
    levels = [*zip(network.widths, _attending_levels(image_size, network), strict=True), (network.widths[-1], True)]
    return {network.head_channels or width // network.heads for width, attends in levels if attends}


def _attends(types: Sequence[str]) -> list[bool]:
    """Of each level's blocks, whether they have attention."""
    return [each.startswith("Attn") for each in types]


def _blocks(attends: list[bool], resnet: bool, names: tuple[str, str, str]) -> list[str]:
    """The names of levels in their order. names: of plain ones, those that resample by resnet, those with attention."""
    plain, resampling, attentive = names
    *others, last = attends  # which does not resample
    kinds = [attentive if attend else resampling if resnet else plain for attend in others]
    return [*kinds, attentive if last else plain]


def _resamplings(down: Sequence[str], up: Sequence[str], downsample_type: str, upsample_type: str) -> set[str]:
    """How resolutions change between levels, of `conv` and `resnet`."""
    return {
        "resnet" if each.startswith("Resnet") else way if each.startswith("Attn") else "conv"
        for types, way in ((down, downsample_type), (up, upsample_type))
        for each in types[:-1]
    }
