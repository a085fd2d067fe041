"""The U-Net is the one of Ho et al. 2020: its size, its initial output, its odd details."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model import ADMUNet, CrossAttention, DDPMUNet, Simple, VPLinear, denoising_loss
from model.ddpm_unet import AttentionBlock, Downsample, ResidualBlock
from model.embedding import TimeEmbedding
from model.targets import Eps
from model.unet import group_count

from .small_networks import CLOSEST, SMALL, overfit, shape_of
from .small_networks import parameters as counted

NARROW = DDPMUNet(base_channels=16, channel_multipliers=(1, 2), blocks_per_level=1, attention_sizes=(4,))


@pytest.mark.parametrize(
    ("config", "image_size", "parameters"),
    [
        (DDPMUNet(), 32, 35_746_307),
        (DDPMUNet(channel_multipliers=(1, 1, 2, 2, 4, 4)), 256, 113_673_219),
    ],
    ids=["cifar10", "lsun"],
)
def test_parameters_are_as_many_as_in_the_paper(config: DDPMUNet, image_size: int, parameters: int) -> None:
    assert counted(config, image_size, channels=3, out_channels=3, classes=0) == parameters


def test_fresh_network_predicts_almost_nothing() -> None:
    network = DDPMUNet(base_channels=32, attention_sizes=(8,)).build(8, 1, 1, 0)
    output = network(torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 500, 999]))
    assert 0 < output.abs().max() < 1e-3


def test_fresh_network_starts_with_the_loss_of_predicting_zero() -> None:
    network = NARROW.build(8, 3, 3, 0)
    x0, eps = torch.rand(64, 3, 8, 8) * 2 - 1, torch.randn(64, 3, 8, 8)
    loss = denoising_loss(network, VPLinear(), Eps(), Simple(), x0, torch.arange(0, 960, 15).double(), eps)
    torch.testing.assert_close(loss, eps.square().mean((1, 2, 3)), rtol=1e-3, atol=0)


def test_initial_weights_are_uniform_of_the_average_fan() -> None:
    """Variance 1 / mean(fan-in, fan-out); biases 0. The convolution from 16 to 32 channels has fans 144 and 288."""
    block = ResidualBlock(16, 32, 64, dropout=0)
    assert block.conv1.weight.var().item() == pytest.approx(1 / 216, rel=0.1)
    assert block.conv1.weight.abs().max() <= (3 / 216) ** 0.5
    assert block.conv2.weight.var().item() == pytest.approx(1e-10 / 288, rel=0.1, abs=0)
    assert not any(module.bias.any() for module in block.modules() if isinstance(module, nn.Conv2d | nn.Linear))


def test_fresh_attention_changes_almost_nothing() -> None:
    x = torch.randn(2, 16, 4, 4)
    change = AttentionBlock(16)(x) - x
    assert 0 < change.abs().max() < 1e-4


def test_time_embedding_holds_sines_before_cosines() -> None:
    """Frequencies fall from 1 to 1 / 10,000, both included."""
    sinusoids = sinusoids_of(TimeEmbedding(8, 32, "ddpm"), torch.tensor([0, 7]))
    frequencies = 10_000 ** (-torch.arange(4) / 3)
    expected = torch.cat([(7 * frequencies).sin(), (7 * frequencies).cos()])
    torch.testing.assert_close(sinusoids, torch.stack([torch.tensor([0.0] * 4 + [1.0] * 4), expected]))


def test_time_embedding_stays_float32_under_bfloat16_autocast() -> None:
    t = torch.tensor([998, 1000])
    assert t[0].bfloat16() == t[1].bfloat16()  # what rounding the times would do
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sinusoids = sinusoids_of(TimeEmbedding(128, 512, "ddpm"), t)
    assert sinusoids.dtype == torch.float32
    torch.testing.assert_close(sinusoids, sinusoids_of(TimeEmbedding(128, 512, "ddpm"), t), rtol=0, atol=0)
    assert (sinusoids[0] - sinusoids[1]).abs().max() > 1


def sinusoids_of(embedding: TimeEmbedding, t: Tensor) -> Tensor:
    """What the first dense layer is given."""
    seen: list[Tensor] = []
    with embedding.dense1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        embedding(t)
    return seen[0]


def test_downsample_pads_right_and_bottom() -> None:
    """TensorFlow's "SAME": the first window starts at the first pixel, the last one hangs over by one."""
    layer, x = Downsample(1), torch.randn(1, 1, 4, 4)
    centre_only = torch.zeros(1, 1, 3, 3)
    centre_only[0, 0, 0, 0] = 1  # picks the window's upper left pixel
    layer.conv.weight.data = centre_only
    assert torch.equal(layer(x, x), x[:, :, ::2, ::2])
    symmetric = F.conv2d(x, centre_only, stride=2, padding=1)
    assert not torch.equal(layer(x, x), symmetric)


