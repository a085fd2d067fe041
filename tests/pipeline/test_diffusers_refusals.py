"""What of diffusers our models cannot be, and what of ours diffusers cannot, is refused by name."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import (
    DDIM,
    ADMUNet,
    Ancestral,
    ClassifierFreeGuidance,
    CrossAttention,
    DDPMUNet,
    DiT,
    Euler,
    LearnedRange,
    ModelSpec,
    RectifiedFlow,
    Sampler,
    VPCosine,
    VPSigmoid,
)
from model.targets import EDM, V
from pipeline.__main__ import main

from .diffusers_models import (
    ADM,
    DDPM,
    LEVELS,
    SIZE,
    THEIRS,
    save_ours,
    save_theirs,
    spec_of,
)

UNET: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_name_or_path": "mine",
    "sample_size": SIZE,
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
RESNET = {"down_block_types": ADM["down_block_types"], "up_block_types": ADM["up_block_types"]}
HO: dict[str, Any] = {key: value for key, value in DDPM.items() if key not in ("norm_num_groups", *UNET)}


def refusal(folder: Path, unet: Any, scheduler: Any, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What import says to these configs."""
    for name, file, config in (
        ("unet", "config.json", UNET | unet),
        ("scheduler", "scheduler_config.json", {"_class_name": "DDPMScheduler"} | scheduler),
    ):
        (folder / name).mkdir()
        kept = {key: value for key, value in config.items() if value is not ...}
        (folder / name / file).write_text(json.dumps(kept, indent=2))
    assert main(["import", str(folder), "--into", str(folder / "ours"), *options]) == 2
    assert not (folder / "ours").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name: found 'UNet2DConditionModel', expected UNet2DModel"),
        ({"sample_size": ...}, "sample_size: missing, expected int >= 1"),
        ({"sample_size": [8, 16]}, r"sample_size: found \[8, 16\], expected int >= 1"),
        (
            {"sample_size": 7},
            "block_out_channels: 2 levels halve the image, but sample_size 7 does not divide so often",
        ),
        ({"in_channels": 4}, r"in_channels: found 4, expected 1\|3"),
        ({"out_channels": 6}, "out_channels: found 6, expected 3, which the scheduler makes use of"),
        ({"center_input_sample": True}, "center_input_sample: found true, expected false, which all our networks have"),
        ({"mid_block_scale_factor": 2.0}, "mid_block_scale_factor: found 2.0, expected 1.0, which all our"),
        ({"add_attention": False}, "add_attention: found false, expected true, which all our networks have"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type: found 'fourier', expected positional"),
        ({"freq_shift": 2}, r"freq_shift: found 2, expected 0\|1"),
        (
            {"freq_shift": 1},
            "flip_sin_to_cos: found true, expected false, which ddpm_unet has, our network of freq_shift",
        ),
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos: found false, expected true, which adm_unet has"),
        ({"norm_eps": 1e-6}, "norm_eps: found 1e-06, expected 1e-05, which adm_unet has, our network of freq_shift 0"),
        (HO | {"norm_eps": 1e-5}, "norm_eps: found 1e-05, expected 1e-06, which ddpm_unet has"),
        ({"downsample_padding": 0}, "downsample_padding: found 0, expected 1, which adm_unet has"),
        (HO | {"attention_head_dim": 8}, "attention_head_dim: found 8, expected null, which ddpm_unet has"),
        (
            HO | {"resnet_time_scale_shift": "scale_shift"},
            "resnet_time_scale_shift: found scale_shift, expected default",
        ),
        ({"resnet_time_scale_shift": "spatial"}, r"resnet_time_scale_shift: found 'spatial', expected default\|scale"),
        (
            {"down_block_types": ["SkipDownBlock2D"] * 2},
            r"down_block_types\[1\]: found 'SkipDownBlock2D', expected Down",
        ),
        ({"up_block_types": ["UpBlock2D"] * 2}, r"up_block_types: found \[UpBlock2D, UpBlock2D\], expected the mirror"),
        ({"mid_block_type": None}, "mid_block_type: found nothing, expected UNetMidBlock2D"),
        (
            {"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]},
            "up_block_types: .* expected one way for",
        ),
        (HO | {"upsample_type": "resnet", "downsample_type": "resnet", **RESNET}, "resample by resnet, expected conv"),
        (
            {"block_out_channels": [32, 64, 64]},
            "block_out_channels: 3 of them, expected as many as down_block_types, 2",
        ),
        ({"block_out_channels": [32, 48]}, r"block_out_channels: found \[32, 48\], expected a multiple of 8 and then"),
        ({"block_out_channels": [20, 40]}, r"block_out_channels: found \[20, 40\], expected a multiple of 8 and then"),
        ({"time_embedding_dim": 64}, "time_embedding_dim: found 64, expected 128, four times the first of block_out"),
        ({"act_fn": "mish"}, r"act_fn: found 'mish', expected silu\|swish"),
        ({"attention_head_dim": 48}, r"attention_head_dim: 48 does not divide the channels \[64\] of levels with"),
        ({"norm_num_groups": 5}, "norm_num_groups: 5 does not divide the channels 32 of the first level"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups: found null, expected norm_num_groups, 32"),
        ({"attn_norm_num_groups": 8}, "attn_norm_num_groups: found 8, expected norm_num_groups, 32: the norm of the"),
        ({"class_embed_type": "timestep"}, "class_embed_type: found 'timestep', expected null"),
        ({"num_class_embeds": 1}, "num_class_embeds: found 1, expected at least 2"),
        ({"encoder_hid_dim": 8}, "encoder_hid_dim: unknown key"),
    ],
)
def test_networks_that_ours_are_not_are_refused(
    config: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(says, refusal(tmp_path, config, {}, capsys))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"_class_name": "PNDMScheduler"},
            r"_class_name: found 'PNDMScheduler', expected DDPMScheduler\|DDIMScheduler",
        ),
        ({"beta_schedule": "laplace"}, "beta_schedule: found 'laplace', expected linear"),
        ({"beta_end": 1e-5}, "beta_end: found 1e-05, expected at least beta_start, 0.0001"),
        ({"trained_betas": [0.1]}, r"trained_betas: found \[0.1\], expected null"),
        ({"variance_type": "learned"}, "variance_type: found 'learned', expected fixed_small"),
        ({"variance_type": "learned_range"}, "out_channels: found 3, expected 6, which the scheduler makes use of"),
        ({"clip_sample_range": 2.0}, "clip_sample_range: found 2.0, expected 1.0; our samplers know no other"),
        ({"prediction_type": "flow"}, r"prediction_type: found 'flow', expected epsilon\|sample\|v_prediction"),
        ({"thresholding": True}, "thresholding: found true, expected false; our samplers know no other"),
        ({"steps_offset": 1}, "steps_offset: found 1, expected 0; our samplers know no other"),
        ({"set_alpha_to_one": False}, "set_alpha_to_one: found false, expected true; our samplers know no other"),
        (
            {"rescale_betas_zero_snr": True},
            "rescale_betas_zero_snr: found true, expected false with prediction_type eps",
        ),
        (
            {"_class_name": "DDIMScheduler", "timestep_spacing": "linspace"},
            "timestep_spacing: found 'linspace', by which no steps of DDIMScheduler end where the next begin",
        ),
        (
            {"num_train_timesteps": 20},
            "scheduler_config.json: .* starts at t = 19, where more image than noise is left",
        ),
        ({"use_karras_sigmas": True}, "use_karras_sigmas: unknown key"),
    ],
)
def test_schedulers_whose_steps_ours_do_not_take_are_refused(
    config: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(says, refusal(tmp_path, {}, config, capsys))


def test_all_mistakes_of_both_configs_and_the_index_are_listed_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = {"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DModel"], "safety_checker": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"vqvae": ["diffusers", "VQModel"]}))
    unet = {"act_fn": "mish", "add_attention": False, "norm_eps": 0.1, "resnet_time_scale_shift": "spatial", "foo": 1}
    said = refusal(tmp_path, unet, {"steps_offset": 1, "beta_schedule": "laplace"}, capsys)
    assert "model_index.json: found vqvae, expected unet and scheduler alone, which draw pixels" in said
    assert "config.json: 5 mistakes in the configuration" in said
    assert "scheduler_config.json: 2 mistakes in the configuration" in said
    assert all(f"  {name}: " in said for name in [*unet, "steps_offset", "beta_schedule"])


