"""The report of a run whose files are there: what they hold is on the page, and what is missing leaves no hole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from evaluation import Features
from pipeline.checkpoint import SPEC, WEIGHTS
from pipeline.chunks import Chunks, ChunkTask
from pipeline.config import Config
from pipeline.curve import CURVE
from pipeline.drawer import Drawer, Equipment
from pipeline.evaluate import CLOSEST, PROTOCOL
from pipeline.files import write_arrays, write_json
from pipeline.prepare import Prepare
from pipeline.report import write_report
from pipeline.run_pictures import draw_pictures
from pipeline.stage import Result, Run
from pipeline.terminal import Terminal
from pipeline.trained_model import ModelFolders

from .trainings import TINY

CLASSES, IMAGES = 10, 24
CONFIG = TINY | {
    "train": {"images": 1_000, "batch_size": 8, "learning_rate": 1e-3},
    "sample": {"images": IMAGES, "chunk_images": 10, "sampler": {"kind": "ddim", "steps": 2}},
}
EVERY_RUN = {"samples", "real_and_generated", "denoising", "noising", "path", "loss"}


def a_run(folder: Path, extractor: str = "classifier", **sections: Any) -> Run:
    """Packed, drawn from random weights, and scored with figures of the test's own."""
    run = Run(Config.model_validate(CONFIG | {"output": str(folder)} | sections), Terminal())
    run.folder.mkdir(parents=True)
    run.results["prepare"] = Prepare().finish(run)

    def finished(name: str, **facts: Any) -> Path:
        where = folder / "stages" / f"{name}-0123456789ab"
        where.mkdir()
        run.results[name] = Result(where, facts, 83.0, reused=name == "train")
        return where

    identity = {"kind": extractor, "digest": "e" * 64}
    spec = run.config.spec
    training = finished("train", parameters=12_345, images=1_000, images_per_s=2_319.0)
    (training / CURVE).write_text('{"images": 500, "loss": 0.5}\n{"images": 1000, "loss": 0.25}\n')
    torch.manual_seed(0)
    save_file(spec.build().state_dict(), training / WEIGHTS)
    (training / SPEC).write_text(spec.model_dump_json())
    finished("reference", extractor=identity)
    drawn = finished(
        "sample",
        images=IMAGES,
        network_evaluations=2.0,
        images_per_s=None,
        device_type="cpu",
        devices=["CPU"],
        weights_digest="f" * 64,
    )
    chunks = Chunks(drawn, run.config.sample, "cpu")
    model = ModelFolders(training, None, training / WEIGHTS)
    drawer = Drawer(Equipment.of(run.config.sample, model, "cpu"), 1)
    for chunk in range(chunks.count):
        drawer.draw(ChunkTask(chunks, chunk))
    scored = finished(
        "evaluate",
        scores={"fid_a": 1.25, "fid_a_se": 0.03, "fid_a_bias_corrected": 1.2, "kid_a": None, "precision_a": 0.5},
        reasons={"kid_a": "fewer than <1000> images"},
        primary_score="fid_a",
        extractor=identity,
        protocol_digest="a" * 64,
    )
    write_json(scored / PROTOCOL, {"images": IMAGES, "reference": {"images": 1_437, "split": "train"}})
    return run


def reported(run: Run) -> tuple[set[str], str]:
    """Names of the pictures, each of which is one, and the page."""
    pictures = draw_pictures(run)
    for picture in pictures:
        with Image.open(picture) as opened:
            opened.load()
    config = run.folder / "config.yaml"
    config.write_text("name: tiny # <b>\n")
    page = write_report(run, pictures, config).read_text()
    assert page.count("<img") == len(pictures)
    return {picture.stem for picture in pictures}, page


def test_scores_protocol_times_and_digests_are_on_the_page(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    _, page = reported(run)
    assert '<p class="score">fid_a 1.25 ± 0.03</p>' in page
    assert '<th scope="row">kid_a</th><td>not available: fewer than &lt;1000&gt; images</td>' in page
    assert "fid_a_se" not in page
    assert '<th scope="row">reference images</th><td>1437</td>' in page
    assert "<td>1 min 23 s</td><td>2,319 images/s</td><td>found again</td>" in page
    for digest in ("e" * 64, "f" * 64, "a" * 64, run.results["prepare"].facts["data_digest"], run.key):
        assert digest in page
    assert "name: tiny # &lt;b&gt;" in page


def test_a_score_that_decides_and_cannot_be_had_says_why_at_the_top(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.results["evaluate"].facts["primary_score"] = "kid_a"
    _, page = reported(run)
    assert '<p class="score">kid_a not available</p>\n<p>fewer than &lt;1000&gt; images. ' in page


@pytest.mark.parametrize("extractor", ["inception", "classifier"])
def test_pictures_that_nothing_tells_of_are_left_out_with_their_sections(tmp_path: Path, extractor: str) -> None:
    run = a_run(tmp_path, extractor)  # there are no features, and no neighbours
    (run.results["sample"].folder / "interpolation.npz").unlink()
    names, page = reported(run)
    assert names == EVERY_RUN
    for heading in ("By class", "Between two seeds", "Nearest to training images", "The variational bound"):
        assert heading not in page


def test_neighbours_and_the_classes_that_a_classifier_sees_are_shown(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    chunks = Chunks.of(run)
    seen = np.eye(CLASSES, dtype=np.float32)[np.arange(IMAGES) % 3]  # all samples look like one of three digits
    for batch, some in zip(chunks.batches(), np.array_split(seen, [10, 20]), strict=True):
        chunks.features("e" * 64).write(batch, Features(some, some))
    write_arrays(run.results["evaluate"].folder / CLOSEST, samples=np.array([23, 0]), training=np.array([[5], [7]]))
    names, page = reported(run)
    assert names == EVERY_RUN | {"classes", "closest", "interpolation"}
    assert "that the classifier takes for it" in page
    with Image.open(run.folder / "classes.png") as picture:
        rows = np.array_split(np.asarray(picture.convert("L"))[30:, 40:], CLASSES)
    assert [bool((row < 200).any()) for row in rows] == [True] * 3 + [False] * 7


def test_a_model_that_is_told_classes_is_shown_by_those_it_was_asked_for(tmp_path: Path) -> None:
    run = a_run(tmp_path, "inception", conditioning={"kind": "class_label", "classes": CLASSES})
    names, page = reported(run)
    assert names == EVERY_RUN | {"classes", "interpolation"}
    assert "that were asked to be of it" in page
