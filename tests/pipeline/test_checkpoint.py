"""Checkpoints: whole and of this configuration, or refused; the newest whole one is what a training goes on from."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model import EMAs, ExponentialEMA, LossHistory
from pipeline.errors import TrainingError
from pipeline.models.weights import weights_digest
from pipeline.training.checkpoint import (
    CHECKPOINTS,
    FORMAT,
    HISTORY,
    MANIFEST,
    NETWORK,
    OPTIMIZER,
    CheckpointWriter,
    Snapshot,
    clear_unfinished,
    newest_checkpoint,
    restore,
    retain,
    verified_manifest,
)
from pipeline.training.train_state import TrainState

IDENTITY = {"train": {"learning_rate": 0.1}, "data": "d"}


def new_state(seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    network = nn.Linear(3, 2)
    averages = EMAs(network, ExponentialEMA(half_life_images=10), ExponentialEMA(half_life_images=20))
    return TrainState(network, torch.optim.Adam(network.parameters(), lr=0.1, fused=True), averages)


def stepped(state: TrainState) -> TrainState:
    """One step further."""
    state.optimizer.zero_grad()
    state.network(torch.ones(4, 3)).sum().backward()
    state.optimizer.step()
    state.images_seen += 4
    state.ema.update(state.network.parameters(), state.images_seen, 4)
    return state


def saved(folder: Path, images: int, state: TrainState | None = None, loss: float = 1.0) -> Path:
    state = state or new_state()
    state.images_seen = images
    state.curve = [{"images": images, "loss": loss}]
    return Snapshot.of(state, IDENTITY).write(folder)


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, tensors within dictionaries included."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = stepped(stepped(new_state()))
    state.skipped = torch.tensor([5, 1, 3])
    path = saved(tmp_path, 8, state)
    other = new_state(seed=1)
    restore(other, path, IDENTITY)
    assert (other.images_seen, other.curve, other.skipped.tolist()) == (8, state.curve, [5, 1, 3])
    assert weights_digest(other.network.state_dict()) == weights_digest(state.network.state_dict())
    assert all(
        same(its.state_dict(), mine.state_dict())
        for its, mine in zip(other.ema.averages, state.ema.averages, strict=True)
    )
    assert same(other.optimizer.state_dict()["state"], state.optimizer.state_dict()["state"])
    stepped(state)
    stepped(other)
    assert same(state.network.state_dict(), other.network.state_dict())


def test_a_snapshot_stays_as_it_was_while_training_goes_on(tmp_path: Path) -> None:
    state = stepped(new_state())
    before, snapshot = weights_digest(state.network.state_dict()), Snapshot.of(state, IDENTITY)
    stepped(state)
    state.curve.append({"images": 8, "loss": 0.0})
    path = snapshot.write(tmp_path)
    other = new_state(seed=1)
    restore(other, path, IDENTITY)
    assert weights_digest(other.network.state_dict()) == before != weights_digest(state.network.state_dict())
    assert (other.images_seen, other.curve) == (4, [])


def test_losses_that_the_times_depend_on_come_back_too(tmp_path: Path) -> None:
    state, other = new_state(), new_state(seed=1)
    state.history, other.history = LossHistory(4, 3), LossHistory(4, 3)
    state.history.add(torch.tensor([0, 2, 2, 3]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    path = saved(tmp_path, 7, state)
    restore(other, path, IDENTITY)
    assert torch.equal(other.history.losses, state.history.losses)
    assert other.history.counts.tolist() == [1, 0, 2, 1]
    (path / HISTORY).write_bytes(b"")
    with pytest.raises(TrainingError, match=rf"{path / HISTORY}: sha256 .*; remove this damaged"):
        verified_manifest(path)


def test_a_checkpoint_of_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    path = saved(tmp_path, 7)
    changed = {"train": {"learning_rate": 0.2}, "data": "d", "path": "p"}
    says = r"another configuration \(path: absent there, p here; train.learning_rate: 0.1 there, 0.2 here\); move"
    with pytest.raises(TrainingError, match=says):
        restore(new_state(), path, changed)


def test_configurations_that_differ_far_behind_are_told_apart(tmp_path: Path) -> None:
    urls = [f"{number:06d}.tar" for number in range(1_000)]
    Snapshot.of(new_state(), {"urls": [*urls, "a"]}).write(tmp_path)
    (path,) = tmp_path.glob("images-*")
    with pytest.raises(TrainingError, match="another configuration"):
        restore(new_state(), path, {"urls": [*urls, "b"]})


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    path = saved(tmp_path, 7)
    (path / MANIFEST).unlink()
    with pytest.raises(TrainingError, match=rf"{path}: no readable {MANIFEST}.*remove this unfinished"):
        verified_manifest(path)


@pytest.mark.parametrize("text", ["[1]", "{}", '{"format": 5, "sha256": 3}', "[" * 100_000, "NaN", "\xff"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(TrainingError, match=f"no readable {MANIFEST} .*; remove this unfinished checkpoint"):
        verified_manifest(tmp_path)


@pytest.mark.parametrize("files", [{}, {"../model.safetensors": "0" * 64}, {"/etc/passwd": "0" * 64}])
def test_a_manifest_of_other_files_than_a_checkpoints_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"format": FORMAT, "sha256": files}))
    with pytest.raises(TrainingError, match=f"{MANIFEST} names other files than a checkpoint has"):
        verified_manifest(tmp_path)


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, 7)
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(TrainingError, match=f"checkpoint format 99, this version reads {FORMAT}"):
        verified_manifest(path)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"x"), lambda path: path.unlink()])
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, damage: Any) -> None:
    path = saved(tmp_path, 7)
    damage(path / NETWORK)
    with pytest.raises(TrainingError, match=rf"{path / NETWORK}: sha256 .*, expected .*; remove this damaged"):
        verified_manifest(path)


def test_the_newest_checkpoint_is_the_last_one_that_is_whole_and_the_others_are_told_of(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    older, newer = saved(tmp_path / CHECKPOINTS, 100), saved(tmp_path / CHECKPOINTS, 200)
    told: list[str] = []
    assert newest_checkpoint(tmp_path, told.append) == newer
    assert not told
    (newer / OPTIMIZER).write_bytes(b"")
    assert newest_checkpoint(tmp_path, told.append) == older
    (line,) = told
    assert line.startswith(f"{newer / OPTIMIZER}: sha256 ")
    assert line.endswith("going on from the one before")


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for images, loss in ((100, 0.5), (200, 0.1), (300, 0.3), (400, 0.4), (500, 0.2)):
        saved(tmp_path, images, loss=loss)
    (tmp_path / "images-000000000050").mkdir()  # of an unfinished kind: no manifest
    retain(tmp_path, 2, "images-000000000500")
    assert [path.name[-3:] for path in sorted(tmp_path.iterdir())] == ["200", "400", "500"]


def test_damaged_checkpoints_that_are_newer_push_no_whole_one_out(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / CHECKPOINTS, keep=1, timeout_s=60, tell=print)
    for images in (200, 300):
        (saved(tmp_path / CHECKPOINTS, images, loss=0.01) / NETWORK).write_bytes(b"")
    state = new_state()
    for images in (140, 150):
        state.images_seen, state.curve = images, [{"images": images, "loss": 0.5}]
        writer.save(Snapshot.of(state, IDENTITY))
    writer.close()
    assert newest_checkpoint(tmp_path) == tmp_path / CHECKPOINTS / "images-000000000150"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_full_is_told_of_and_the_next_checkpoint_tried(tmp_path: Path) -> None:
    """A tmpfs of 24 KiB: the network fits, the optimizer does not."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    told: list[str] = []
    try:
        writer = CheckpointWriter(tmp_path, keep=1, timeout_s=60, tell=told.append)
        network = nn.Linear(40, 40)
        state = TrainState(network, torch.optim.Adam(network.parameters()), EMAs(network, ExponentialEMA()))
        network(torch.ones(1, 40)).sum().backward()
        state.optimizer.step()
        writer.save(Snapshot.of(state, IDENTITY))
        writer.wait()
        assert "No space left on device" in told[0]
        assert "training goes on and tries again" in told[0]
        assert not list(tmp_path.iterdir())
        small = new_state()
        small.images_seen = 7
        writer.save(Snapshot.of(small, IDENTITY))
        writer.close()
        assert verified_manifest(tmp_path / "images-000000000007")["images_seen"] == 7
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


