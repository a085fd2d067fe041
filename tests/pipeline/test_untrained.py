"""`train.images=0`: a model is sampled, scored and registered as it is."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from model import ClassLabels
from pipeline.__main__ import main
from pipeline.data.prepare import Prepare
from pipeline.errors import ConfigError
from pipeline.files import write_json
from pipeline.models.description import description_of
from pipeline.models.weights import weights_digest
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load
from pipeline.stage import Run
from pipeline.terminal import Terminal
from pipeline.training.checkpoint import WEIGHTS
from pipeline.training.train import Train

from .commands import new_folder, run

RUNS = Path(__file__).parents[2] / "pipeline/runs"
NETWORK: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
RUN_FILE = """\
version: 1
name: tiny
data: {source: {kind: digits}, image_size: 28, channels: 1, heldout_fraction: 0.2, shard_images: 500}
network: {kind: simple_unet}
path: {kind: vp_cosine}
train: {images: 100, batch_size: 32}
sample: {images: 60, chunk_images: 20, sampler: {kind: heun}}
evaluate: {extractor: {kind: classifier, images: 8_000, width: 4, features: 16}}
register: {model_name: tiny}
"""


def config_of(output: Path, *overrides: str) -> Config:
    return load(RUNS / "digits.yaml", [f"output={output}", "train.images=0", *overrides], Config)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a model as digits.yaml describes it, with random weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = load(RUNS / "digits.yaml", [], Config)
    torch.manual_seed(0)
    save_file(config.spec.build().state_dict(), folder / "weights.safetensors")
    write_json(folder / "model.json", description_of(config) | {"weights": "weights.safetensors"})
    return folder


def test_the_stage_keeps_the_weights_as_they_are(model: Path, tmp_path: Path) -> None:
    run = Run(config_of(tmp_path, f"train.warm_start={model}"), Terminal())
    run.results["prepare"] = Prepare().finish(run)
    result = Train().finish(run)
    before = load_file(model / "weights.safetensors")
    assert weights_digest(load_file(result.folder / WEIGHTS)) == weights_digest(before)
    assert result.facts["weights_digest"] == weights_digest(before)
    assert result.facts["parameters"] == sum(tensor.numel() for tensor in before.values())
    assert Train().figure(result.facts) == "no training; the model of train.warm_start as it is"
    recalled = Train().recall(run)
    assert recalled is not None
    assert recalled.facts == result.facts


def test_check_says_that_nothing_is_trained(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", str(RUNS / "digits.yaml"), f"output={tmp_path}", "train.images=0"]
    assert main([*command, f"train.warm_start={model}"]) == 0
    assert "no training; the model of train.warm_start as it is" in capsys.readouterr().out


def test_without_a_model_or_with_averages_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.images: 0 trains nothing; name the model to take as it is by train"):
        config_of(tmp_path)
    kept = ["train.also_averaged=[{kind: power_function}]", "sample.sigma_rel=0.1", "train.warm_start=a.safetensors"]
    with pytest.raises(ConfigError, match=r"sample\.sigma_rel: 0\.1, but train\.images 0 keeps no averages; set it"):
        config_of(tmp_path, *kept)


def test_another_model_than_the_run_file_describes_is_refused_with_what_differs(model: Path, tmp_path: Path) -> None:
    other = [f"train.warm_start={model}", "path.kind=vp_linear", "target.kind=v"]
    says = (
        r"train\.warm_start: .*model: another model than this configuration's, and train\.images 0 would take it as it "
        r'is: path is \{"kind": "vp_cosine", .* there and \{"kind": "vp_linear", .* here; target is .*"eps".* there '
    )
    with pytest.raises(ConfigError, match=says):
        Run(config_of(tmp_path, *other), Terminal())
    Run(config_of(tmp_path, *other, "train.images=100"), Terminal())  # which trains, and may go on to another path
    bare = [f"train.warm_start={model / 'weights.safetensors'}", *other[1:]]
    Run(config_of(tmp_path, *bare), Terminal())  # that says nothing of itself


def test_a_model_that_never_was_without_a_class_is_not_taken_for_one_that_was(model: Path, tmp_path: Path) -> None:
    told = ["conditioning={kind: class_label, classes: 10}", f"train.warm_start={model}"]
    config = config_of(tmp_path, *told)
    assert isinstance(config.conditioning, ClassLabels)
    assert config.labels_withheld
    save_file(config.spec.build().state_dict(), model / "weights.safetensors")
    never = description_of(config) | {"weights": "weights.safetensors", "labels_withheld": False}
    write_json(model / "model.json", never)
    with pytest.raises(ConfigError, match="labels_withheld is false there and true here"):
        Run(config, Terminal())
    Run(config_of(tmp_path, *told, "conditioning.dropout=0"), Terminal())


@pytest.mark.slow
def test_a_folder_of_diffusers_is_sampled_scored_and_registered(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the overrides that `import` prints; then the registered model goes back to diffusers."""
    folder = new_folder(tmp_path_factory, "imported", RUN_FILE)
    torch.manual_seed(0)
    network: Any = UNet2DModel(**NETWORK)  # type: ignore[no-untyped-call]  # diffusers'
    DDPMPipeline(network, DDPMScheduler(num_train_timesteps=50, beta_end=0.3)).save_pretrained(folder / "theirs")
    assert main(["import", str(folder / "theirs"), "--into", str(folder / "ours")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("score")]
    finished = run("run", folder, *shlex.split(line.partition(" FILE ")[2]))
    assert finished.returncode == 0, finished.stderr
    assert "no training; the model of train.warm_start as it is" in finished.stdout
    (outcome,) = folder.glob("outputs/tiny-*")
    summary = json.loads((outcome / "summary.json").read_text())
    digest = weights_digest(load_file(folder / "ours" / "weights.safetensors"))
    assert summary["weights_digest"] == summary["warm_start_digest"] == digest
    assert summary["scores"]["fid_classifier"] > 0
    assert summary["network_evaluations"] == 50
    assert (summary["trained_images"], summary["train_images_per_s"], summary["model_version"]) == (0, None, 1)
    assert not (outcome / "loss.png").exists()

    store = ["--tracking-uri", f"sqlite:///{folder}/outputs/mlflow.db"]
    assert main(["export", "models:/tiny@champion", "--into", str(folder / "back"), *store]) == 0
    file = "unet/diffusion_pytorch_model.safetensors"
    assert (folder / "back" / file).read_bytes() == (folder / "theirs" / file).read_bytes()
