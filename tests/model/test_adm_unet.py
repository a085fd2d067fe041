"""The U-Net is the one of Improved DDPM and ADM: its sizes, its zeros, its odd details."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model import ADMUNet
from model.adm_unet import AttentionBlock, Downsample, GroupNorm, ResidualBlock
from model.embedding import TimeEmbedding

from .small_networks import CLOSEST, SMALL, awake, overfit, parameters, shape_of

ADM = {"attention_sizes": (32, 16, 8), "resample_in_blocks": True}
SIX_LEVELS = (1, 1, 2, 2, 4, 4)


@pytest.mark.parametrize(
    ("config", "image_size", "classes", "count"),
    [
        (ADMUNet(), 32, 0, 52_546_438),
        (
            ADMUNet(base_channels=192, channel_multipliers=(1, 2, 3, 4), head_channels=64, **ADM),
            64,
            1000,
            295_904_454,
        ),
        (
            ADMUNet(base_channels=256, channel_multipliers=(1, 1, 2, 3, 4), blocks_per_level=2, heads=4, **ADM),
            128,
            1000,
            421_529_606,
        ),
        (
            ADMUNet(base_channels=256, channel_multipliers=SIX_LEVELS, blocks_per_level=2, head_channels=64, **ADM),
            256,
            1000,
            553_838_086,
        ),
    ],
    ids=["Improved DDPM CIFAR-10: 52.5M", "ADM ImageNet 64: 296M", "ADM ImageNet 128: 422M", "ADM ImageNet 256: 554M"],
)
def test_parameters_are_as_many_as_in_the_papers(config: ADMUNet, image_size: int, classes: int, count: int) -> None:
    """Theirs has no row for the label that means none."""
    null_row = 4 * config.base_channels if classes else 0
    assert parameters(config, image_size, channels=3, out_channels=6, classes=classes) == count + null_row


@pytest.mark.parametrize("resample_in_blocks", [False, True])
def test_fresh_network_predicts_exactly_nothing(resample_in_blocks: bool) -> None:
    config = ADMUNet(**SMALL["adm_unet"].model_dump() | {"resample_in_blocks": resample_in_blocks})
    output = config.build(8, 1, 2, 0)(torch.randn(2, 1, 8, 8), torch.tensor([0, 999]))
    assert not output.any()


def test_fresh_blocks_change_nothing() -> None:
    x, embedding = torch.randn(2, 16, 4, 4), torch.randn(2, 64)
    block = ResidualBlock(SMALL["adm_unet"], 16, 16)
    assert torch.equal(block(x, embedding), x)
    assert torch.equal(AttentionBlock(16, heads=4)(x), x)


def test_time_embedding_holds_cosines_before_sines() -> None:
    """Frequencies fall from 1 towards 1 / 10,000, which is not among them."""
    embedding = TimeEmbedding(8, 32, "iddpm")
    torch.testing.assert_close(embedding.frequencies, 10.0 ** -torch.arange(4))
    nn.init.eye_(embedding.dense1.weight)
    nn.init.zeros_(embedding.dense1.bias)
    nn.init.eye_(embedding.dense2.weight)
    nn.init.zeros_(embedding.dense2.bias)
    angles = 7 * 10.0 ** -torch.arange(4)
    expected = F.silu(torch.cat((angles.cos(), angles.sin())))
    torch.testing.assert_close(embedding(torch.tensor([7]))[0, :8], expected)


def test_time_scales_and_shifts_the_second_norm() -> None:
    """At 1 + scale: a block that is told nothing is a plain one."""
    block = awake(ResidualBlock(SMALL["adm_unet"], 16, 16))
    x, embedding = torch.randn(2, 16, 4, 4), torch.randn(2, 64)
    h = block.conv1(F.silu(block.norm1(x)))
    scale, shift = block.time(embedding).view(2, 2, 16, 1, 1).unbind(1)
    expected = x + block.conv2(F.silu(block.norm2(h) * (1 + scale) + shift))
    torch.testing.assert_close(block(x, embedding), expected)


def test_norm_computes_in_float32_and_gives_back_what_came() -> None:
    """10,000 and its neighbours are one number in bfloat16's arithmetic of sums, not in float32's."""
    x = (10_000 + 64 * torch.randint(-4, 5, (1, 8, 16, 16))).bfloat16()
    norm = GroupNorm(8)
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x).float(), norm(x.float()), rtol=0.01, atol=0.01)
    assert norm.double()(x.double()).dtype == torch.float64


def test_downsample_pads_on_all_sides() -> None:
    layer, x = Downsample(1), torch.randn(1, 1, 4, 4)
    layer.conv.weight.data = torch.zeros(1, 1, 3, 3)
    layer.conv.weight.data[0, 0, 1, 1] = 1  # picks the window's centre
    nn.init.zeros_(layer.conv.bias)  # type: ignore[arg-type]  # it has one
    assert torch.equal(layer(x, x), x[:, :, ::2, ::2])


def test_heads_attend_each_to_its_own_channels() -> None:
    block = awake(AttentionBlock(16, heads=2))
    x = torch.randn(2, 16, 3, 3)
    q, k, v = block.query_key_value(block.norm(x)).flatten(2).chunk(3, dim=1)
    mixed = []
    for head in (slice(0, 8), slice(8, 16)):
        weights = torch.einsum("bcq,bck->bqk", q[:, head], k[:, head]).div(8**0.5).softmax(-1)
        mixed.append(torch.einsum("bqk,bck->bcq", weights, v[:, head]))
    expected = x + block.project(torch.cat(mixed, dim=1).view(x.shape))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, r"heads 3 does not divide the channels \[16, 32\] of levels with attention; use another number"),
        ({"head_channels": 32}, r"head_channels 32 does not divide the channels \[16\] of levels with attention"),
        ({"attention_sizes": (), "heads": 5}, r"heads 5 does not divide the channels \[32\]"),
    ],
    ids=str,
)
def test_heads_that_do_not_divide_the_channels_are_refused(options: dict[str, Any], message: str) -> None:
    config = ADMUNet(**{"base_channels": 16, "channel_multipliers": (1, 2), "attention_sizes": (8, 4)} | options)
    with pytest.raises(ValueError, match=message):
        config.check_image_size(8)
    with pytest.raises(ValueError, match=message):
        config.build(8, 1, 1, 0)


def test_image_size_or_attention_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="4 levels halve the image 3 times, but 28 pixels do not divide by 8; use"):
        ADMUNet().check_image_size(28)
    with pytest.raises(ValueError, match=r"attention_sizes \[32\] are no level's; the levels have \[16, 8, 4, 2\]"):
        ADMUNet(attention_sizes=(32, 8)).check_image_size(16)


@pytest.mark.parametrize("bad", [{"heads": 0}, {"head_channels": 0}, {"dropout": 1}, {"base_channels": 4}], ids=str)
def test_hyper_parameter_out_of_its_range_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        ADMUNet.model_validate(bad)


@settings(max_examples=12)
@given(
    base=st.integers(1, 20).map(lambda k: 8 * k),
    multipliers=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    blocks=st.integers(1, 2),
    heads=st.sampled_from([1, 2, 8]),
    head_channels=st.sampled_from([None, 4, 8]),
    scale_shift_norm=st.booleans(),
    resample_in_blocks=st.booleans(),
    classes=st.integers(0, 3),
)
def test_every_accepted_configuration_can_be_built(
    base: int, multipliers: list[int], blocks: int, classes: int, **options: Any
) -> None:
    config = ADMUNet(
        base_channels=base,
        channel_multipliers=tuple(multipliers),
        blocks_per_level=blocks,
        attention_sizes=(8,),
        **options,
    )
    assert shape_of(config, 8, 1, 2, classes) == (2, 2, 8, 8)


@pytest.mark.slow
def test_sixteen_images_are_learned_by_heart() -> None:
    loss, distances = overfit(SMALL["adm_unet"], steps=400, learning_rate=6e-3)
    assert loss < 0.1
    assert distances.max() < CLOSEST