def test_an_option_of_classes_needs_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(tmp_path, {}, {}, capsys, "--last-class-is-none")
    assert "--last-class-is-none: the network is not told of classes; leave it out" in said


def test_folders_that_are_not_whole_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = save_theirs(tmp_path / "theirs", *THEIRS["ddpm"])
    file = theirs / "unet" / "diffusion_pytorch_model.safetensors"
    whole = load_file(file)

    def said(*, into: str = "ours") -> str:
        capsys.readouterr()
        assert main(["import", str(theirs), "--into", str(tmp_path / into)]) == 2
        assert not (tmp_path / "ours").exists()
        return capsys.readouterr().err

    def with_weights(weights: dict[str, Tensor]) -> str:
        save_file(weights, file)
        return said()

    name = "down_blocks.1.attentions.0.to_q.weight"
    assert (
        f"{name} is missing, where the network that its config describes has [32, 32]; these are the"
        in with_weights({key: weight for key, weight in whole.items() if key != name})
    )
    assert f"{name} is [32, 31], where" in with_weights(whole | {name: whole[name][:, 1:].contiguous()})
    assert "extra.bias is no weight of the network" in with_weights(whole | {"extra.bias": torch.zeros(1)})
    file.write_bytes(file.read_bytes()[:-9])
    assert "not a whole safetensors file" in said()
    file.rename(file.with_suffix(".bin"))
    assert (
        "no such file, but diffusion_pytorch_model.bin; only safetensors in one file are read, since a .bin" in said()
    )
    file.with_suffix(".bin").unlink()
    assert "no such file, but no weights; only safetensors" in said()
    (theirs / "model_index.json").write_text("[]")
    assert "model_index.json: no index of a pipeline" in said()
    (theirs / "scheduler" / "scheduler_config.json").unlink()
    assert "scheduler_config.json: no such file; give a folder in which a pipeline of diffusers was saved" in said()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.json").touch()
    assert "model.json is there already; give another folder, or remove that one" in said(into="old")


