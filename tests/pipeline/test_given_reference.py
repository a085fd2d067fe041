"""A run that is scored against statistics from elsewhere: the same distance, and what cannot be had says why."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.__main__ import main
from pipeline.files import sha256_of
from pipeline.runfile.config import EvaluateConfig

from .commands import new_folder, run_here

# Ray Train imports Ray Data, which warns of its own settings.
pytestmark = [pytest.mark.usefixtures("head"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

RUN_FILE = """\
version: 1
name: own
data: {source: {kind: digits}, image_size: 8, channels: 1, heldout_fraction: 0.2}
network: {kind: ddpm_unet, base_channels: 8, channel_multipliers: [1], blocks_per_level: 1, attention_sizes: []}
path: {kind: vp_cosine}
train: {images: 640, batch_size: 32, log_images: 160, preview_images: 0}
sample: {images: 40, chunk_images: 20, sampler: {kind: ddim, steps: 2}}
evaluate: {extractor: {kind: classifier, images: 4_000, width: 4, features: 16}}
register: {model_name: ddpm-tiny}
cluster: {address: auto, num_samplers: 1}
"""
ONE_BY_ONE = ("kid_classifier", "precision_classifier", "recall_classifier", "copy_rate_classifier")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, empty_store: bytes) -> Path:
    """Of a run that is scored against its training images, and of two that are against the statistics of these: as
    another tool would have written them, and as the first run has.
    """
    folder = new_folder(tmp_path_factory, "given", RUN_FILE, empty_store)
    assert run_here("run", folder).returncode == 0
    (ours,) = folder.glob("outputs/stages/reference-*/statistics.npz")
    (folder / "ours.npz").write_bytes(ours.read_bytes())
    with np.load(ours) as arrays:
        np.savez(folder / "theirs.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    for name in ("ours", "theirs"):
        finished = run_here("run", folder, f"name={name}", f"evaluate.reference={folder / name}.npz")
        assert (finished.returncode, finished.stderr) == (0, "")
        (folder / f"{name}.txt").write_text(finished.stdout)
    return folder


def summary_of(folder: Path, name: str) -> dict[str, Any]:
    (path,) = folder.glob(f"outputs/{name}-*/summary.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_the_distance_is_that_to_the_training_images_and_what_compares_one_by_one_says_why_not(
    folder: Path, name: str
) -> None:
    own, given = summary_of(folder, "own"), summary_of(folder, name)
    for score in ("fid_classifier", "fid_classifier_heldout", "inception_score_classifier_mean"):
        assert given["scores"][score] == own["scores"][score] is not None
    for score in ONE_BY_ONE:
        assert given["scores"][score] is None
        assert "only mean and covariance are known" in given["reasons"][score] or "stands in" in given["reasons"][score]
    assert "compared with" in (folder / f"{name}.txt").read_text()


def test_the_protocol_and_the_report_say_what_was_compared_with(folder: Path) -> None:
    own, ours, theirs = (summary_of(folder, name)["protocol"]["reference"] for name in ("own", "ours", "theirs"))
    assert ours == own
    assert (theirs["split"], theirs["images"], theirs["flipped"]) == ("unknown", None, None)
    assert theirs["data_digest"].startswith("statistics:")
    (page,) = folder.glob("outputs/theirs-*/report.html")
    assert "against the statistics in theirs.npz, by classifier features" in page.read_text()


def test_the_features_of_the_training_images_are_not_taken_but_for_a_few(folder: Path) -> None:
    taken = sorted(len(list(stage.glob("features-*-train-*"))) for stage in folder.glob("outputs/stages/reference-*"))
    assert taken == [1, 1, 15]


def test_scores_against_others_statistics_are_compared_with_no_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, theirs = (str(next(folder.glob(f"outputs/{name}-*"))) for name in ("own", "theirs"))
    assert main(["compare", own, theirs]) == 1
    said = capsys.readouterr().err
    assert "reference split: train against unknown" in said
    assert "reference images: 1437 against None" in said


def test_the_content_of_the_file_decides_and_not_its_name(folder: Path) -> None:
    copy = folder / "copy.npz"
    copy.write_bytes((folder / "theirs.npz").read_bytes())
    finished = run_here("evaluate", folder, f"evaluate.reference={copy}")
    assert sum(line.startswith("  skipped: same inputs") for line in finished.stdout.splitlines()) == 5


def refused(folder: Path, file: Path) -> str:
    finished = run_here("evaluate", folder, f"evaluate.reference={file}")
    assert finished.returncode == 1
    return " ".join(finished.stderr.split())


def test_statistics_of_another_extractor_or_of_other_features_are_refused_before_sampling(folder: Path) -> None:
    np.savez(folder / "large.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    says = "large.npz: statistics of 2048 features, and classifier, layer 16, makes 16; name a file of this extractor"
    assert says in refused(folder, folder / "large.npz")
    finished = run_here(
        "evaluate", folder, "evaluate.extractor.seed=1", f"evaluate.reference={folder / 'ours.npz'}", "sample.seed=9"
    )
    assert finished.returncode == 1
    assert "ours.npz: made by another extractor" in " ".join(finished.stderr.split())
    assert len(list(folder.glob("outputs/stages/sample-*"))) == 1


def test_a_file_that_is_missing_or_damaged_is_refused_before_training(folder: Path) -> None:
    assert "none.npz: the reference cannot be read" in refused(folder, folder / "none.npz")
    torn = folder / "torn.npz"
    torn.write_bytes((folder / "theirs.npz").read_bytes()[:-40])
    finished = run_here("train", folder, "train.images=1_280", f"evaluate.reference={torn}")
    assert "torn.npz: no whole .npz of mu, sigma" in " ".join(finished.stderr.split())
    assert len(list(folder.glob("outputs/stages/train-*"))) == 1


def test_the_digest_of_the_file_is_its_sha256(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    assert of(None).reference_digest() is None
    assert of(file).reference_digest() == ""
    file.write_bytes(b"1")
    assert of(file).reference_digest() == sha256_of(file)


def of(file: Path | None) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"extractor": {"kind": "classifier"}, "reference": file})
