"""The front page's four diffs together, in a run from its images to the registry."""

import json
import sys
from pathlib import Path

import pytest

from .copies import DIFFS, extended, ran

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OVERRIDES = [
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


def test_all_four_together_run_from_end_to_end(tmp_path: Path) -> None:
    folder = extended(tmp_path, *DIFFS)
    shown = ran(folder, sys.executable, "-m", "pipeline", "run", "pipeline/runs/digits.yaml", *OVERRIDES)
    assert "0 images are there already" in shown
    (summary,) = (folder / "outputs").glob("extended-*/summary.json")
    found = json.loads(summary.read_text())
    assert 1 <= found["scores"]["vendi_score_classifier"] <= 40
    assert found["protocol"]["sampler"]["kind"] == "er_sde"
    assert list(found["stages"]) == ["prepare", "train", "reference", "sample", "duplicates", "evaluate", "register"]
