"""The four diffs together, in a run from its images to the registry; the sampler in all tests of samplers."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from .copies import DIFFS, ROOT, extended, ran

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OVERRIDES = [
    "name=extended",
    "data.source.kind=photographs",
    "data.image_size=16",
    "data.channels=3",
    "network.attention_sizes=[8]",
    "train.images=2560",
    "train.log_images=1280",
    "sample.images=40",
    "sample.chunk_images=4",
    "sample.sampler={kind: er_sde, steps: 10}",
]


def test_all_four_together_run_from_end_to_end(tmp_path: Path) -> None:
    folder = extended(tmp_path, *DIFFS)
    shown = ran(folder, sys.executable, "-m", "pipeline", "run", "pipeline/runs/digits.yaml", *OVERRIDES)
    assert "0 images are there already" in shown
    (summary,) = (folder / "outputs").glob("extended-*/summary.json")
    found = json.loads(summary.read_text())
    assert 1 <= found["scores"]["vendi_score_classifier"] <= 40
    assert found["protocol"]["sampler"]["kind"] == "er_sde"
    assert list(found["stages"]) == ["prepare", "train", "reference", "sample", "duplicates", "evaluate", "register"]


def test_sampler_passes_what_every_sampler_must(tmp_path: Path) -> None:
    """Its order of convergence, measured on data whose moments are known; the tests find it in the union."""
    folder = extended(tmp_path, "sampler")
    shutil.copytree(ROOT / "tests/model", folder / "tests/model")
    tests = [f"tests/model/test_{file}.py" for file in ("order", "samplers", "sampler_laws")]
    passed = ran(folder, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "er_sde", *tests)
    assert "passed" in passed
    assert "failed" not in passed
