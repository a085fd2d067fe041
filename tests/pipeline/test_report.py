"""The report of a run whose files are there: what they hold is on the page, and what is missing leaves no hole."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation import Features
from pipeline.files import write_arrays
from pipeline.sampling.chunks import Chunks
from pipeline.scoring.evaluate import CLOSEST

from .scored_runs import CLASSES, IMAGES, a_run, reported

EVERY_RUN = {"samples", "real_and_generated", "denoising", "noising", "path", "loss"}


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
