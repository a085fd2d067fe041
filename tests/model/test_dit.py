"""The transformer is the one of Peebles & Xie 2023: its sizes, its positions, its zeros, and diffusers' output."""

import math
import re
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model import DiT
from model.dit import Transformer

from .small_networks import CLOSEST, SMALL, awake, overfit, parameters, shape_of


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (DiT(), 32_963_360),
        (DiT(width=768, heads=12), 130_512_416),
        (DiT(width=1024, depth=24, heads=16), 458_102_816),
        (DiT(width=1152, depth=28, heads=16), 675_129_632),
    ],
    ids=["S/2", "B/2", "L/2", "XL/2"],
)
def test_parameters_are_as_many_as_in_the_paper(config: DiT, count: int) -> None:
    """Theirs count the fixed positions, too: a row for each of 16x16 patches."""
    assert parameters(config, 32, channels=4, out_channels=8, classes=1000) == count - 256 * config.width


def test_fresh_network_predicts_exactly_nothing() -> None:
    network = SMALL["dit"].build(8, 1, 2, 3)
    output = network(torch.randn(2, 1, 8, 8), torch.tensor([0, 999]), torch.tensor([0, 3]))
    assert output.shape == (2, 2, 8, 8)
    assert not output.any()


def test_fresh_blocks_are_the_identity() -> None:
    x = torch.randn(2, 4, 96)
    for block in SMALL["dit"].build(8, 1, 1, 0).blocks:
        assert torch.equal(block(x, torch.randn(2, 96)), x)


def test_initial_weights_are_the_papers() -> None:
    """Xavier's uniform, patches as if a dense layer; 0.02 for what embeds time and labels; biases 0."""
    network: Any = DiT(depth=1).build(32, 4, 4, 1000)
    assert network.patches.weight.var().item() == pytest.approx(2 / (16 + 384), rel=0.05)
    assert network.blocks[0].query_key_value.weight.abs().max().item() <= math.sqrt(6 / (384 + 3 * 384))
    assert network.blocks[0].query_key_value.weight.var().item() == pytest.approx(2 / (384 + 3 * 384), rel=0.05)
    assert network.time_embedding.dense1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.label_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not any(bias.any() for name, bias in network.named_parameters() if name.endswith("bias"))


def test_positions_are_sinusoids_of_column_then_row() -> None:
    network = DiT(width=8, depth=1, heads=1, patch_size=1).build(3, 1, 1, 0)
    row, column = 2, 1
    expected = [math.sin(column), math.sin(column / 100), math.cos(column), math.cos(column / 100)]
    expected += [math.sin(row), math.sin(row / 100), math.cos(row), math.cos(row / 100)]
    torch.testing.assert_close(network.positions[0, 3 * row + column], torch.tensor(expected))


def test_patches_are_put_back_where_they_were() -> None:
    """Through a network of nothing but its first and last layer, made inverse to one another."""
    network = DiT(width=16, depth=1, heads=1, patch_size=4).build(8, 1, 1, 0)
    network.positions.zero_()
    network.patches.weight.data = torch.eye(16).view(16, 1, 4, 4)
    network.out.weight.data = torch.eye(16)
    x = torch.randn(2, 1, 8, 8)
    cut = x.view(2, 1, 2, 4, 2, 4)
    mean, var = cut.mean((3, 5), keepdim=True), cut.var((3, 5), keepdim=True, correction=0)
    normed = ((cut - mean) / (var + 1e-6).sqrt()).reshape(x.shape)
    torch.testing.assert_close(network(x, torch.tensor([1, 2])), normed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("image_size", "patch_size"), [(9, 2), (2, 4)])
def test_image_that_does_not_divide_into_patches_is_refused(image_size: int, patch_size: int) -> None:
    config = DiT(patch_size=patch_size)
    message = f"{image_size} pixels do not divide into patches of {patch_size}; use another patch_size"
    with pytest.raises(ValueError, match=message):
        config.check_image_size(image_size)
    with pytest.raises(ValueError, match=message):
        config.build(image_size, 1, 1, 0)


def test_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="width 384 does not divide among 5 heads; change one of them"):
        DiT(heads=5)