@pytest.mark.parametrize(
    ("spec", "sampler", "says"),
    [
        (
            spec_of(DiT(width=16, depth=1, heads=2)),
            Ancestral(steps=60),
            "network: a UNet2DModel is a ddpm_unet or an adm",
        ),
        (
            spec_of(DDPMUNet(**LEVELS)),
            Ancestral(steps=60),
            r"network: its norms have \[4, 8, 12, 16\] groups, those of",
        ),
        (
            spec_of(ADMUNet(**LEVELS | {"attention_sizes": (8, 4)}, norm_groups=8, heads=2)),
            Ancestral(steps=60),
            r"network.heads: on different levels they have \[8, 16\] channels, those of a UNet2DModel all have as many",
        ),
        (
            spec_of(DDPMUNet(**LEVELS, cross_attention=CrossAttention(heads=4)), classes=2),
            Ancestral(steps=60),
            "network.cross_attention: a UNet2DModel has none",
        ),
        (
            spec_of(path=RectifiedFlow(), target=V()),
            DDIM(grid="leading"),
            "path: the schedules of diffusers are linear, .* rectified_",
        ),
        (
            spec_of(path=VPCosine(s=0.01)),
            Ancestral(),
            "path: squaredcos_cap_v2 has s 0.008 and beta_max 0.999, and this",
        ),
        (
            spec_of(target=EDM()),
            Ancestral(steps=60),
            "target: the predictions of diffusers are epsilon, .* model's is edm",
        ),
        (
            spec_of(),
            Euler(steps=5),
            "sampler: DDPMPipeline and DDIMPipeline know ancestral and ddim, .*has euler; give",
        ),
        (
            spec_of(),
            DDIM(steps=10, grid="quadratic"),
            "sampler.grid: 10 steps by quadratic are none of diffusers' leading",
        ),
        (spec_of(), DDIM(steps=7, grid="uniform"), "sampler.grid: 7 steps by uniform are none of diffusers' leading"),
        (spec_of(), DDIM(steps=10, grid="linspace"), "sampler.grid: 10 steps by linspace are none of diffusers'"),
        (spec_of(), Ancestral(steps=10, grid="trailing"), "sampler.grid: 10 steps by trailing are none of diffusers'"),
        (
            spec_of(),
            Ancestral(steps=60, clip="dynamic"),
            r"sampler.clip: diffusers clips to \[-1, 1\] or not at all, .* dyn",
        ),
        (
            spec_of(path=VPSigmoid(T=60, beta_end=0.2)),
            DDIM(steps=10, grid="leading"),
            "path: DDIMScheduler has no sigmoid schedule; give sampler.kind=ancestral",
        ),
        (
            spec_of(variance=LearnedRange()),
            DDIM(steps=10, grid="leading"),
            "variance: DDIMScheduler takes no network that predicts variances; give sampler.kind=ancestral",
        ),
        (
            spec_of(variance=LearnedRange()),
            Ancestral(steps=60),
            "sampler.variance: DDPMScheduler uses what the network predicts, not fixed_large; give learned",
        ),
    ],
)
def test_what_diffusers_cannot_express_is_refused(
    spec: ModelSpec, sampler: Sampler, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_ours(tmp_path / "ours", spec, sampler)
    assert main(["export", str(model), "--into", str(tmp_path / "theirs")]) == 2
    said = capsys.readouterr().err
    assert "ours: diffusers cannot be given this model" in said
    assert re.search(says, said)
    assert not (tmp_path / "theirs").exists()


def test_guidance_is_refused_and_all_reasons_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guidance = {"guidance": ClassifierFreeGuidance(scale=2).model_dump(mode="json"), "labels_withheld": True}
    spec = spec_of(DDPMUNet(**LEVELS), target=EDM(), classes=3)
    model = save_ours(tmp_path / "ours", spec, Euler(steps=5), **guidance)
    assert main(["export", str(model), "--into", str(tmp_path / "theirs")]) == 2
    said = capsys.readouterr().err
    assert "guidance: diffusers' pipelines do not guide a UNet2DModel, and this model has classifier_free; give" in said
    assert all(f"\n  {part}: " in said for part in ("network", "target", "sampler", "guidance"))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model_index.json").touch()
    assert main(["export", str(model), "--into", str(tmp_path / "theirs")]) == 2
    assert "model_index.json is there already; give another folder" in capsys.readouterr().err
