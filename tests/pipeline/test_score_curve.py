"""The score over a training: drawn from what was kept at its checkpoints, on a real cluster, and found again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.feature_set import feature_statistics
from evaluation.reference import open_reference
from evaluation.scores import frechet_distance
from model import DDIM, NO_GUIDANCE, ModelSpec, generate
from pipeline.errors import TrainingError
from pipeline.files import read_arrays, read_json
from pipeline.models.stored_model import assembled
from pipeline.runfile.config import Config
from pipeline.tracking.mlflow_store import connect
from pipeline.training.averages import AVERAGES, along_the_way, kept

from .commands import new_folder, run_here
from .trainings import TINY

RUN_FILE = """\
version: 1
name: tiny
data: {source: {kind: digits}, image_size: 8, channels: 1, heldout_fraction: 0.2}
network: {kind: ddpm_unet, base_channels: 8, channel_multipliers: [1], blocks_per_level: 1, attention_sizes: []}
path: {kind: vp_cosine}
train:
  images: 1_280
  batch_size: 32
  learning_rate: 2.0e-3
  warmup_images: 320
  checkpoint_images: 320
  preview_images: 0
  also_averaged: [{kind: power_function, sigma_rel: 0.05}, {kind: power_function, sigma_rel: 0.1}]
sample: {images: 60, chunk_images: 30, sampler: {kind: ddim, steps: 5}}
evaluate: {extractor: {kind: classifier, images: 2_000, width: 4, features: 16}, curve_images: 50}
register: {model_name: tiny}
"""
CHECKPOINTS = [320, 640, 960, 1_280]
IMAGES, CHUNK, STEPS = 50, 30, 5


@pytest.fixture(scope="module")
def scored(head: None, tmp_path_factory: pytest.TempPathFactory, empty_store: bytes) -> Path:
    folder = new_folder(tmp_path_factory, "curve", RUN_FILE, empty_store)
    ran = run_here("run", folder, "cluster.address=auto")
    assert ran.returncode == 0, ran.stderr
    return folder


def stage_of(folder: Path, name: str) -> Path:
    (found,) = folder.glob(f"outputs/stages/{name}-*")
    return found


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Train imports Ray Data, which warns


def test_each_checkpoints_narrowest_average_is_drawn_from_and_scored(scored: Path) -> None:
    training, curve = stage_of(scored, "train"), stage_of(scored, "curve")
    facts = read_json(curve / "done.json")["facts"]
    assert [images_seen for images_seen, _ in facts["points"]] == CHECKPOINTS
    assert (facts["score"], facts["images"]) == ("fid_classifier", IMAGES)
    spec = ModelSpec.model_validate_json((training / "spec.json").read_text())
    reference = open_reference(stage_of(scored, "reference") / "statistics.npz").statistics
    torch.set_num_threads(1)  # as each process of the run
    for images_seen, value in facts["points"]:
        weights = training / AVERAGES / f"images-{images_seen:012d}-sigma_rel-0.05.safetensors"
        model = assembled(spec, NO_GUIDANCE, weights, None, torch.device("cpu"))
        folder = curve / f"images-{images_seen:012d}"
        (drawn,) = read_arrays(folder / "chunk-000000-cpu.npz", "images")
        expected = generate(model, DDIM(steps=STEPS), torch.arange(CHUNK))
        np.testing.assert_array_equal(drawn, expected.numpy())
        parts = [read_arrays(path, "pool")[0] for path in sorted(folder.glob("features-*.npz"))]
        features = np.concatenate(parts)
        assert len(features) == IMAGES
        assert value == pytest.approx(frechet_distance(feature_statistics(features), reference).value, rel=1e-9)


def test_report_and_mlflow_have_the_curve_and_it_is_found_again(scored: Path) -> None:
    chunks = sorted(stage_of(scored, "curve").glob("images-*/chunk-*.npz"))
    written = [chunk.stat().st_mtime_ns for chunk in chunks]
    again = run_here("run", scored, "cluster.address=auto")
    assert again.returncode == 0, again.stderr
    assert [chunk.stat().st_mtime_ns for chunk in chunks] == written
    assert "at 4 checkpoints" in again.stdout
    (report,) = scored.glob("outputs/tiny-*/report.html")
    assert "Score over the training" in report.read_text()
    assert (report.parent / "score.png").exists()
    client = connect(f"sqlite:///{scored}/outputs/mlflow.db")
    (tracked,) = client.search_runs([client.get_experiment_by_name("diffusion").experiment_id])
    history = client.get_metric_history(tracked.info.run_id, "curve/fid_classifier")
    assert [point.step for point in history] == CHECKPOINTS


def test_an_average_that_was_damaged_since_is_not_drawn_from(scored: Path) -> None:
    folder = stage_of(scored, "train") / AVERAGES
    first = along_the_way(folder, kept(folder))[0]
    first.path.write_bytes(first.path.read_bytes()[:-1])
    with pytest.raises(TrainingError, match=r"sha256 .*expected .*evaluate\.curve_images=0"):
        first.checked()


def config_of(train: dict[str, Any], curve_images: int) -> Config:
    sections = {
        "train": {"images": 64, "batch_size": 8} | train,
        "sample": {"images": 6, "sampler": {"kind": "ddim", "steps": 2}},
        "evaluate": {"extractor": {"kind": "classifier"}, "curve_images": curve_images},
    }
    return Config.model_validate(TINY | sections)


AVERAGED = {"also_averaged": [{"kind": "power_function", "sigma_rel": 0.05}]}


@pytest.mark.parametrize(
    ("train", "images", "says"),
    [
        ({}, 50, r"evaluate\.curve_images: 50 is made of power-function averages, .* or evaluate\.curve_images to 0"),
        (AVERAGED | {"images": 0, "warm_start": "x"}, 50, r"evaluate\.curve_images: 50, but train\.images 0 keeps no"),
        (AVERAGED, 1, r"evaluate\.curve_images: 1 image has no covariance; draw more, or none"),
    ],
)
def test_a_curve_of_nothing_is_refused(train: dict[str, Any], images: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config_of(train, images)
