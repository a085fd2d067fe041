"""The front page's four diffs: each is small, applies to this tree, is as tidy as the rest, and does what it says."""

import shutil
import sys
from pathlib import Path

import pytest

from .copies import DIFFS, PACKAGES, ROOT, extended, ran

MOST_LINES = 30  # that a diff may add or take away


def python(folder: Path, program: str) -> str:
    return ran(folder, sys.executable, "-c", program)


@pytest.mark.parametrize("name", DIFFS)
def test_diff_is_small_and_leaves_the_tree_tidy(name: str, tmp_path: Path) -> None:
    lines = DIFFS[name].read_text().splitlines()
    assert sum(line.startswith(("+", "-")) and not line.startswith(("+++", "---")) for line in lines) < MOST_LINES
    folder = extended(tmp_path, name)
    for check in (["check"], ["format", "--check"]):
        ran(folder, sys.executable, "-m", "ruff", *check, *PACKAGES)


def test_sampler_passes_what_every_sampler_must(tmp_path: Path) -> None:
    """Its order of convergence, measured on data whose moments are known; the tests find it in the union."""
    folder = extended(tmp_path, "sampler")
    shutil.copytree(ROOT / "tests/model", folder / "tests/model")
    tests = [f"tests/model/test_{file}.py" for file in ("order", "samplers", "sampler_laws")]
    passed = ran(folder, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "er_sde", *tests)
    assert "passed" in passed
    assert "failed" not in passed


def test_dataset_is_opened_as_the_run_file_says(tmp_path: Path) -> None:
    folder = extended(tmp_path, "dataset")
    overrides = ["data.source.kind=photographs", "data.image_size=16", "data.channels=3"]
    shown = ran(folder, sys.executable, "-m", "pipeline", "check", "pipeline/runs/digits.yaml", *overrides)
    assert "photographs" in shown
    program = (
        "from pipeline.sources import *; s = Photographs().open(16, 3); print(len(s), s.class_names, s.read(0).std())"
    )
    images, _, contrast = python(folder, program).partition(" ('temple', 'flower') ")
    assert int(images) == 2 * 26 * 40
    assert float(contrast) > 0


def test_metric_counts_unlike_images(tmp_path: Path) -> None:
    program = """
import numpy as np
from evaluation.scores import vendi_score
same, unlike = np.ones((50, 4)), np.eye(4).repeat(25, axis=0)
print(vendi_score(same).value, vendi_score(unlike).value, vendi_score(same * np.nan).reason)
"""
    one, four, reason = python(extended(tmp_path, "metric"), program).split(" ", 2)
    assert float(one) == pytest.approx(1)
    assert float(four) == pytest.approx(4)
    assert reason.startswith("features are not finite")


def test_stage_is_a_command_and_counts(tmp_path: Path) -> None:
    """Twelve images in two chunks, of which the last is the first again."""
    program = """
import numpy as np
from pathlib import Path
from pipeline.chunks import Chunks
from pipeline.config import Config
from pipeline.configfile import load
from pipeline.duplicates import Duplicates
from pipeline.files import write_arrays
from pipeline.stage import Result, Run
from pipeline.terminal import Terminal
overrides = ["sample.images=12", "sample.chunk_images=6", "output=outputs"]
run = Run(load(Path("pipeline/runs/digits.yaml"), overrides, Config), Terminal())
run.results["sample"] = Result(Path("samples-0").absolute(), {"device_type": "cpu"}, 1.0, reused=False)
chunks, images = Chunks.of(run), np.random.default_rng(0).integers(256, size=(12, 8, 8, 1), dtype=np.uint8)
images[11] = images[0]
chunks.folder.mkdir()
for chunk in range(2):
    part = images[6 * chunk : 6 * chunk + 6]
    write_arrays(chunks.path(chunk), seeds=chunks.seeds(chunk), images=part, network_evaluations=np.array(50.0))
print(Duplicates().figure(Duplicates().finish(run).facts))
"""
    folder = extended(tmp_path, "stage")
    assert python(folder, program).splitlines()[-1] == "1 images are there already"
    assert "duplicates" in ran(folder, sys.executable, "-m", "pipeline", "--help")
