"""The 35.7M network computes what diffusers' UNet2DModel, shaped as google/ddpm-cifar10-32, does with its weights."""

import math
import re
from collections.abc import Iterator

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from model import DDPMUNet
from model.ddpm_unet import UNet

IMAGE_SIZE = 16  # half of CIFAR-10's, for speed; no weight depends on it
BLOCKS_PER_LEVEL = 2
TIMES = torch.tensor([0, 1, 998, 999])

RESIDUAL = {"time_emb_proj": "time", "conv_shortcut": "shortcut"}
ATTENTION = {
    "group_norm": "norm",
    "to_q": "query_key_value.0",
    "to_k": "query_key_value.1",
    "to_v": "query_key_value.2",
    "to_out.0": "project",
}
OUTSIDE = {
    "time_embedding.linear_1": "time_embedding.dense1",
    "time_embedding.linear_2": "time_embedding.dense2",
    "conv_in": "head",
    "conv_norm_out": "norm",
    "conv_out": "tail",
}
BLOCK = re.compile(
    r"(?P<side>down|mid|up)_blocks?\.?(?P<level>\d*)\.(?P<kind>resnets|attentions|downsamplers|upsamplers)"
    r"\.(?P<number>\d+)\.(?P<layer>.+)"
)


def our_name(theirs: str) -> str:
    """Name of the same layer in our network: theirs count blocks by level, ours in one row."""
    if theirs in OUTSIDE:
        return OUTSIDE[theirs]
    found = BLOCK.fullmatch(theirs)
    assert found, theirs
    side, kind, number, layer = found["side"], found["kind"], int(found["number"]), found["layer"]
    layer = (ATTENTION if kind == "attentions" else RESIDUAL).get(layer, layer)
    if side == "mid":
        position = number
    else:
        blocks = BLOCKS_PER_LEVEL + (side == "up")
        position = int(found["level"]) * (blocks + 1) + (blocks if kind.endswith("samplers") else number)
    inner = {"resnets": "residual.", "attentions": "attention."}.get(kind, "")
    return f"{ {'mid': 'middle'}.get(side, side) }.{position}.{inner}{layer}"


def copy_weights(theirs: UNet2DModel, ours: UNet) -> None:
    """Every weight of theirs into ours, and every one of ours from theirs."""
    source = theirs.state_dict()
    targets = dict(ours.named_parameters())
    for name, weight in source.items():
        layer, _, kind = name.rpartition(".")
        target = targets.pop(f"{our_name(layer)}.{kind}")
        target.data.copy_(weight.reshape(target.shape))  # their dense layers of attention are our 1x1 convolutions
    assert not targets


def theirs_in_float64(channels: int) -> UNet2DModel:
    network = UNet2DModel(
        sample_size=IMAGE_SIZE,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=BLOCKS_PER_LEVEL,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, 1, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.double().eval()


class Sinusoids(nn.Module):
    """Their time projection in float64: they compute it in float32 whatever the network's dtype."""

    def forward(self, t: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10_000) * torch.arange(64, dtype=torch.float64) / 63)
        angles = t.double()[:, None] * frequencies.float().double()
        return torch.cat((angles.sin(), angles.cos()), dim=1)


@pytest.fixture(scope="module")
def networks() -> Iterator[tuple[UNet, UNet2DModel]]:
    theirs = theirs_in_float64(channels=3)
    ours = DDPMUNet(attention_sizes=(IMAGE_SIZE // 2,)).build(IMAGE_SIZE, channels=3).double().eval()
    copy_weights(theirs, ours)
    with torch.inference_mode():
        yield ours, theirs


def test_same_weights_give_the_same_output(networks: tuple[UNet, UNet2DModel]) -> None:
    ours, theirs = networks
    x = torch.randn(len(TIMES), 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.float64)
    output = ours(x, TIMES)
    assert output.std() > 0.01  # something to compare
    torch.testing.assert_close(output, theirs(x, TIMES).sample, rtol=0, atol=1e-4)  # their float32 time projection
    theirs.time_proj = Sinusoids()
    torch.testing.assert_close(output, theirs(x, TIMES).sample, rtol=0, atol=1e-9)