WRITE_FOREVER = """
import sys, torch
from pathlib import Path
from torch import nn
from model import EMAs, ExponentialEMA
from pipeline.training.checkpoint import Snapshot
from pipeline.training.train_state import TrainState
network = nn.Linear(1000, 1000)
state = TrainState(network, torch.optim.Adam(network.parameters()), EMAs(network, ExponentialEMA()))
network(torch.ones(1, 1000)).sum().backward()
state.optimizer.step()
print("ready", flush=True)
while True:
    state.images_seen += 1
    Snapshot.of(state, {}).write(Path(sys.argv[1]))
"""


def test_whatever_moment_a_writer_is_killed_at_every_checkpoint_by_name_is_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_FOREVER, str(tmp_path / CHECKPOINTS)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    time.sleep(1.5)
    writer.kill()
    writer.wait()
    writer.stdout.close()
    whole = list((tmp_path / CHECKPOINTS).glob("images-*"))
    assert whole
    assert {verified_manifest(path)["format"] for path in whole} == {FORMAT}
    clear_unfinished(tmp_path / CHECKPOINTS)
    assert sorted((tmp_path / CHECKPOINTS).iterdir()) == sorted(whole)


def test_saving_returns_before_the_storage_has_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, fsync = threading.Event(), os.fsync
    monkeypatch.setattr("pipeline.training.checkpoint.os.fsync", lambda handle: (gate.wait(30), fsync(handle))[1])
    writer = CheckpointWriter(tmp_path, keep=2, timeout_s=60, tell=print)
    state = stepped(new_state())
    writer.save(Snapshot.of(state, IDENTITY))
    assert not list(tmp_path.glob("images-*"))
    stepped(state)
    gate.set()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["images-000000000004"]


