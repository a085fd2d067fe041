"""The U-Nets compute what diffusers' do with their weights: DDPM's 35.7M network, ADM's in both forms, and latent
diffusion's with cross-attention.
"""

from typing import Any

import pytest
import torch
from diffusers import Transformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from model import ADMUNet, CrossAttention, DDPMUNet
from model.cross_attention import SpatialTransformer

from ..benchmarks.diffusers_weights import copy_weights, in_transformer
from .reference import Sinusoids
from .small_networks import awake

IMAGE_SIZE = 16  # half of CIFAR-10's, for speed; no weight depends on it
CLASSES = 5
TIMES = torch.tensor([0, 1, 998, 999])
LABELS = torch.tensor([0, 3, 4, CLASSES])


DDPM: dict[str, Any] = {
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
ADM: dict[str, Any] = {
    "block_out_channels": (128, 256),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 64,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 32,
    "num_class_embeds": CLASSES + 1,
}
RESAMPLING: dict[str, Any] = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
HALF = (IMAGE_SIZE // 2,)
ADM_UNET = ADMUNet(channel_multipliers=(1, 2), blocks_per_level=1, attention_sizes=HALF)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (DDPMUNet(attention_sizes=HALF), DDPM),
        (ADM_UNET, ADM),
        (ADMUNet(**ADM_UNET.model_dump() | {"head_channels": 64, "resample_in_blocks": True}), ADM | RESAMPLING),
        (ADMUNet(**ADM_UNET.model_dump() | {"scale_shift_norm": False}), ADM | {"resnet_time_scale_shift": "default"}),
    ],
    ids=["ddpm", "improved ddpm", "adm", "time added"],
)
def test_same_weights_give_the_same_output(config: Any, options: dict[str, Any]) -> None:
    theirs: Any = UNet2DModel(sample_size=IMAGE_SIZE, in_channels=3, out_channels=6, **options)  # type: ignore[no-untyped-call]  # diffusers'
    classes = CLASSES if "num_class_embeds" in options else 0
    ours = config.build(IMAGE_SIZE, 3, 6, classes).double().eval()
    copy_weights(awake(theirs).double().eval(), ours, config.blocks_per_level)
    x = torch.randn(len(TIMES), 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.float64)
    label = LABELS if classes else None
    with torch.inference_mode():
        output = ours(x, TIMES, label)
        assert output.std() > 0.01  # something to compare
        expected = theirs(x, TIMES, class_labels=label).sample  # with their float32 time projection
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-3)
        theirs.time_proj = Sinusoids(128, sines_first=not options["flip_sin_to_cos"])
        torch.testing.assert_close(output, theirs(x, TIMES, class_labels=label).sample, rtol=0, atol=1e-9)


CROSSING = CrossAttention(width=24, heads=4)


def sequences() -> Tensor:
    return torch.randn(len(TIMES), 7, CROSSING.width, dtype=torch.float64)


def test_spatial_transformer_is_latent_diffusions() -> None:
    theirs: Any = Transformer2DModel(4, 16, in_channels=64, cross_attention_dim=CROSSING.width, norm_num_groups=16)
    awake(theirs).double().eval()
    ours = SpatialTransformer(nn.GroupNorm(16, 64, eps=1e-6), CROSSING, dropout=0.5).double().eval()
    ours.load_state_dict({in_transformer(name): weight for name, weight in theirs.state_dict().items()})
    x, sequence = torch.randn(len(TIMES), 64, 4, 4, dtype=torch.float64), sequences()
    with torch.inference_mode():
        (expected,) = theirs(x, encoder_hidden_states=sequence, return_dict=False)
        assert (expected - x).std() > 0.01  # something to compare
        torch.testing.assert_close(ours(x, sequence), expected, rtol=0, atol=1e-9)


def test_whole_network_with_cross_attention_is_latent_diffusions() -> None:
    theirs: Any = UNet2DConditionModel(
        sample_size=IMAGE_SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(128, 256),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=CROSSING.heads,  # the name is theirs: it is the number of heads
        cross_attention_dim=CROSSING.width,
    )
    awake(theirs).double().eval().time_proj = Sinusoids(128, sines_first=False)
    config = ADMUNet(**ADM_UNET.model_dump() | {"scale_shift_norm": False, "cross_attention": CROSSING})
    ours = config.build(IMAGE_SIZE, 4, 4, 0).double().eval()
    copy_weights(theirs, ours, config.blocks_per_level)
    x, sequence = torch.randn(len(TIMES), 4, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.float64), sequences()
    with torch.inference_mode():
        output = ours(x, TIMES, sequence)
        assert output.std() > 0.01
        torch.testing.assert_close(output, theirs(x, TIMES, sequence).sample, rtol=0, atol=1e-9)
