"""Digits told their class, and digits that a classifier of noisy images pulls to it: they are of the asked class."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main

RUNS = Path(__file__).parents[2] / "pipeline/runs"
SHORT = ["train.images=60_000", "train.ema.half_life_images=5_000", "sample.images=500", "sample.sampler.steps=20"]
CLASSIFIER = "{classes: 10, base_channels: 16, channel_multipliers: [1, 2], images: 60_000, learning_rate: 2.0e-3}"
WAYS = {
    "classifier_free": [
        "conditioning={kind: class_label, classes: 10}",
        "sample.guidance={kind: classifier_free, scale: 2}",
    ],
    "classifier": [f"sample.guidance={{kind: classifier, scale: 4, classifier: {CLASSIFIER}}}"],
}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Train imports Ray Data, which warns of its own settings
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")  # MLflow's of its own
@pytest.mark.parametrize("way", WAYS)
def test_at_least_95_percent_of_guided_digits_are_of_the_asked_class(way: str, tmp_path: Path) -> None:
    assert main(["run", str(RUNS / "digits.yaml"), f"output={tmp_path}", "name=guided", *SHORT, *WAYS[way]]) == 0
    (folder,) = tmp_path.glob("guided-*")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    assert summary["scores"]["class_agreement"] >= 0.95
    assert ("guide" in summary["seconds"]) == (way == "classifier")
    assert (summary["guide_weights_digest"] is not None) == (way == "classifier")
    described = json.loads((folder / "model.json").read_text())
    assert (folder / described["weights"]).is_file()
    assert (described["classifier"] is not None) == (way == "classifier")
    assert not list(tmp_path.glob("stages/guide-*/previews"))
