"""The front page's four diffs: each is small, applies to this tree, is as tidy as the rest, and does what it says."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
PARTS = ["model", "evaluation", "pipeline", "pyproject.toml"]
DIFFS = ["sampler", "dataset", "metric", "stage"]
MOST_LINES = 30  # that a diff may add or take away
_LIMIT_S = 600

Extended = Callable[..., Path]
"""Names of diffs -> a copy of the tree in which they are applied."""


@pytest.fixture
def extended(tmp_path: Path) -> Extended:
    def apply(*names: str) -> Path:
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, tmp_path / part)
        for name in names:
            ran(tmp_path, "git", "apply", str(HERE / f"{name}.diff"))
        return tmp_path

    return apply


def ran(folder: Path, *command: str) -> str:
    """What the command prints that ends well in the folder, whose packages are the ones that Python finds."""
    alone = {"PYTHONPATH": str(folder), "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | alone, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(folder: Path, program: str) -> str:
    return ran(folder, sys.executable, "-c", program)


@pytest.mark.parametrize("name", DIFFS)
def test_diff_is_small_and_leaves_the_tree_tidy(name: str, extended: Extended) -> None:
    lines = (HERE / f"{name}.diff").read_text().splitlines()
    assert sum(line.startswith(("+", "-")) and not line.startswith(("+++", "---")) for line in lines) < MOST_LINES
    folder = extended(name)
    for check in (["check"], ["format", "--check"]):
        ran(folder, sys.executable, "-m", "ruff", *check, *PARTS[:3])


def test_sampler_passes_what_every_sampler_must(extended: Extended) -> None:
    """Its order of convergence, measured on data whose moments are known; the tests find it in the union."""
    folder = extended("sampler")
    shutil.copytree(ROOT / "tests/model", folder / "tests/model")
    tests = [f"tests/model/test_{file}.py" for file in ("order", "samplers", "sampler_laws")]
    passed = ran(folder, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "er_sde", *tests)
    assert "passed" in passed
    assert "failed" not in passed


def test_dataset_is_opened_as_the_run_file_says(extended: Extended) -> None:
    folder = extended("dataset")
    overrides = ["data.source.kind=photographs", "data.image_size=16", "data.channels=3"]
    shown = ran(folder, sys.executable, "-m", "pipeline", "check", "pipeline/runs/digits.yaml", *overrides)
    assert "photographs" in shown
    program = (
        "from pipeline.sources import *; s = Photographs().open(16, 3); print(len(s), s.class_names, s.read(0).std())"
    )
    images, _, contrast = python(folder, program).partition(" ('temple', 'flower') ")
    assert int(images) == 2 * 26 * 40
    assert float(contrast) > 0


def test_metric_counts_unlike_images(extended: Extended) -> None:
    program = """
import numpy as np
from evaluation.scores import vendi_score
same, unlike = np.ones((50, 4)), np.eye(4).repeat(25, axis=0)
print(vendi_score(same).value, vendi_score(unlike).value, vendi_score(same * np.nan).reason)
"""
    one, four, reason = python(extended("metric"), program).split(" ", 2)
    assert float(one) == pytest.approx(1)
    assert float(four) == pytest.approx(4)
    assert reason.startswith("features are not finite")


def test_stage_is_a_command_and_counts(extended: Extended) -> None:
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
    folder = extended("stage")
    assert python(folder, program).splitlines()[-1] == "1 images are there already"
    assert "duplicates" in ran(folder, sys.executable, "-m", "pipeline", "--help")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_four_together_run_from_end_to_end(extended: Extended) -> None:
    folder = extended(*DIFFS)
    overrides = [
        "name=extended",
        "data.source.kind=photographs",
        "data.image_size=16",
        "data.channels=3",
        "train.images=2560",
        "train.log_images=1280",
        "sample.images=40",
        "sample.chunk_images=4",
        "sample.sampler={kind: er_sde, steps: 10}",
    ]
    run_file = "pipeline/runs/digits.yaml"
    shown = ran(folder, sys.executable, "-m", "pipeline", "run", run_file, *overrides)
    assert "0 images are there already" in shown
    (summary,) = (folder / "outputs").glob("extended-*/summary.json")
    found = json.loads(summary.read_text())
    assert 1 <= found["scores"]["vendi_score_classifier"] <= 40
    assert found["protocol"]["sampler"]["kind"] == "er_sde"
    assert list(found["stages"]) == ["prepare", "train", "reference", "sample", "duplicates", "evaluate", "register"]
