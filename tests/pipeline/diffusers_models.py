"""Small models of diffusers and of ours, saved as each has it, and the images that both draw from the same noise."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import save_file
from torch import Tensor

from model import (
    DDIM,
    ADMUNet,
    Ancestral,
    DDPMUNet,
    LearnedRange,
    ModelSpec,
    VPCosine,
    VPLinear,
    VPScaledLinear,
    VPSigmoid,
    last,
)
from model.targets import X0, V
from pipeline.__main__ import main
from pipeline.models.stored_model import StoredModel, load_stored

from ..model.small_networks import awake

SIZE, BATCH = 8, 3
SCHEDULES: dict[str, Any] = {"num_train_timesteps": 60, "beta_start": 1e-3, "beta_end": 0.2}
"""So few steps that images take no time, and so much noise that nothing is left of one."""

DDPM: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 8,
}
THREE_LEVELS: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 16, 48),
    "norm_num_groups": 8,
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
    "layers_per_block": 3,
    "dropout": 0.1,
}
ADM: dict[str, Any] = {
    "out_channels": 6,
    "block_out_channels": (16, 32),
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "resnet_time_scale_shift": "scale_shift",
    "norm_num_groups": 4,
    "attn_norm_num_groups": 4,
}
ONE_LEVEL: dict[str, Any] = {
    "sample_size": (SIZE, SIZE),
    "block_out_channels": (32,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "attention_head_dim": None,
}
THEIRS: dict[str, tuple[dict[str, Any], Any]] = {
    "ddpm": (DDPM, DDPMScheduler(**SCHEDULES, variance_type="fixed_large")),
    "three levels, ddim": (
        THREE_LEVELS,
        DDIMScheduler(**SCHEDULES, beta_schedule="scaled_linear", prediction_type="sample", clip_sample=False),
    ),
    "adm, learned variance": (
        ADM,
        DDPMScheduler(num_train_timesteps=60, beta_schedule="squaredcos_cap_v2", variance_type="learned_range"),
    ),
    "one level, sigmoid": (ONE_LEVEL, DDPMScheduler(**SCHEDULES, beta_schedule="sigmoid", timestep_spacing="linspace")),
    "zero terminal snr, v": (
        DDPM,
        DDIMScheduler(
            num_train_timesteps=100,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
    ),
}


def unet(options: dict[str, Any]) -> Any:
    torch.manual_seed(1)
    network: Any = UNet2DModel(**{"sample_size": SIZE} | options)  # type: ignore[no-untyped-call]  # diffusers'
    return awake(network).eval()


def save_theirs(folder: Path, options: dict[str, Any], scheduler: Any) -> Path:
    pipeline: Any = DDIMPipeline if isinstance(scheduler, DDIMScheduler) else DDPMPipeline
    pipeline(unet(options), scheduler).save_pretrained(folder)
    return folder


def imported(folder: Path, into: Path, *options: str) -> StoredModel:
    assert main(["import", str(folder), "--into", str(into), *options]) == 0
    return load_stored(str(into), [], None, "cpu")


def their_images(pipeline: Any, **call: Any) -> Tensor:
    """Float, [N, C, H, W] in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(2)
    images: Tensor = pipeline(BATCH, generator, output_type="pt", **call).images
    return images


def our_images(stored: StoredModel, label: Tensor | None = None) -> Tensor:
    """The same from the same noise: at first and then in each step from one generator, as diffusers draws it."""
    model, sampler, generator = stored.model, stored.sampler, torch.Generator().manual_seed(2)
    shape = (BATCH, *model.spec.latent_shape)

    def noise(_: int = 0) -> Tensor:
        return torch.randn(shape, generator=generator)

    with torch.inference_mode():
        x = last(sampler.trajectory(model.denoiser(label), model.spec.path, noise(), noise))
    return (x / 2 + 0.5).clamp(0, 1)


def alike(ours: Tensor, theirs: Tensor) -> None:
    assert ours.std() > 0.1  # something to compare
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


LEVELS: dict[str, Any] = {
    "base_channels": 16,
    "channel_multipliers": (1, 2),
    "blocks_per_level": 1,
    "attention_sizes": (4,),
    "dropout": 0.0,
}
NARROW, LINEAR = DDPMUNet(**LEVELS, norm_groups=8), VPLinear(T=60, beta_end=0.2)


def spec_of(network: Any = NARROW, path: Any = LINEAR, **others: Any) -> ModelSpec:
    return ModelSpec(image_size=SIZE, channels=3, network=network, path=path, **others)


OURS: dict[str, tuple[ModelSpec, Any]] = {
    "ancestral": (spec_of(), Ancestral(steps=60, variance="fixed_large")),
    "learned variance": (
        spec_of(
            ADMUNet(**LEVELS, norm_groups=4, head_channels=8, resample_in_blocks=True),
            VPCosine(T=60),
            variance=LearnedRange(),
        ),
        Ancestral(steps=60, variance="learned"),
    ),
    "ddim with noise": (
        spec_of(ADMUNet(**LEVELS, norm_groups=4, heads=1, scale_shift_norm=False), target=V()),
        DDIM(steps=20, eta=0.5, grid="uniform", clip="x0_and_eps"),
    ),
    "ddim": (
        spec_of(
            DDPMUNet(base_channels=128, channel_multipliers=(1,), blocks_per_level=1, attention_sizes=()),
            VPScaledLinear(T=60, beta_end=0.2),
            target=X0(),
        ),
        DDIM(steps=11, grid="leading", clip="x0"),
    ),
    "few steps": (
        spec_of(path=VPSigmoid(T=60, beta_end=0.2)),
        Ancestral(steps=7, grid="linspace", variance="fixed_small", clip="none"),
    ),
}


def save_ours(folder: Path, spec: ModelSpec, sampler: Any, **description: Any) -> Path:
    """A model's folder, with random weights."""
    torch.manual_seed(3)
    folder.mkdir()
    save_file(awake(spec.build()).state_dict(), folder / "weights.safetensors")
    parts = {"spec": spec.model_dump(mode="json"), "sampler": sampler.model_dump(mode="json")}
    described = {"format": 3, "weights": "weights.safetensors", **parts, **description}
    (folder / "model.json").write_text(json.dumps(described))
    return folder


def exported(model: Path, into: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    """-> name of the pipeline that is to load it, and what it is to be told."""
    capsys.readouterr()
    assert main(["export", str(model), "--into", str(into)]) == 0
    printed = capsys.readouterr().out
    name = re.search(rf"^load +pipeline = diffusers\.(\w+)\.from_pretrained\('{into}'\)$", printed, re.MULTILINE)
    call = re.search(r"^draw +pipeline\((.*)\)$", printed, re.MULTILINE)
    assert name
    return name[1], dict(eval(f"dict({call[1]})")) if call else {}  # as a person would copy it
