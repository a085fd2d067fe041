"""Faster must mean equal: each way to compute the training step has the loss curve of float32, eager, all at once."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.files import read_json

from . import steps
from .steps import STEPS, losses, new_step
from .trainings import assert_same_state

WAIT_S = 400


def curve(options: dict[str, Any]) -> list[float]:
    """By one worker, which is this process."""
    return losses(new_step(options), 0, STEPS)


@pytest.fixture(scope="module")
def plain() -> list[float]:
    """The curve that all others are held against."""
    found = curve({})
    assert found[-1] < 0.6 * found[0]  # there is something to get wrong
    return found


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"microbatch_images": 5}, 1e-5),
        pytest.param({"compile": True}, 1e-4, marks=pytest.mark.slow),
        ({"precision": "bf16"}, 3e-2),
        ({"precision": "tf32"}, 0.0),  # which rounds on GPUs alone
    ],
    ids=str,
)
def test_one_worker_has_the_curve_of_plain_float32(
    plain: list[float], options: dict[str, Any], tolerance: float
) -> None:
    assert curve(options) == pytest.approx(plain, rel=tolerance)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"microbatch_images": 4}, 1e-5),
        pytest.param({"parallel": "fsdp", "microbatch_images": 4}, 1e-5, marks=pytest.mark.slow),
        pytest.param({}, 1e-5, marks=pytest.mark.slow),
        pytest.param({"parallel": "fsdp"}, 1e-5, marks=pytest.mark.slow),
        pytest.param({"compile": True}, 1e-4, marks=pytest.mark.slow),
        pytest.param({"parallel": "fsdp", "compile": True}, 1e-4, marks=pytest.mark.slow),
        pytest.param({"precision": "bf16", "compile": True}, 3e-2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_workers_have_it_too_and_go_on_from_a_checkpoint_to_the_bit(
    plain: list[float], tmp_path: Path, options: dict[str, Any], tolerance: float
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, steps.__file__]
    arguments = ["2", str(port), json.dumps(options), str(tmp_path)]
    workers = [subprocess.Popen([*command, str(rank), *arguments]) for rank in range(2)]
    assert [worker.wait(WAIT_S) for worker in workers] == [0, 0]
    for name in ("whole", "resumed"):
        assert read_json(tmp_path / name / "losses.json") == pytest.approx(plain, rel=tolerance)
    assert_same_state(tmp_path / "resumed", tmp_path / "whole")
