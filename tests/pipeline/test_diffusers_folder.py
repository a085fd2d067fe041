"""Folders of diffusers become our models and back: the same weights, outputs and images."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from safetensors.torch import load_file, save_file

from model import (
    DDIM,
    ADMUNet,
    Ancestral,
    ClassifierFreeGuidance,
    ModelSpec,
)
from pipeline.__main__ import main
from pipeline.errors import ConfigError
from pipeline.models.stored_model import load_stored
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load

from ..model.reference import Sinusoids
from .diffusers_models import (
    LEVELS,
    OURS,
    SIZE,
    THEIRS,
    alike,
    exported,
    imported,
    our_images,
    save_ours,
    save_theirs,
    spec_of,
    their_images,
    unet,
)

DIGITS = Path(__file__).parents[2] / "pipeline/runs/digits.yaml"
each_of_theirs = pytest.mark.parametrize(("options", "scheduler"), THEIRS.values(), ids=THEIRS.keys())
each_of_ours = pytest.mark.parametrize(("spec", "sampler"), OURS.values(), ids=OURS.keys())


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
    with pytest.raises(
        ConfigError, match=r"has no model\.json, but diffusers' model_index\.json; 'python -m pipeline imp"
    ):
        load_stored(str(theirs), [], None, "cpu")
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
