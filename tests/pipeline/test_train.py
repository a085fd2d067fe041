"""The driver's side of training: what it keeps at the end, what it says of failures, what Ctrl-C does."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from model import EMAs, ExponentialEMA
from pipeline.errors import DataError, TrainingError
from pipeline.runfile.train_config import TrainConfig
from pipeline.training.checkpoint import CHECKPOINTS, WEIGHTS, Snapshot
from pipeline.training.curve import CURVE
from pipeline.training.speed import SHARES, steady_images_per_s
from pipeline.training.train import _check_finite, _explained, _interruptible, _keep_weights
from pipeline.training.train_state import TrainState
from pipeline.training.train_step import flip, learning_rate

from .trainings import POINT


class WorkerGroupError(Exception):
    """Shaped like Ray Train's error, which holds the failure of each rank."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("Training failed due to worker errors:\nthe last line")
        self.worker_failures = failures


def write_curve(folder: Path, *points: dict[str, object]) -> None:
    (folder / CURVE).write_text("".join(json.dumps(point) + "\n" for point in points))


def test_a_loss_that_is_not_finite_is_an_error_that_says_what_to_change(tmp_path: Path) -> None:
    write_curve(tmp_path, {"images": 1_000, "loss": 1.0}, {"images": 2_000, "not_finite": True})
    with pytest.raises(TrainingError, match=r"too many steps.*before 2,000 images.*lower train\.learning_rate"):
        _check_finite(tmp_path)
    write_curve(tmp_path, {"images": 1_000, "loss": 1.0})
    _check_finite(tmp_path)


@pytest.mark.parametrize("images", [None, 64])
def test_a_training_that_ended_early_is_not_taken_for_finished(tmp_path: Path, images: int | None) -> None:
    if images is not None:
        save_checkpoint(tmp_path, images)
    with pytest.raises(TrainingError, match=rf"a checkpoint of {images or 0} images, expected 128; run the same"):
        _keep_weights(tmp_path, 128)
    assert not (tmp_path / WEIGHTS).exists()


def test_the_average_of_the_last_checkpoint_is_kept(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 128)
    write_curve(tmp_path, {"images": 128, "loss": 0.5, "images_per_s": 10.0, "seconds": 2.0})
    facts = _keep_weights(tmp_path, 128)
    assert (facts["images"], facts["loss"], facts["images_per_s"], facts["parameters"]) == (128, 0.5, 10.0, 8)
    assert (tmp_path / WEIGHTS).exists()


def test_what_the_time_went_into_is_kept_where_the_curve_says_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 128)
    old = {"images": 32, "loss": 0.5, "images_per_s": 10.0, "seconds": 2.0, "data_wait_share": 0.1}
    write_curve(tmp_path, old, old | {"images": 64})
    assert "flop_per_s" not in _keep_weights(tmp_path, 128)  # of a training by earlier code
    write_curve(tmp_path, old, POINT | {"images": 96, "loss": 0.5}, POINT | {"images": 128, "loss": 0.5})
    facts = _keep_weights(tmp_path, 128)
    assert (facts["flop_per_s"], facts["matmul_fraction"], facts["data_share"]) == (41.23e9, 0.321, 0.0)
    assert sum(facts[f"{name}_share"] for name in SHARES) == pytest.approx(1)


def test_a_training_whose_last_point_has_no_finite_loss_is_finished_all_the_same(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 128)
    write_curve(
        tmp_path,
        {"images": 64, "loss": 0.5, "images_per_s": 10.0, "seconds": 2.0},
        {"images": 128, "images_per_s": 10.0, "seconds": 2.0, "skipped_steps": 1},
    )
    assert _keep_weights(tmp_path, 128)["loss"] == 0.5


def save_checkpoint(folder: Path, images: int) -> None:
    network = nn.Linear(3, 2)
    averages = EMAs(network, ExponentialEMA())
    state = TrainState(network, torch.optim.Adam(network.parameters()), averages, images)
    Snapshot.of(state, {}).write(folder / CHECKPOINTS)


def test_a_refusal_on_any_rank_is_told_rather_than_what_the_others_saw_of_it() -> None:
    refusal = DataError("train-000000.tar: restore the shard")
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = refusal
    assert _explained(WorkerGroupError({0: RuntimeError("Connection closed by peer"), 1: wrapped})) is refusal


def test_a_failure_that_nobody_meant_names_the_rank_and_its_last_line() -> None:
    error = _explained(WorkerGroupError({1: RuntimeError("a traceback\nCUDA out of memory")}))
    with pytest.raises(TrainingError, match="worker 1 failed: CUDA out of memory; use --traceback to see more"):
        raise error
    assert str(_explained(OSError(28, "No space left on device"))).startswith("train: [Errno 28] No space left")


def test_ctrl_c_stays_an_interruption_after_a_library_took_the_signal() -> None:
    before = signal.getsignal(signal.SIGINT)

    def rude(*_: object) -> None:
        raise SystemExit(0)

    def fit() -> None:
        with _interruptible():
            signal.signal(signal.SIGINT, rude)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        fit()
    assert signal.getsignal(signal.SIGINT) is before


def test_the_speed_leaves_out_the_first_point_where_there_are_more() -> None:
    slow, fast = {"images_per_s": 1.0, "seconds": 100.0}, {"images_per_s": 50.0, "seconds": 2.0}
    assert steady_images_per_s([slow, fast, fast]) == 50
    assert steady_images_per_s([slow]) == 1


def test_the_learning_rate_rises_from_zero_and_stays() -> None:
    config = TrainConfig(images=1_000, learning_rate=0.5, warmup_images=100)
    assert [learning_rate(config, images) for images in (0, 50, 100, 900)] == [0, 0.25, 0.5, 0.5]
    assert learning_rate(TrainConfig(images=1, learning_rate=0.5), 0) == 0.5


def test_half_of_the_images_are_mirrored_by_their_positions_alone() -> None:
    images = torch.arange(1_000 * 6.0).reshape(1_000, 1, 2, 3)
    positions = torch.arange(1_000)
    flipped = flip(images, 3, positions)
    mirrored = (flipped != images).flatten(1).any(1)
    assert 400 < mirrored.sum() < 600
    torch.testing.assert_close(flipped[mirrored], images[mirrored].flip(-1), rtol=0, atol=0)
    torch.testing.assert_close(flip(images[500:], 3, positions[500:]), flipped[500:], rtol=0, atol=0)
