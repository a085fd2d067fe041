"""The small U-Net: three levels, few parameters, both ways down, and sizes that do not halve are refused."""

from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model import SimpleUNet

from .small_networks import CLOSEST, awake, overfit, parameters, shape_of


def test_it_has_half_a_million_parameters() -> None:
    assert parameters(SimpleUNet(), 28, channels=1, out_channels=1, classes=0) == 529_249
    strided = 9 * (32**2 + 64**2) + 32 + 64  # a convolution between levels, where max_pool has nothing to learn
    assert parameters(SimpleUNet(downsampling="strided"), 28, 1, 1, 0) == 529_249 + strided


def test_levels_of_28_pixels_have_28_and_14_and_7() -> None:
    network = SimpleUNet().build(28, 1, 1, 0)
    sizes = []
    for block in network.down:
        block.register_forward_hook(lambda *call: sizes.append(tuple(call[2].shape[1:])))
    network(torch.randn(1, 1, 28, 28), torch.tensor([500]))
    assert sizes == [(32, 28, 28), (64, 14, 14), (128, 7, 7)]


def test_max_pool_keeps_the_largest_of_each_four_pixels() -> None:
    (first, _) = SimpleUNet().build(8, 1, 1, 0).shrink
    x = torch.randn(1, 32, 8, 8)
    assert torch.equal(first(x), x.view(1, 32, 4, 2, 4, 2).amax((3, 5)))


def test_the_way_up_sees_what_the_way_down_saw() -> None:
    """Without the levels below, an image still reaches the output through the skip of its own level."""
    network = awake(SimpleUNet(base_channels=16).build(8, 1, 1, 0)).eval()
    assert isinstance(network.grow, nn.ModuleList)
    for parameter in network.grow.parameters():
        nn.init.zeros_(parameter)
    t, output = torch.tensor([500]), []
    for _ in range(2):
        output.append(network(torch.randn(1, 1, 8, 8), t))
    assert not torch.allclose(*output)


@pytest.mark.parametrize("image_size", [7, 14, 30])
def test_image_size_that_does_not_halve_twice_is_refused(image_size: int) -> None:
    message = f"3 levels halve the image 2 times, but {image_size} pixels do not divide by 4; use another size or"
    with pytest.raises(ValueError, match=message):
        SimpleUNet().check_image_size(image_size)
    with pytest.raises(ValueError, match=message):
        SimpleUNet().build(image_size, 1, 1, 0)


@pytest.mark.parametrize("bad", [{"base_channels": 12}, {"downsampling": "mean"}, {"dropout": 1}], ids=str)
def test_hyper_parameter_out_of_its_range_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SimpleUNet.model_validate(bad)


@settings(max_examples=20)
@given(
    base=st.integers(1, 20).map(lambda k: 8 * k),
    downsampling=st.sampled_from(["max_pool", "strided"]),
    image_size=st.integers(1, 8).map(lambda k: 4 * k),
    classes=st.integers(0, 3),
)
def test_every_accepted_configuration_can_be_built(
    base: int, downsampling: Literal["max_pool", "strided"], image_size: int, classes: int
) -> None:
    config = SimpleUNet(base_channels=base, downsampling=downsampling)
    assert shape_of(config, image_size, 1, 2, classes) == (2, 2, image_size, image_size)


@pytest.mark.slow
@pytest.mark.parametrize("downsampling", ["max_pool", "strided"])
def test_sixteen_images_are_learned_by_heart(downsampling: Literal["max_pool", "strided"]) -> None:
    loss, distances = overfit(SimpleUNet(base_channels=16, downsampling=downsampling), steps=1000, learning_rate=8e-3)
    assert loss < 0.1
    assert distances.max() < CLOSEST