def test_attention_is_one_head_scaled_by_all_channels() -> None:
    block = AttentionBlock(16)
    nn.init.xavier_uniform_(block.project.weight)
    x = torch.randn(2, 16, 3, 3)
    q, k, v = (layer(block.norm(x)).flatten(2) for layer in block.query_key_value)  # [B, C, pixels]
    weights = torch.einsum("bcq,bck->bqk", q, k).div(16**0.5).softmax(-1)
    mixed = torch.einsum("bqk,bck->bcq", weights, v).reshape(x.shape)
    torch.testing.assert_close(block(x), x + block.project(mixed))


@pytest.mark.parametrize(
    ("levels", "image_size", "message"),
    [
        (3, 30, "3 levels halve the image 2 times, but 30 pixels do not divide by 4; use fewer channel_multipliers"),
        (2, 9, "2 levels halve the image 1 times, but 9 pixels do not divide by 2"),
    ],
)
def test_image_size_that_does_not_halve_is_refused(levels: int, image_size: int, message: str) -> None:
    config = DDPMUNet(channel_multipliers=(1,) * levels, attention_sizes=())
    with pytest.raises(ValueError, match=message):
        config.check_image_size(image_size)
    with pytest.raises(ValueError, match=message):
        config.build(image_size, 1, 1, 0)


def test_attention_at_a_size_that_no_level_has_is_refused() -> None:
    config = DDPMUNet(channel_multipliers=(1, 2), attention_sizes=(16, 4))
    with pytest.raises(
        ValueError, match=r"attention_sizes \[16\] are no level's; the levels have \[8, 4\] pixels; name some"
    ):
        config.check_image_size(8)


@pytest.mark.parametrize(
    "bad",
    [
        {"base_channels": 12},
        {"base_channels": 0},
        {"channel_multipliers": ()},
        {"channel_multipliers": (1, 0)},
        {"blocks_per_level": 0},
        {"dropout": 1},
        {"heads": 4},
    ],
    ids=str,
)
def test_hyper_parameter_out_of_its_range_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        DDPMUNet.model_validate(bad)


@example(base=72, multipliers=[1, 2], blocks=1, classes=0)  # 216 channels meet on the way up
@settings(max_examples=12)
@given(
    base=st.integers(1, 40).map(lambda k: 8 * k),
    multipliers=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    blocks=st.integers(1, 2),
    classes=st.integers(0, 3),
)
def test_every_accepted_configuration_can_be_built(
    base: int, multipliers: list[int], blocks: int, classes: int
) -> None:
    """Also where 32 groups do not divide the channels."""
    config = DDPMUNet(
        base_channels=base, channel_multipliers=tuple(multipliers), blocks_per_level=blocks, attention_sizes=(8,)
    )
    assert shape_of(config, 8, 1, 1, classes) == (2, 1, 8, 8)


def test_groups_are_32_or_fewer_of_four_channels_or_more() -> None:
    assert [group_count(channels) for channels in (4, 8, 64, 128, 216, 1024)] == [1, 2, 16, 32, 27, 32]


@pytest.mark.parametrize("kind", [DDPMUNet, ADMUNet])
@pytest.mark.parametrize("crossing", [None, CrossAttention(heads=4)])
def test_all_norms_have_the_groups_that_are_asked_for(kind: Any, crossing: CrossAttention | None) -> None:
    config = kind(**NARROW.model_dump(exclude={"kind"}) | {"norm_groups": 4, "cross_attention": crossing})
    norms = [module for module in config.build(8, 1, 1, 2).modules() if isinstance(module, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {4}
    with pytest.raises(ValueError, match="norm_groups 5 does not divide base_channels 16; use another number, or null"):
        config.model_copy(update={"norm_groups": 5}).check_image_size(8)


@pytest.mark.slow
def test_sixteen_images_are_learned_by_heart() -> None:
    loss, distances = overfit(SMALL["ddpm_unet"], steps=400, learning_rate=6e-3)
    assert loss < 0.1
    assert distances.max() < CLOSEST
