"""Folders of diffusers become our models and back: the same weights, outputs, images; what cannot be is refused."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
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
    VPLinear,
    VPScaledLinear,
    VPSigmoid,
    last,
)
from model.targets import EDM, X0, V
from pipeline.__main__ import main
from pipeline.config import Config
from pipeline.configfile import load
from pipeline.errors import ConfigError
from pipeline.stored_model import StoredModel, load_stored

from ..model.reference import Sinusoids
from ..model.small_networks import awake

DIGITS = Path(__file__).parents[2] / "pipeline/runs/digits.yaml"
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
each_of_theirs = pytest.mark.parametrize(("options", "scheduler"), THEIRS.values(), ids=THEIRS.keys())


def unet(options: dict[str, Any]) -> Any:
    torch.manual_seed(1)
    network: Any = UNet2DModel(**{"sample_size": SIZE} | options)  # type: ignore[no-untyped-call]
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


@each_of_theirs
def test_their_network_gives_the_same_output_in_float64(
    options: dict[str, Any], scheduler: Any, tmp_path: Path
) -> None:
    stored = imported(save_theirs(tmp_path / "theirs", options, scheduler), tmp_path / "ours")
    theirs = unet(options).double()
    theirs.time_proj = Sinusoids(options["block_out_channels"][0], sines_first=not theirs.config.flip_sin_to_cos)
    x, t = torch.randn(4, *stored.model.spec.latent_shape, dtype=torch.float64), torch.tensor([0, 1, 50, 59])
    with torch.inference_mode():
        output, expected = stored.model.network.double()(x, t), theirs(x, t).sample
    assert output.std() > 0.01
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-9)


@each_of_theirs
def test_their_folder_draws_the_same_images(options: dict[str, Any], scheduler: Any, tmp_path: Path) -> None:
    stored = imported(save_theirs(tmp_path / "theirs", options, scheduler), tmp_path / "ours")
    pipeline: Any = DDIMPipeline if isinstance(scheduler, DDIMScheduler) else DDPMPipeline
    steps = {"num_inference_steps": stored.sampler.evaluations(stored.model.spec.path)}
    alike(our_images(stored), their_images(pipeline.from_pretrained(tmp_path / "theirs"), **steps))


def test_the_first_layout_and_names_are_read_too(tmp_path: Path) -> None:
    """As of Google's DDPM models: no folders within, and attention's layers by other names."""
    theirs = save_theirs(tmp_path / "theirs", *THEIRS["ddpm"])
    for file in [*theirs.glob("*/*.json"), *theirs.glob("*/*.safetensors")]:
        file.rename(theirs / file.name)
    (theirs / "unet").rmdir()
    (theirs / "scheduler").rmdir()
    file = theirs / "diffusion_pytorch_model.safetensors"
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(file)
    for today, name in former.items():
        weights = {key.replace(f".{today}.", f".{name}."): tensor for key, tensor in weights.items()}
    assert "mid_block.attentions.0.proj_attn.bias" in weights
    save_file(weights, file, metadata={"format": "pt"})
    stored = imported(theirs, tmp_path / "ours")
    alike(our_images(stored), their_images(DDPMPipeline.from_pretrained(theirs), num_inference_steps=60))


def test_what_a_run_file_must_say_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = save_theirs(tmp_path / "theirs", THEIRS["three levels, ddim"][0], DDPMScheduler())
    stored = imported(theirs, tmp_path / "it's ours")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("score")]
    words = shlex.split(line.removeprefix("score"))
    assert words[:5] == ["python", "-m", "pipeline", "run", "FILE"]
    config = load(DIGITS, words[5:], Config)
    ancestral = Ancestral(steps=1000, grid="leading", variance="fixed_small", clip="x0")
    assert config.spec == stored.model.spec
    assert config.sample.sampler == stored.sampler == ancestral
    assert config.train.images == 0
    assert config.train.warm_start == str(tmp_path / "it's ours")


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
each_of_ours = pytest.mark.parametrize(("spec", "sampler"), OURS.values(), ids=OURS.keys())


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


@each_of_ours
def test_ours_draws_the_same_images_in_their_pipeline(
    spec: ModelSpec, sampler: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_ours(tmp_path / "ours", spec, sampler)
    name, call = exported(model, tmp_path / "theirs", capsys)
    ours = our_images(load_stored(str(model), [], None, "cpu"))
    alike(ours, their_images(getattr(diffusers, name).from_pretrained(tmp_path / "theirs"), **call))


def test_either_pipeline_loads_either_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ancestral", "ddim with noise"):
        exported(save_ours(tmp_path / name, *OURS[name]), tmp_path / f"{name}, theirs", capsys)
        drawn = [
            their_images(pipeline.from_pretrained(tmp_path / f"{name}, theirs"), num_inference_steps=10)
            for pipeline in (DDPMPipeline, DDIMPipeline)
        ]
        assert all(images.isfinite().all() for images in drawn)


@each_of_ours
def test_there_and_back_is_the_same_model_to_the_bit(
    spec: ModelSpec, sampler: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_ours(tmp_path / "ours", spec, sampler)
    exported(model, tmp_path / "theirs", capsys)
    assert imported(tmp_path / "theirs", tmp_path / "back").model.spec == spec
    same_weights(model / "weights.safetensors", tmp_path / "back" / "weights.safetensors")


@each_of_theirs
def test_back_and_there_is_the_same_file_of_weights(
    options: dict[str, Any], scheduler: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = save_theirs(tmp_path / "theirs", options, scheduler)
    imported(theirs, tmp_path / "ours")
    exported(tmp_path / "ours", tmp_path / "back", capsys)
    file = "unet/diffusion_pytorch_model.safetensors"
    assert (theirs / file).read_bytes() == (tmp_path / "back" / file).read_bytes()
    for config in ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        before, after = (json.loads((folder / config).read_text()) for folder in (theirs, tmp_path / "back"))
        understood = {"sample_size", "attn_norm_num_groups"}  # written as a pair, or not at all
        assert {key: before[key] for key in after.keys() - understood} == {
            key: after[key] for key in after.keys() - understood
        }


def same_weights(first: Path, second: Path) -> None:
    one, other = load_file(first), load_file(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_number_of_heads_is_read_back_as_their_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_of(ADMUNet(**LEVELS, norm_groups=8, heads=2))
    model = save_ours(tmp_path / "ours", spec, DDIM(steps=10, grid="leading"))
    exported(model, tmp_path / "theirs", capsys)
    back = imported(tmp_path / "theirs", tmp_path / "back").model.spec
    assert back.network == ADMUNet(**LEVELS, norm_groups=8, head_channels=16)


def test_classes_are_told_and_the_last_one_may_stand_for_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_of(classes=3)
    model = save_ours(tmp_path / "ours", spec, DDIM(steps=10, grid="leading"), labels_withheld=True)
    capsys.readouterr()
    assert main(["export", str(model), "--into", str(tmp_path / "theirs")]) == 0
    assert "call pipeline.unet with class_labels, 0 to 2, 3 for none" in capsys.readouterr().out
    theirs = DDPMPipeline.from_pretrained(tmp_path / "theirs").unet
    x, t, label = torch.randn(4, 3, SIZE, SIZE), torch.tensor([0, 1, 30, 59]), torch.arange(4)
    with torch.inference_mode():
        expected = theirs(x, t, class_labels=label).sample
        back = imported(tmp_path / "theirs", tmp_path / "back", "--last-class-is-none")
        assert back.model.spec == spec
        assert 'conditioning={"kind": "class_label", "classes": 3}' in capsys.readouterr().out
        same_weights(model / "weights.safetensors", tmp_path / "back" / "weights.safetensors")
        four = imported(tmp_path / "theirs", tmp_path / "four")
        assert four.model.spec == spec_of(classes=4)
        assert 'conditioning={"kind": "class_label", "classes": 4, "dropout": 0.0}' in capsys.readouterr().out
        for stored in (back, four):
            torch.testing.assert_close(stored.model.network(x, t, label), expected, rtol=0, atol=1e-5)
    assert not load_file(tmp_path / "four" / "weights.safetensors")["label_embedding.weight"][4].any()
    guided = ["guidance.kind=classifier_free"]
    assert load_stored(str(tmp_path / "back"), guided, None, "cpu").guidance == ClassifierFreeGuidance()
    with pytest.raises(ConfigError, match="compares with images whose class is withheld"):
        load_stored(str(tmp_path / "four"), guided, None, "cpu")


def test_the_command_line_takes_a_model_there_and_back(tmp_path: Path) -> None:
    save_theirs(tmp_path / "theirs", *THEIRS["ddpm"])
    for command in (
        "import theirs --into ours",
        "export ours sampler.kind=ddim sampler.grid=leading --into back",
    ):
        words = [sys.executable, "-m", "pipeline", *command.split()]
        finished = subprocess.run(words, capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False)
        assert finished.returncode == 0, finished.stderr
    drawn = tmp_path / "drawn.png"
    assert main(["generate", str(tmp_path / "ours"), "--seeds", "0-3", "--into", str(drawn)]) == 0
    assert drawn.is_file()
    images = their_images(DDIMPipeline.from_pretrained(tmp_path / "back"), num_inference_steps=10)
    assert images.isfinite().all()


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
    assert not (folder / "ours" / "model.json").exists()
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
        assert not (tmp_path / "ours" / "model.json").exists()
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
    assert not [*(tmp_path / "theirs").iterdir()]


def test_guidance_is_refused_and_all_reasons_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guidance = {"guidance": ClassifierFreeGuidance(scale=2).model_dump(mode="json"), "labels_withheld": True}
    spec = spec_of(DDPMUNet(**LEVELS), target=EDM(), classes=3)
    model = save_ours(tmp_path / "ours", spec, Euler(steps=5), **guidance)
    assert main(["export", str(model), "--into", str(tmp_path / "theirs")]) == 2
    said = capsys.readouterr().err
    assert "guidance: diffusers' pipelines do not guide a UNet2DModel, and this model has classifier_free; give" in said
    assert all(f"\n  {part}: " in said for part in ("network", "target", "sampler", "guidance"))
    (tmp_path / "theirs" / "model_index.json").touch()
    assert main(["export", str(model), "--into", str(tmp_path / "theirs")]) == 2
    assert "model_index.json is there already; give another folder" in capsys.readouterr().err
