"""Images that were not drawn here are scored as ours are, and refused where they will not do."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from evaluation.reference import read_reference, write_reference
from pipeline.__main__ import main

pytestmark = pytest.mark.usefixtures("head")
RUN_FILE = """\
version: 1
name: tiny
data: {source: {kind: digits}, image_size: 8, channels: 1, heldout_fraction: 0.2}
network: {kind: ddpm_unet, base_channels: 8, channel_multipliers: [1], blocks_per_level: 1, attention_sizes: []}
path: {kind: vp_cosine}
train: {images: 640}
sample: {images: 30, sampler: {kind: ddim, steps: 4}}
evaluate: {extractor: {kind: classifier, images: 4_000, width: 4, features: 16}}
register: {model_name: ddpm-tiny}
cluster: {address: auto, num_samplers: 1}
"""
DIGITS = np.round(load_digits().images[..., None] * 15.9375).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, DIGITS.shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Which all tests share, and so the reference."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "tiny.yaml").write_text(RUN_FILE)
    return folder


def evaluate(output: Path, images: Path, *options: str) -> int:
    command = ["evaluate", str(output / "tiny.yaml"), f"output={output / 'out'}", "--images", str(images), *options]
    return main(command)


def scores_of(output: Path, images: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert evaluate(output, images, *options) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1].split(maxsplit=1)[1])
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def saved(path: Path, images: np.ndarray) -> Path:
    np.savez(path, images=images)
    return path


def test_real_images_score_better_than_noise_from_a_folder_an_array_and_a_tar(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    for number, image in enumerate(DIGITS):
        Image.fromarray(image[..., 0]).save(folder / f"{number:04d}.png")
    (tar,) = _packed(output, tmp_path)
    found = [scores_of(output, path, capsys) for path in (folder, saved(tmp_path / "digits.npz", DIGITS), tar)]
    noise = scores_of(output, saved(tmp_path / "noise.npz", NOISE), capsys)
    assert [each["images"] for each in found] == [1_797, 1_797, 1_437]
    for name in ("fid_classifier", "inception_score_classifier_mean", "precision_classifier"):
        assert found[0]["scores"][name] == found[1]["scores"][name]
    assert found[2]["scores"]["fid_classifier"] == pytest.approx(0, abs=1e-5)  # these are the training images
    assert noise["scores"]["fid_classifier"] > 10 * found[0]["scores"]["fid_classifier"]
    assert found[0]["against"]["reference"]["images"] == 1_437


def _packed(output: Path, tmp_path: Path) -> list[Path]:
    assert main(["prepare", str(output / "tiny.yaml"), f"output={tmp_path / 'packed'}"]) == 0
    return list(tmp_path.glob("packed/stages/prepare-*/train-*.tar"))


def test_statistics_that_others_made_take_the_place_of_the_training_images(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = saved(tmp_path / "noise.npz", NOISE)
    expected = scores_of(output, images, capsys)
    (ours,) = output.glob("out/stages/reference-*/statistics.npz")
    with np.load(ours) as arrays:
        np.savez(tmp_path / "theirs.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    for reference in (ours, tmp_path / "theirs.npz"):
        found = scores_of(output, images, capsys, "--reference", str(reference))
        assert found["scores"]["fid_classifier"] == expected["scores"]["fid_classifier"]
        assert found["scores"]["kid_classifier"] is None
        assert "only mean and covariance are known" in found["reasons"]["kid_classifier"]
    assert found["against"]["reference"]["split"] == "unknown"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "nowhere.npz", "nowhere.npz: not there; name a folder of images"),
        (
            lambda folder: saved(folder / "a.npz", DIGITS).rename(folder / "a.tar.gz"),
            "a.tar.gz: a compressed tar; unpack",
        ),
        (lambda folder: saved(folder / "float.npz", DIGITS / 255.0), "float64"),
        (lambda folder: saved(folder / "large.npz", np.zeros((4, 9, 9, 1), np.uint8)), "9"),
        (lambda folder: saved(folder / "one.npz", DIGITS[:1]), "1 image"),
    ],
)
def test_images_that_will_not_do_are_refused(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, says: str
) -> None:
    assert evaluate(output, make(tmp_path)) in (1, 2)
    message = " ".join(capsys.readouterr().err.split())
    assert says in message
    assert "Traceback" not in message


def test_mixed_sizes_are_refused_with_the_file_that_differs(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("a", 8), ("b", 8), ("c", 9)):
        Image.new("L", (size, size)).save(tmp_path / f"{name}.png")
    assert evaluate(output, tmp_path) == 1
    assert "c.png" in capsys.readouterr().err


def test_a_truncated_reference_and_one_without_images_are_refused(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = saved(tmp_path / "noise.npz", NOISE)
    torn = tmp_path / "torn.npz"
    torn.write_bytes(saved(tmp_path / "whole.npz", DIGITS).read_bytes()[:-40])
    assert evaluate(output, images, "--reference", str(torn)) == 1
    assert "torn.npz: no whole .npz of mu, sigma" in " ".join(capsys.readouterr().err.split())
    assert main(["evaluate", str(output / "tiny.yaml"), "--reference", str(torn)]) == 2
    assert "--reference: what --images are compared with" in capsys.readouterr().err


def test_statistics_of_other_data_in_the_place_of_the_reference_are_refused(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = saved(tmp_path / "noise.npz", NOISE)
    scores_of(output, images, capsys)
    (path,) = output.glob("out/stages/reference-*/statistics.npz")
    content, (statistics, key) = path.read_bytes(), read_reference(path)
    other = key.reference.model_copy(update={"data_digest": "e" * 64})
    write_reference(path, statistics, key.model_copy(update={"reference": other}))
    assert evaluate(output, images) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "statistics.npz: a reference of something else; expected against found: reference data digest" in message
    path.write_bytes(content)