def test_a_storage_that_takes_too_long_ends_the_training_with_its_name_and_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, fsync = threading.Event(), os.fsync
    monkeypatch.setattr("pipeline.training.checkpoint.os.fsync", lambda handle: (gate.wait(30), fsync(handle))[1])
    writer = CheckpointWriter(tmp_path, keep=2, timeout_s=0.2, tell=print)
    state = stepped(new_state())
    writer.save(Snapshot.of(state, IDENTITY))
    says = rf"{tmp_path}: a checkpoint has been waited for 0.2 s \(cluster.timeout_s\); is the storage alive"
    with pytest.raises(TrainingError, match=says):
        writer.save(Snapshot.of(state, IDENTITY))
    gate.set()


def test_a_storage_that_refuses_does_not_stop_the_training_until_it_has_often(tmp_path: Path) -> None:
    folder, told = tmp_path / CHECKPOINTS, list[str]()
    folder.write_text("a file where the folder should be")
    writer = CheckpointWriter(folder, keep=2, timeout_s=60, tell=told.append, refusals=3)
    state = new_state()
    for _ in range(2):
        writer.save(Snapshot.of(stepped(state), IDENTITY))
    writer.wait()
    assert len(told) == 2
    assert all("checkpoint not written" in line and "training goes on and tries again" in line for line in told)
    folder.unlink()
    writer.save(Snapshot.of(stepped(state), IDENTITY))
    writer.wait()
    assert newest_checkpoint(tmp_path) == folder / "images-000000000012"
    (folder / "images-000000000012").rename(tmp_path / "kept")
    folder.rmdir()
    folder.write_text("again")
    for _ in range(3):
        writer.save(Snapshot.of(stepped(state), IDENTITY))
    with pytest.raises(TrainingError, match=r"3 checkpoints in a row could not be written .*; earlier ones are kept"):
        writer.wait()


def test_the_last_checkpoint_of_a_training_must_be_written(tmp_path: Path) -> None:
    folder = tmp_path / CHECKPOINTS
    folder.write_text("a file where the folder should be")
    writer = CheckpointWriter(folder, keep=2, timeout_s=60, tell=print)
    writer.save(Snapshot.of(stepped(new_state()), IDENTITY))
    with pytest.raises(TrainingError, match="1 checkpoints in a row could not be written"):
        writer.close()


def test_a_digest_sees_names_shapes_types_and_values() -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1)}
    others = [
        {"a": weights["a"], "c": weights["b"]},
        {"a": weights["a"].reshape(3, 2), "b": weights["b"]},
        {"a": weights["a"].double(), "b": weights["b"]},
        {"a": weights["a"] + 1, "b": weights["b"]},
    ]
    assert weights_digest(dict(reversed(weights.items()))) == weights_digest(weights)
    assert len({weights_digest(each) for each in [weights, *others]}) == 5