@pytest.mark.parametrize(
    "bad", [{"patch_size": 0}, {"width": 10}, {"depth": 0}, {"heads": 0}, {"mlp_ratio": 0.5}, {"dropout": 1}], ids=str
)
def test_hyper_parameter_out_of_its_range_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        DiT.model_validate(bad)


@settings(max_examples=12)
@given(
    patch_size=st.sampled_from([1, 2, 4, 8]),
    heads=st.integers(1, 4),
    quarters=st.integers(2, 5),
    depth=st.integers(1, 3),
    mlp_ratio=st.floats(1, 5),
    classes=st.integers(0, 3),
)
def test_every_accepted_configuration_can_be_built(
    patch_size: int, heads: int, quarters: int, depth: int, mlp_ratio: float, classes: int
) -> None:
    config = DiT(patch_size=patch_size, heads=heads, width=4 * quarters * heads, depth=depth, mlp_ratio=mlp_ratio)
    assert shape_of(config, 8, 1, 2, classes) == (2, 2, 8, 8)


NAMES = {
    r"pos_embed\.proj\.": "patches.",
    r"transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_(\d)\.": r"time_embedding.dense\1.",
    r"transformer_blocks\.0\.norm1\.emb\.class_embedder\.embedding_table\.": "label_embedding.",
    r"transformer_blocks\.(\d+)\.norm1\.linear\.": r"blocks.\1.modulation.",
    r"transformer_blocks\.(\d+)\.attn1\.to_([qkv])\.": r"blocks.\1.query_key_value.\2.",
    r"transformer_blocks\.(\d+)\.attn1\.to_out\.0\.": r"blocks.\1.project.",
    r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.": r"blocks.\1.mlp.0.",
    r"transformer_blocks\.(\d+)\.ff\.net\.2\.": r"blocks.\1.mlp.3.",
    r"proj_out_1\.": "modulation.",
    r"proj_out_2\.": "out.",
}


def copy_weights(theirs: Any, ours: Transformer) -> None:
    """Every weight of theirs into ours; but each block of theirs embeds time and label anew: ours are the first's."""
    targets = {name: parameter.data for name, parameter in ours.named_parameters()}
    for name in [name for name in targets if "query_key_value" in name]:
        layer, _, kind = name.rpartition(".")
        targets |= {
            f"{layer}.{part}.{kind}": third for part, third in zip("qkv", targets.pop(name).chunk(3), strict=True)
        }
    source = theirs.state_dict()
    for name, weight in source.items():
        again = re.fullmatch(r"transformer_blocks\.[1-9]\d*\.norm1\.emb\.(.+)", name)
        if again:
            weight.copy_(source[f"transformer_blocks.0.norm1.emb.{again[1]}"])
        elif not name.endswith("pos_embed"):
            (ours_name,) = [re.sub(pattern, new, name) for pattern, new in NAMES.items() if re.match(pattern, name)]
            targets.pop(ours_name).copy_(weight)
    assert not targets


class Sinusoids(nn.Module):
    """The paper's: theirs divides by one less than half the frequencies, as Ho et al. 2020 do."""

    def forward(self, t: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float64) / 128).float().double()
        angles = t.double()[:, None] * frequencies
        return torch.cat((angles.cos(), angles.sin()), dim=1)


def test_same_weights_give_diffusers_output() -> None:
    theirs: Any = DiTTransformer2DModel(  # type: ignore[no-untyped-call]  # diffusers'
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=3,
        out_channels=6,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,
    )
    ours = DiT(width=64, depth=3, heads=4).build(8, 3, 6, 5).double().eval()
    with torch.no_grad():
        copy_weights(awake(theirs).double().eval(), ours)
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj = Sinusoids()
    x, t, label = torch.randn(3, 3, 8, 8).double(), torch.tensor([0, 998, 999]), torch.tensor([0, 4, 5])
    with torch.inference_mode():
        output = ours(x, t, label)
        assert output.std() > 0.01  # something to compare
        torch.testing.assert_close(output, theirs(x, t, label).sample, rtol=0, atol=1e-9)


def test_sixteen_images_are_learned_by_heart() -> None:
    loss, distances = overfit(SMALL["dit"], steps=600, learning_rate=6e-3)
    assert loss < 0.1
    assert distances.max() < CLOSEST
