"""The front page's four diffs: they are small, apply to this tree, are as tidy as the rest, and do what they say."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from .copies import DIFFS, PACKAGES, extended, ran

MOST_LINES = 30  # that a diff may add or take away


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extended(tmp_path_factory.mktemp("extended"), *DIFFS)


@pytest.fixture(scope="module")
def found(tree: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(ran(tree, sys.executable, str(Path(__file__).with_name("probe.py"))))
    return told


@pytest.mark.parametrize("name", DIFFS)
def test_diff_is_small(name: str) -> None:
    lines = DIFFS[name].read_text().splitlines()
    assert sum(line.startswith(("+", "-")) and not line.startswith(("+++", "---")) for line in lines) < MOST_LINES


def test_tree_stays_tidy(tree: Path) -> None:
    for check in (["check"], ["format", "--check"]):
        ran(tree, sys.executable, "-m", "ruff", *check, *PACKAGES)


def test_sampler_draws_what_the_data_are(found: dict[str, Any]) -> None:
    """Of 4,000 images, to about what 200 steps of first order leave."""
    assert found["sampler"] == {"mean": pytest.approx(0.2, abs=0.03), "std": pytest.approx(0.5, abs=0.03)}
    assert "| `sample.sampler` | `er_sde` |" in found["choices"]


def test_dataset_is_opened_as_the_run_file_says(found: dict[str, Any]) -> None:
    assert found["dataset"]["counts"] == [26 * 40, 26 * 40]
    assert found["dataset"]["names"] == ["temple", "flower"]
    assert found["dataset"]["contrast"] > 0
    assert "| `data.source` | `photographs` |" in found["choices"]


def test_metric_counts_unlike_images(found: dict[str, Any]) -> None:
    reason = "features are not finite: the weights lack this layer"
    assert found["metric"] == {"same": pytest.approx(1), "four": pytest.approx(4), "nan": reason}


def test_stage_is_a_command_and_counts(found: dict[str, Any]) -> None:
    assert found["stage"]["figure"] == "1 images are there already"
    assert "count the samples" in found["stage"]["help"]
