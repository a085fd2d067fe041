"""The command line on a real Ray cluster and a real MLflow store: undisturbed, killed, run again, read by others."""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.__main__ import main
from pipeline.clusters.cluster import connected
from pipeline.runfile.config import ClusterConfig

from .commands import kill_when, new_folder, run, run_here
from .trainings import assert_same_state, losses, prepared, train_here

RUN_FILE = """\
version: 1
name: tiny
data: {source: {kind: digits}, image_size: 8, channels: 1, heldout_fraction: 0.2, shard_images: 500}
network: {kind: ddpm_unet, base_channels: 8, channel_multipliers: [1, 2], blocks_per_level: 1, attention_sizes: [4]}
path: {kind: vp_cosine}
train:
  images: 4_800
  batch_size: 32
  num_workers: 2
  learning_rate: 2.0e-3
  warmup_images: 320
  checkpoint_images: 960
  log_images: 480
sample: {images: 300, chunk_images: 20, sampler: {kind: ddim, steps: 25, eta: 0.5, grid: uniform}}
evaluate: {extractor: {kind: classifier, images: 4_000, width: 4, features: 16}}
register: {model_name: ddpm-tiny}
"""
CLASSES = 10
JOINED = "cluster.address=auto"  # a resource: not part of what is computed

# Ray Train imports Ray Data, which warns of its own settings.
pytestmark = [pytest.mark.usefixtures("head"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def summary_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("outputs/tiny-*/summary.json")
    return json.loads(path.read_text())


def skipped(finished: subprocess.CompletedProcess[str]) -> int:
    """Number of stages whose result was found again."""
    return sum(line.startswith("  skipped: same inputs") for line in finished.stdout.splitlines())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = new_folder(tmp_path_factory, "undisturbed", RUN_FILE)
    return folder, run("run", folder)


Undisturbed = tuple[Path, subprocess.CompletedProcess[str]]


def test_one_command_packs_trains_samples_scores_and_registers(undisturbed: Undisturbed) -> None:
    folder, finished = undisturbed
    assert finished.returncode == 0, finished.stderr
    summary = summary_of(folder)
    assert summary["trained_images"] == 4_800
    assert summary["images"] == 300
    assert summary["model_name"] == "ddpm-tiny"
    assert summary["model_version"] == 1
    assert summary["is_champion"] is True
    assert summary["extractor"]["kind"] == "classifier"
    scores = summary["scores"]
    suffixes = "", "_se", "_bias_corrected", "_heldout"
    expected = {f"fid_classifier{suffix}" for suffix in suffixes}
    expected |= {"inception_score_classifier_mean", "kid_classifier", "precision_classifier", "copy_rate_classifier"}
    assert expected <= set(scores)
    assert all(np.isfinite(value) for value in scores.values())
    assert set(summary["seconds"]) == {"prepare", "train", "reference", "sample", "evaluate", "register"}
    assert summary["train_images_per_s"] > 0
    assert 0 < summary["train_matmul_fraction"] < 1
    assert sum(summary["train_time"].values()) == pytest.approx(1, abs=1e-3)
    assert summary["train_time"]["communication"] > 0
    assert summary["sample_images_per_s"] > 0
    assert summary["protocol"]["reference"]["images"] == 1_437
    assert summary["network_evaluations"] == 25
    assert summary["protocol"]["network_evaluations"] == 25


def test_the_terminal_shows_the_stages_and_no_noise_of_libraries(undisturbed: Undisturbed) -> None:
    folder, finished = undisturbed
    assert finished.stderr == ""
    lines = finished.stdout.splitlines()
    assert max(len(line) for line in lines if str(folder) not in line) <= 100
    for stage in ("prepare", "train", "reference", "sample", "evaluate", "register", "total"):
        assert any(line.startswith(stage) for line in lines), stage
    assert "\x1b" not in finished.stdout
    assert sum("% of the matmul rate" in line for line in lines) == 2  # after the training, and at the end
    assert not [line for line in lines if "INFO" in line or "WARN" in line or "(pid=" in line]


def test_every_stage_but_register_is_found_again_by_the_same_command(undisturbed: Undisturbed) -> None:
    folder, _ = undisturbed
    before = summary_of(folder)
    again = run_here("run", folder, JOINED, "train.num_workers=1")  # a resource: not part of what is computed
    assert again.returncode == 0, again.stderr
    assert skipped(again) == 5
    after = summary_of(folder)
    for key in ("scores", "weights_digest", "model_version", "protocol_digest"):
        assert after[key] == before[key]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_the_shards(undisturbed: Undisturbed) -> None:
    import webdataset

    folder, _ = undisturbed
    shards = sorted(str(path) for path in folder.glob("outputs/stages/prepare-*/train-*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("png", "cls"))
    gc.collect()  # webdataset leaves its last shard open; let that be said here
    assert len(samples) == 1_437
    assert {label for _, label in samples} == set(range(CLASSES))


def test_the_mlflow_run_holds_parameters_curve_data_and_pictures(undisturbed: Undisturbed) -> None:
    from pipeline.tracking.mlflow_store import connect

    folder, _ = undisturbed
    client = connect(f"sqlite:///{folder}/outputs/mlflow.db")
    experiment = client.get_experiment_by_name("diffusion")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["train.images"] == "4800"
    assert tracked.data.params["sample.sampler.eta"] == "0.5"
    assert tracked.data.metrics["network_evaluations"] == 25
    curve = client.get_metric_history(tracked.info.run_id, "loss")
    assert [point.step for point in curve] == [480 * number for number in range(1, 11)]
    assert curve[-1].value < curve[0].value / 2
    for name in ("compute_share", "flop_per_s", "matmul_fraction"):
        assert len(client.get_metric_history(tracked.info.run_id, name)) == 10
    assert tracked.inputs.dataset_inputs[0].dataset.name == "digits"
    assert "- **verdict**: version 1 is the first champion" in tracked.data.tags["mlflow.note.content"]
    pictures = {artifact.path for artifact in client.list_artifacts(tracked.info.run_id, "pictures")}
    drawn = "samples", "classes", "closest", "interpolation", "denoising", "noising", "path", "loss"
    assert {f"pictures/{name}.png" for name in drawn} <= pictures
    assert "report.html" in {artifact.path for artifact in client.list_artifacts(tracked.info.run_id)}
    (report,) = folder.glob("outputs/tiny-*/report.html")
    assert report.read_text().count("<img") == len(pictures)


def test_the_champion_draws_the_same_images_outside_this_repository(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """The last chunk and the model as served draw in other batch sizes, so pixels may differ by one rounding."""
    folder, _ = undisturbed
    script = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "import mlflow, numpy, pandas\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('model', 'pipeline', 'evaluation')]\n"
        "served = mlflow.pyfunc.load_model('models:/ddpm-tiny@champion')\n"
        "numpy.save('drawn.npy', served.predict(pandas.DataFrame({'seed': range(20)})))\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('model', 'pipeline', 'evaluation')]\n"
    )
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/outputs/mlflow.db"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, timeout=100)
    drawn = np.load(tmp_path / "drawn.npy")
    (chunk,) = folder.glob("outputs/stages/sample-*/chunk-000000-cpu.npz")
    expected = np.load(chunk)["images"]
    assert drawn.shape == (20, 8, 8, 1)
    assert drawn.dtype == np.uint8
    assert np.abs(drawn.astype(int) - expected).max() <= 1


def test_another_sampler_uses_the_trained_weights_again_and_is_not_compared(undisturbed: Undisturbed) -> None:
    folder, _ = undisturbed
    other = run_here("run", folder, JOINED, "sample.sampler.steps=5", "name=five")
    assert other.returncode == 0, other.stderr
    assert skipped(other) == 3
    (path,) = folder.glob("outputs/five-*/summary.json")
    summary = json.loads(path.read_text())
    assert summary["model_version"] == 2
    assert summary["is_champion"] is False
    assert "protocol" in summary["verdict"]


def test_versions_and_runs_are_compared_where_they_were_scored_alike(
    undisturbed: Undisturbed, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = undisturbed
    store = f"sqlite:///{folder}/outputs/mlflow.db"
    (run_folder,) = folder.glob("outputs/tiny-*")
    assert main(["compare", "models:/ddpm-tiny/1", str(run_folder), "--tracking-uri", store]) == 0
    printed = capsys.readouterr().out
    assert "copy_rate_classifier" in printed
    assert "no difference beyond chance: 0 is 0.0 combined standard errors" in printed
    assert main(["compare", "models:/ddpm-tiny/1", "models:/ddpm-tiny/2", "--tracking-uri", store]) == 1
    assert "sampler steps: 25 against 5" in capsys.readouterr().err


@pytest.mark.timeout(900)
def test_a_driver_killed_in_training_leaves_the_undisturbed_training_to_the_next(
    tmp_path_factory: pytest.TempPathFactory, empty_store: bytes
) -> None:
    """Of one worker, since the undisturbed one is this process: to the last bit."""
    folder = new_folder(tmp_path_factory, "killed", RUN_FILE, empty_store)
    one = "train.num_workers=1"
    kill_when(lambda: len(checkpoints(folder)) > 1, "train", folder, one)
    assert not list(folder.glob("outputs/stages/train-*/done.json"))
    finished = run_here("train", folder, JOINED, one)
    assert finished.returncode == 0, finished.stderr
    (training,) = folder.glob("outputs/stages/train-*")
    with connected(ClusterConfig(address="auto")):
        expected = train_here(prepared(yaml.safe_load(RUN_FILE), folder / "here", None, num_workers=1)).folder
    assert_same_state(training, expected)
    assert losses(training) == losses(expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_in_training_leaves_the_undisturbed_result_to_the_next(
    undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory, empty_store: bytes
) -> None:
    folder = new_folder(tmp_path_factory, "killed", RUN_FILE, empty_store)
    kill_when(lambda: len(checkpoints(folder)) > 1, "run", folder)
    assert not list(folder.glob("outputs/stages/train-*/done.json"))
    finished = run_here("run", folder, JOINED)
    assert finished.returncode == 0, finished.stderr
    trainings = [next(where.glob("outputs/stages/train-*")) for where in (folder, undisturbed[0])]
    assert_same_state(*trainings)
    assert losses(trainings[0]) == losses(trainings[1])
    assert_same_summary(folder, undisturbed[0])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_driver_killed_in_sampling_leaves_the_undisturbed_result_to_the_next(
    undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory, empty_store: bytes
) -> None:
    folder = new_folder(tmp_path_factory, "killed", RUN_FILE, empty_store)
    for stage in undisturbed[0].glob("outputs/stages/*"):
        if stage.name.partition("-")[0] in ("prepare", "train", "reference"):
            shutil.copytree(stage, folder / stage.relative_to(undisturbed[0]))

    def sampled_some() -> bool:
        return 2 <= len(list(folder.glob("outputs/stages/sample-*/chunk-*.npz"))) <= 12

    kill_when(sampled_some, "run", folder)
    drawn_before = {path: path.stat().st_mtime_ns for path in folder.glob("outputs/stages/sample-*/chunk-*.npz")}
    assert not list(folder.glob("outputs/stages/sample-*/done.json"))
    finished = run_here("run", folder, JOINED)
    assert finished.returncode == 0, finished.stderr
    assert skipped(finished) == 3
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in drawn_before.items()), "chunks were drawn again"
    assert_same_summary(folder, undisturbed[0])


def checkpoints(folder: Path) -> list[Path]:
    """Those of its training that are whole."""
    return list(folder.glob("outputs/stages/train-*/checkpoints/images-*/manifest.json"))


def assert_same_summary(found: Path, expected: Path) -> None:
    for key in ("weights_digest", "scores", "protocol_digest"):
        assert summary_of(found)[key] == summary_of(expected)[key], key
