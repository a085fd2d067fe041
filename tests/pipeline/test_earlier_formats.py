"""A model version as the first code of this project registered it: it loads, draws, and a night compares with it."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import TrainedModel, generate
from pipeline.errors import ConfigError
from pipeline.models.description import described_in
from pipeline.models.stored_model import load_stored
from pipeline.tracking.mlflow_store import connect, default_store
from pipeline.tracking.tracked_run import open_run

from .commands import new_folder, run_here

VERSION = Path(__file__).with_name("version-of-format-1.tar.gz")
"""What commit d7a31f6 uploaded for a model of digits (400 steps), and what it drew from seeds 3 and 10^9 + 7."""
SEEDS = [3, 1_000_000_007]

RUN_FILE = """\
version: 1
name: night
data: {source: {kind: digits}, image_size: 8, channels: 1, heldout_fraction: 0.2}
network: {kind: ddpm_unet, base_channels: 16, channel_multipliers: [1, 2], blocks_per_level: 1, attention_sizes: [4]}
path: {kind: vp_cosine}
train: {images: 640, batch_size: 64, num_workers: 1}
sample: {images: 200, chunk_images: 20, sampler: {kind: ddim, steps: 10, grid: uniform}}
evaluate: {extractor: {kind: classifier, images: 8_000, width: 4, features: 16}}
register: {model_name: night}
cluster: {address: auto}
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("version")
    with tarfile.open(VERSION) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, unpacked: Path) -> Path:
    """With a registry in `outputs` in which that version is champion, made by the calls of that time."""
    folder = new_folder(tmp_path_factory, "nights", RUN_FILE)
    run = open_run(uri_of(folder), "digits", "first", folder / "outputs/first", {}, {})
    client = run.client
    client.create_registered_model("night")
    logged = client.create_logged_model(run.experiment_id, "night", run.run_id, model_type="diffusion")
    client.log_model_artifacts(logged.model_id, str(unpacked / "model"))
    client.finalize_logged_model(logged.model_id, "READY")
    tags = {
        "run_key": "first",
        "protocol_digest": "p" * 64,
        "primary_score": "fid_classifier",
        "primary_score_value": "27.0",
        "verdict": "version 1 is the first champion",
    }
    with default_store(run.uri):
        client.create_model_version("night", f"models:/{logged.model_id}", run.run_id, tags)
    for alias in ("candidate", "champion"):
        client.set_registered_model_alias("night", alias, "1")
    return folder


def uri_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'outputs/mlflow.db'}"


@pytest.fixture(scope="module")
def drawn(unpacked: Path) -> Any:
    return np.load(unpacked / "images.npy", allow_pickle=False)


def assert_alike(images: Any, drawn: Any) -> None:
    """To a grey level, which rounding on another machine may cost."""
    assert images.shape == drawn.shape == (2, 8, 8, 1)
    assert np.abs(images.astype(int) - drawn).max() <= 1


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
def test_its_own_code_draws_what_it_drew(folder: Path, drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with default_store(uri_of(folder)):
        model = mlflow.pyfunc.load_model("models:/night@champion")
    assert_alike(model.predict({"seed": SEEDS}), drawn)


def test_the_code_of_today_draws_what_it_drew(folder: Path, drawn: Any) -> None:
    stored = load_stored("models:/night@champion", [], uri_of(folder), "cpu")
    model = stored.model
    assert isinstance(model, TrainedModel)
    assert_alike(generate(model, stored.sampler, torch.tensor(SEEDS)).numpy(), drawn)


@pytest.mark.slow
@pytest.mark.usefixtures("head")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_night_scores_it_again_and_compares_with_it(folder: Path) -> None:
    night = run_here("nightly", folder, "nightly.start=scratch")  # tonight's network is another
    assert night.returncode == 3, night.stdout + night.stderr
    assert "version 1, the champion, is scored as tonight's model will be" in night.stdout
    tags = connect(uri_of(folder)).get_model_version("night", "2").tags
    answers = {each["rule"]: each for each in json.loads(tags["decision"])["answers"]}
    assert answers["protocol"]["passed"]
    assert "fid_classifier" in answers["better"]["why"]
    assert "of version 2 against" in answers["better"]["why"]


@pytest.mark.parametrize(
    ("format", "guidance", "withheld"),
    [(2, {"kind": "classifier_free", "scale": 2}, True), (2, {"kind": "none"}, False), (1, None, False)],
)
def test_whether_labels_were_withheld_follows_from_the_guidance(
    unpacked: Path, tmp_path: Path, format: int, guidance: Any, withheld: bool
) -> None:
    told = json.loads((unpacked / "model/artifacts/model.json").read_text()) | {"format": format}
    (tmp_path / "model.json").write_text(json.dumps(told | ({"guidance": guidance} if guidance else {})))
    assert described_in(tmp_path / "model.json").labels_withheld == withheld


def test_a_guidance_that_is_none_is_refused(unpacked: Path, tmp_path: Path) -> None:
    told = json.loads((unpacked / "model/artifacts/model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(told | {"guidance": "much"}))
    with pytest.raises(ConfigError, match="guidance"):
        described_in(tmp_path / "model.json")
