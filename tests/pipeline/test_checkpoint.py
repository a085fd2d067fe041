"""Checkpoints: whole and of this configuration, or refused; the newest whole one is what a training goes on from."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from model import EMA, LossHistory
from pipeline.checkpoint import (
    CHECKPOINTS,
    HISTORY,
    MANIFEST,
    NETWORK,
    OPTIMIZER,
    START,
    TrainState,
    newest_checkpoint,
    set_aside,
    verified_manifest,
    weights_digest,
)
from pipeline.errors import TrainingError


def new_state(seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    network = nn.Linear(3, 2)
    return TrainState(network, torch.optim.Adam(network.parameters(), lr=0.1), EMA(network))


def saved(folder: Path, images: int, state: TrainState | None = None) -> Path:
    state = state or new_state()
    state.images_seen = images
    path = folder / f"images-{images:012d}"
    path.mkdir(parents=True)
    state.save(path, "this")
    return path


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = new_state()
    state.network(torch.ones(4, 3)).sum().backward()
    state.optimizer.step()
    state.curve.append({"images": 7, "loss": 0.1})
    path = saved(tmp_path, 7, state)
    other = new_state(seed=1)
    other.load(path, "this")
    assert other.images_seen == 7
    assert other.curve == state.curve
    assert weights_digest(other.network.state_dict()) == weights_digest(state.network.state_dict())
    assert weights_digest(other.ema.state_dict()) == weights_digest(state.ema.state_dict())
    for mine, its in zip(
        other.optimizer.state_dict()["state"].values(), state.optimizer.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(mine[name], its[name]) for name in its)


def test_losses_that_the_times_depend_on_come_back_too(tmp_path: Path) -> None:
    state, other = new_state(), new_state(seed=1)
    state.history, other.history = LossHistory(4, 3), LossHistory(4, 3)
    state.history.add(torch.tensor([0, 2, 2, 3]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    path = saved(tmp_path, 7, state)
    other.load(path, "this")
    assert torch.equal(other.history.losses, state.history.losses)
    assert other.history.counts.tolist() == [1, 0, 2, 1]
    (path / HISTORY).write_bytes(b"")
    with pytest.raises(TrainingError, match=rf"{path / HISTORY}: sha256 .*; remove this damaged"):
        verified_manifest(path)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, 7)
    with pytest.raises(TrainingError, match=r"belongs to another configuration \(identity this, expected that\)"):
        new_state().load(path, "that")


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    path = saved(tmp_path, 7)
    (path / MANIFEST).unlink()
    with pytest.raises(TrainingError, match=rf"{path}: no readable {MANIFEST}.*remove this unfinished"):
        verified_manifest(path)


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, 7)
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(TrainingError, match="checkpoint format 99, this version reads 3"):
        verified_manifest(path)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"x"), lambda path: path.unlink()])
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    path = saved(tmp_path, 7)
    damage(path / NETWORK)
    with pytest.raises(TrainingError, match=rf"{path / NETWORK}: sha256 .*, expected .*; remove this damaged"):
        verified_manifest(path)


def test_the_newest_checkpoint_is_the_last_one_that_is_whole(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    older, newer = saved(tmp_path / CHECKPOINTS, 100), saved(tmp_path / CHECKPOINTS, 200)
    saved(tmp_path / START, 50)
    assert newest_checkpoint(tmp_path) == newer
    (newer / OPTIMIZER).write_bytes(b"")
    assert newest_checkpoint(tmp_path) == older


def test_set_aside_leaves_the_newest_checkpoint_alone_and_ray_nothing(tmp_path: Path) -> None:
    assert set_aside(tmp_path) is None
    saved(tmp_path / START, 50)
    saved(tmp_path / CHECKPOINTS, 100)
    newest = saved(tmp_path / CHECKPOINTS, 200)
    (tmp_path / CHECKPOINTS / "checkpoint_manager_snapshot.json").write_text("{")
    kept = tmp_path / START / newest.name
    assert set_aside(tmp_path) == kept
    assert [path.relative_to(tmp_path) for path in tmp_path.glob("*/images-*")] == [Path(START, newest.name)]
    assert not (tmp_path / CHECKPOINTS).exists()
    assert verified_manifest(kept)["images_seen"] == 200
    assert set_aside(tmp_path) == kept  # a kill before the next checkpoint costs nothing either


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
