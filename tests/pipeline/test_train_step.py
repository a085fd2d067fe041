"""The training step: what is not finite is left out on every worker alike, and shares of a batch add up to it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from model import DDPMUNet, Denoising, ModelSpec, Simple, Unconditional, VPCosine
from model.times import LossSecondMomentTimes
from pipeline.data.prepare import Prepare
from pipeline.errors import DataError
from pipeline.models.weights import weights_digest
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load
from pipeline.runfile.train_config import TrainConfig
from pipeline.stage import Run
from pipeline.terminal import Terminal
from pipeline.training.train_step import Batch, Recipe, TrainStep, part_count, share_of

from .trainings import worker_of

RUNS = Path(__file__).parents[2] / "pipeline/runs"
SPEC = ModelSpec(
    image_size=4,
    channels=1,
    network=DDPMUNet(base_channels=8, channel_multipliers=(1,), blocks_per_level=1, attention_sizes=(), dropout=0),
    path=VPCosine(),
)


@dataclass(frozen=True)
class Sometimes(Denoising):
    """The denoising loss, infinite for a batch whose first image is of this grey level."""

    level: float = 1.0

    def losses(
        self, network: nn.Module, x0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None, augmentation: Tensor | None
    ) -> Tensor:
        losses = super().losses(network, x0, t, eps, label, augmentation)
        return losses * torch.where(x0[0, 0, 0, 0] == self.level, torch.inf, 1.0)


def new_step() -> TrainStep:
    train = TrainConfig(images=1000, batch_size=4, learning_rate=0.01)
    return TrainStep(Recipe(Sometimes(SPEC, Simple()), train, Unconditional()), torch.device("cpu"))


def batch(position: int, level: int = 128) -> Batch:
    images = torch.full((4, 4, 4, 1), level, dtype=torch.uint8)
    return Batch(position, images, torch.full((4,), -1))


def test_a_step_that_is_not_finite_changes_neither_weights_nor_optimizer_and_is_counted() -> None:
    step = new_step()
    step(batch(0))
    before, moments = weights_digest(step.state.network.state_dict()), str(step.state.optimizer.state_dict()["state"])
    for position in (4, 8, 12):
        step(batch(position, level=255))
    assert weights_digest(step.state.network.state_dict()) == before
    assert str(step.state.optimizer.state_dict()["state"]) == moments
    assert step.state.skipped.tolist() == [3, 3, 3]
    assert all(weight.isfinite().all() for weight in step.state.ema.first.weights)
    step(batch(16))
    assert weights_digest(step.state.network.state_dict()) != before
    step(batch(20, level=255))
    assert step.state.skipped.tolist() == [4, 1, 3]
    figures = step.take_figures()
    assert 0 < figures["loss"] < 10
    assert 0 < figures["gradient_norm"] < 100
    assert step.state.images_seen == 24


def test_losses_that_are_not_finite_leave_the_history_of_their_intervals_as_usual() -> None:
    train = TrainConfig(images=1000, batch_size=4, times=LossSecondMomentTimes(intervals=2, history=4))
    step = TrainStep(Recipe(Sometimes(SPEC, Simple()), train, Unconditional()), torch.device("cpu"))
    for position in range(0, 80, 4):
        step(batch(position))
    history = step.state.history
    assert history is not None
    before = history.losses.mean(1).tolist()
    for position in range(80, 120, 4):
        step(batch(position, level=255))
    assert history.losses.mean(1).tolist() == pytest.approx(before, rel=0.7)
    assert history.losses.min() > 0


def test_losses_by_quarter_of_the_times_are_means_of_their_own_images() -> None:
    step = new_step()
    for position in range(0, 400, 4):
        step(batch(position))
    counts = step.taken_up[1, 2:].tolist()
    assert sum(counts) == 400
    assert step.taken_up[1, :2].tolist() == [400, 400]  # weighed by images, however many workers share them
    assert min(counts) > 60
    losses = step.take_figures()
    by_quarter = [losses[f"loss_q{number}"] for number in range(4)]
    whole = sum(loss * count for loss, count in zip(by_quarter, counts, strict=True)) / 400
    assert whole == pytest.approx(losses["loss"], rel=1e-5)
    assert by_quarter[0] > by_quarter[3]  # noise is hardest to tell where there is least of it
    assert (step.taken_up == 0).all()


def test_a_point_of_the_curve_goes_on_from_the_sums_of_an_interrupted_training() -> None:
    whole, first, second = new_step(), new_step(), new_step()
    for position in range(0, 80, 4):
        whole(batch(position))
    for position in range(0, 40, 4):
        first(batch(position))
    second.state.network.load_state_dict(first.state.network.state_dict())
    second.state.optimizer.load_state_dict(first.state.optimizer.state_dict())
    second.state.images_seen = first.state.images_seen
    second.take_up(first.sums())
    for position in range(40, 80, 4):
        second(batch(position))
    assert second.take_figures() == pytest.approx(whole.take_figures(), rel=1e-6)


@given(batch_size=st.integers(1, 200), world_size=st.integers(1, 17))
def test_shares_of_a_batch_are_in_order_whole_and_alike_to_within_one(batch_size: int, world_size: int) -> None:
    shares = [share_of(batch_size, rank, world_size) for rank in range(world_size)]
    assert [position for share in shares for position in share] == list(range(batch_size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(batch_size=st.integers(1, 200), world_size=st.integers(1, 17), microbatch_images=st.integers(1, 40))
def test_all_workers_divide_their_shares_into_as_many_parts_none_empty_or_too_large(
    batch_size: int, world_size: int, microbatch_images: int
) -> None:
    assume(batch_size >= world_size)
    count = part_count(batch_size, world_size, microbatch_images)
    largest = 2 if microbatch_images == 1 and batch_size % world_size else microbatch_images
    for rank in range(world_size):
        share = len(share_of(batch_size, rank, world_size))
        parts = [len(share_of(share, number, count)) for number in range(count)]
        assert sum(parts) == share
        assert 1 <= min(parts) <= max(parts) <= largest


@pytest.fixture
def stalled(tmp_path: Path) -> Iterator[Run]:
    """A run on shards, one of which has become a pipe that nobody writes to."""
    overrides = [f"output={tmp_path}", "data.shard_images=800", "data.cache=none"]  # others keep the same images
    run = Run(load(RUNS / "digits.yaml", overrides, Config), Terminal())
    run.results["prepare"] = Prepare().finish(run)
    shard = run.index.shard_path(0)
    shard.unlink()
    os.mkfifo(shard)
    yield run
    os.close(os.open(shard, os.O_RDWR))  # lets go of the thread that waits for it


def test_a_loader_that_stalls_is_an_error_that_names_worker_and_storage(stalled: Run, tmp_path: Path) -> None:
    folder = stalled.results["prepare"].folder
    says = (
        rf"worker 0 on .*: no images for 0.5 s \(cluster.timeout_s\), after 0 images; is the storage of {folder} alive"
    )
    with pytest.raises(DataError, match=says):
        worker_of(stalled, tmp_path, timeout_s=0.5).run()
