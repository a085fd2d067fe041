"""Averages kept while a tiny network trains for real, and what a run then draws from."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from model import NO_GUIDANCE, EMAs, EMASnapshot, PowerFunctionEMA
from model.ema import gamma_of
from pipeline.clusters.cluster import Cluster
from pipeline.errors import TrainingError
from pipeline.files import read_json
from pipeline.models.stored_model import load_stored
from pipeline.models.weights import weights_digest
from pipeline.runfile.config import ClusterConfig, Config
from pipeline.sampling.sample import Sample
from pipeline.scoring.likelihood import LikelihoodWork, _work
from pipeline.stage import Result, Run
from pipeline.terminal import Terminal
from pipeline.training.averages import AVERAGES, LARGE_ERROR, PostHocAverage, clear_after, keep, kept
from pipeline.training.checkpoint import (
    CHECKPOINTS,
    SPEC,
    WEIGHTS,
    CheckpointWriter,
    Snapshot,
    newest_checkpoint,
    restore,
)
from pipeline.training.curve import CURVE
from pipeline.training.train import _keep_weights, recipe_of
from pipeline.training.train_step import Batch, TrainStep
from pipeline.training.trained_model import ModelFolders, weights_identity

from .trainings import TINY

BATCH, STEPS, EVERY = 2, 48, 4
FINAL = BATCH * STEPS
BETWEEN = 0.075
POWERS = [{"kind": "power_function", "sigma_rel": sigma_rel} for sigma_rel in (0.05, 0.1)]
NAMES = [
    f"images-{moment:012d}-sigma_rel-{sigma_rel}.safetensors"
    for moment in range(BATCH * EVERY, FINAL + 1, BATCH * EVERY)
    for sigma_rel in (0.05, 0.1)
]

Weights = dict[str, Tensor]


def config_of(folder: Path, averages: Any = POWERS, **sample: Any) -> Config:
    return Config.model_validate(
        TINY
        | {
            "train": {"images": FINAL, "batch_size": BATCH, "learning_rate": 0.003, "also_averaged": averages},
            "sample": {"images": 6, "sampler": {"kind": "ddim", "steps": 2}, **sample},
            "evaluate": {
                "extractor": {"kind": "classifier"},
                "likelihoods": [{"kind": "variational_bound", "images": 6}],
            },
            "output": str(folder / "out"),
        }
    )


class Training:
    """A training in `folder`, as a worker does it: from the newest checkpoint, with a checkpoint every so many steps.

    Beside it stands what is to be reconstructed: an average of a length that is not kept.
    """

    def __init__(self, folder: Path, averages: Any = POWERS) -> None:
        self.folder, self.told = folder, list[str]()
        self.step = TrainStep(recipe_of(config_of(folder, averages)), torch.device("cpu"))
        self.writer = CheckpointWriter(folder / CHECKPOINTS, keep=1, timeout_s=60, tell=self.told.append)
        if newest := newest_checkpoint(folder):
            restore(self.step.state, newest, {})
        self.between = EMAs(self.step.state.network, PowerFunctionEMA(sigma_rel=BETWEEN))
        self.walk: list[Tensor] = []

    def until(self, images: int) -> "Training":
        state = self.step.state
        while state.images_seen < images:
            generator = torch.Generator().manual_seed(state.images_seen)
            pixels = torch.randint(0, 256, (BATCH, 8, 8, 1), dtype=torch.uint8, generator=generator)
            self.step(Batch(state.images_seen, pixels, torch.full((BATCH,), -1)))
            self.between.update(self.step.parameters, state.images_seen, BATCH)
            self.walk.append(flat(dict(self.step.state.network.named_parameters())))
            if state.images_seen % (BATCH * EVERY) == 0:
                self.writer.save(Snapshot.of(state, {}))
        self.writer.wait()
        return self

    def last(self, number: int) -> Weights:
        """The average of this number as it is now."""
        return {name: weight.clone() for name, weight in self.step.state.ema.averages[number].state_dict().items()}


def flat(weights: Weights) -> Tensor:
    """All numbers, in the order of the weights' names."""
    return torch.cat([weights[name].detach().double().flatten() for name in sorted(weights)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Training:
    return Training(tmp_path_factory.mktemp("trained")).until(FINAL)


def made(training: Training, sigma_rel: float) -> PostHocAverage:
    folder = training.folder / AVERAGES
    average = PostHocAverage(folder, kept(folder), EMASnapshot(images_seen=FINAL, sigma_rel=sigma_rel))
    average.make()
    return average


def test_every_checkpoints_power_functions_are_kept_though_checkpoints_are_pruned(trained: Training) -> None:
    assert [path.name for path in (trained.folder / CHECKPOINTS).iterdir()] == [f"images-{FINAL:012d}"]
    assert list(kept(trained.folder / AVERAGES)) == NAMES  # not the exponential one, number 0
    for number, name in ((1, NAMES[-2]), (2, NAMES[-1])):
        stored = load_file(trained.folder / AVERAGES / name)
        assert weights_digest(stored) == weights_digest(trained.last(number))
        (checkpoint,) = (trained.folder / CHECKPOINTS).iterdir()
        assert (checkpoint / f"ema-{number}.safetensors").samefile(trained.folder / AVERAGES / name)


def test_without_a_power_function_nothing_is_kept(tmp_path: Path) -> None:
    Training(tmp_path, [{"kind": "exponential"}]).until(BATCH * EVERY)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINTS]
    assert kept(tmp_path / AVERAGES) == {}


def test_a_training_that_goes_on_from_an_earlier_checkpoint_keeps_the_same_bytes(
    trained: Training, tmp_path: Path
) -> None:
    for images in (FINAL // 2, FINAL):
        Training(tmp_path).until(images)
    assert kept(tmp_path / AVERAGES) == kept(trained.folder / AVERAGES)
    (tmp_path / AVERAGES / NAMES[-1]).write_bytes(b"damaged, and the checkpoint with it")
    for path in (tmp_path / CHECKPOINTS).iterdir():
        path.rename(tmp_path / "gone")
    Training(tmp_path).until(FINAL)  # passes all moments again
    assert kept(tmp_path / AVERAGES) == kept(trained.folder / AVERAGES)


def test_a_reconstruction_at_a_stored_length_is_the_stored_average(trained: Training) -> None:
    for number, sigma_rel in ((1, 0.05), (2, 0.1)):
        average = made(trained, sigma_rel)
        assert average.file.name == f"sigma_rel-{sigma_rel}.safetensors"
        assert average.reconstruction.error < 1e-6
        torch.testing.assert_close(load_file(average.file), trained.last(number), rtol=1e-6, atol=1e-7)


def bound(training: Training, sigma_rel: float, error: float) -> float:
    """The farthest that an average of this error can lie from the true one.

    By Cauchy and Schwarz, |sum (p' - p) (theta - c)| <= |p' - p| |theta - c| for any c, as both profiles sum to 1; and
    |p|^2 = (gamma + 1)^2 / (2 gamma + 1) over a training of length 1.
    """
    gamma, walk = gamma_of(sigma_rel), torch.stack(training.walk)
    spread = (walk - walk.mean(0)).square().sum(1).mean().sqrt().item()
    return error * (gamma + 1) / (2 * gamma + 1) ** 0.5 * spread


def test_a_reconstruction_between_is_the_average_trained_at_that_length_within_its_error(trained: Training) -> None:
    average, true = made(trained, BETWEEN), flat(trained.between.first.state_dict())
    farthest = bound(trained, BETWEEN, average.reconstruction.error)
    assert average.reconstruction.error < 0.01
    assert (flat(load_file(average.file)) - true).norm() < farthest
    for number in (1, 2):  # known to be wrong: the nearest that was kept
        assert (flat(trained.last(number)) - true).norm() > 3 * farthest


def test_a_storage_that_refuses_the_average_refuses_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / AVERAGES).write_text("a file where the folder should be")
    training = Training(tmp_path).until(BATCH * EVERY)
    (line,) = training.told
    assert f"{tmp_path / CHECKPOINTS}: checkpoint not written" in line
    assert line.endswith("training goes on and tries again")
    assert not list((tmp_path / CHECKPOINTS).iterdir())  # what goes on from a checkpoint has all its averages
    (tmp_path / AVERAGES).unlink()
    training.until(2 * BATCH * EVERY)
    assert list(kept(tmp_path / AVERAGES)) == NAMES[2:4]


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    with TemporaryDirectory(dir="/dev/shm") as folder:
        if Path(folder).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("tests write to the only disk there is")
        yield Path(folder)


def test_where_no_link_can_be_made_the_file_is_copied(tmp_path: Path, other_disk: Path) -> None:
    (other_disk / "ema.safetensors").write_bytes(b"weights")
    keep(other_disk / "ema.safetensors", tmp_path, EMASnapshot(images_seen=7, sigma_rel=0.1))
    (path,) = tmp_path.iterdir()
    assert (path.name, path.read_bytes()) == ("images-000000000007-sigma_rel-0.1.safetensors", b"weights")


def test_what_a_kill_left_half_kept_is_cleared_and_what_was_kept_stays(tmp_path: Path) -> None:
    (tmp_path / f".{NAMES[0]}").touch()
    (tmp_path / NAMES[1]).touch()
    clear_after(tmp_path, BATCH * EVERY)
    clear_after(tmp_path / "nowhere", 0)
    assert [path.name for path in tmp_path.iterdir()] == [NAMES[1]]


def test_averages_of_steps_that_are_undone_go_with_them(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).touch()
    clear_after(tmp_path, BATCH * EVERY)
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES[:2]
    clear_after(tmp_path, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"x"), lambda path: path.unlink()])
def test_a_kept_average_that_is_damaged_or_gone_is_named(tmp_path: Path, damage: Any) -> None:
    folder = Training(tmp_path).until(2 * BATCH * EVERY).folder / AVERAGES
    average = PostHocAverage(folder, kept(folder), EMASnapshot(images_seen=2 * BATCH * EVERY, sigma_rel=0.1))
    damage(folder / NAMES[3])
    says = rf"{NAMES[3]}: sha256 .*, expected .*; restore this average, or set sample.sigma_rel=null and evaluate"
    with pytest.raises(TrainingError, match=says):
        average.make()
    assert not average.file.exists()


def test_without_any_kept_average_the_way_out_is_named(tmp_path: Path) -> None:
    average = PostHocAverage(tmp_path, kept(tmp_path), EMASnapshot(images_seen=FINAL, sigma_rel=0.1))
    with pytest.raises(TrainingError, match=r"no averages were kept; set sample.sigma_rel=null, or remove"):
        average.make()


def test_a_large_error_is_told_with_what_to_do(trained: Training) -> None:
    few = dict(list(kept(trained.folder / AVERAGES).items())[-2:])
    off, near = (
        PostHocAverage(trained.folder, few, EMASnapshot(images_seen=FINAL, sigma_rel=each)) for each in (0.2, BETWEEN)
    )
    assert off.reconstruction.error > LARGE_ERROR > near.reconstruction.error
    anew = f"remove {trained.folder.parent} to train anew with a smaller train.checkpoint_images"
    advice = f"keep two widths in train.also_averaged, or {anew}"
    assert str(off) == f"sigma_rel 0.2: made of 2 kept averages, {off.reconstruction.error:.1%} off; {advice}"
    assert str(near) == f"sigma_rel 0.075: made of 2 kept averages, {near.reconstruction.error:.1%} off"


def run_of(training: Training, terminal: Terminal | None = None, **sample: Any) -> Run:
    """A run that has been trained."""
    point = {"images": FINAL, "loss": 0.5, "images_per_s": 10.0, "seconds": 2.0}
    (training.folder / CURVE).write_text(json.dumps(point) + "\n")
    config = config_of(training.folder, **sample)
    (training.folder / SPEC).write_text(config.spec.model_dump_json())
    run = Run(config, terminal or Terminal(), Cluster(ClusterConfig(), 2, 0))
    run.results["train"] = Result(training.folder, _keep_weights(training.folder, FINAL), 1.0, reused=False)
    run.results["prepare"] = Result(training.folder, {"data_digest": "d"}, 1.0, reused=False)
    return run


def test_what_images_are_drawn_from_is_one_file_for_every_user_of_a_runs_weights(
    trained: Training, tmp_path: Path
) -> None:
    terminal = Terminal(Console(file=io.StringIO(), width=100))
    run, usual = run_of(trained, terminal, sigma_rel=0.1), run_of(trained)
    folders = ModelFolders.of(run)
    assert folders.weights == trained.folder / AVERAGES / "sigma_rel-0.1.safetensors"
    assert ModelFolders.of(usual).weights == trained.folder / WEIGHTS
    folders.write_description(run.config, tmp_path)
    weights = load_file(folders.weights)
    torch.testing.assert_close(weights, trained.last(2), rtol=1e-6, atol=1e-7)
    stored = load_stored(str(tmp_path), [], None, "cpu").model
    drawn = folders.load(NO_GUIDANCE, torch.device("cpu"))
    for model in (stored, drawn):
        executed = model.network.get_submodule("network")
        assert weights_digest(executed.state_dict()) == weights_digest(weights)
    work: LikelihoodWork = _work(run, run.config.evaluate.likelihoods[0])
    assert work.model == folders
    assert read_json(tmp_path / "model.json")["weights"].endswith("averages/sigma_rel-0.1.safetensors")
    written = folders.weights.stat().st_mtime_ns
    assert ModelFolders.of(run) == folders
    assert folders.weights.stat().st_mtime_ns == written  # once
    stream = terminal.console.file
    assert isinstance(stream, io.StringIO)
    assert stream.getvalue() == f"  sigma_rel 0.1: made of {len(NAMES)} kept averages, 0.0% off\n"


def test_the_length_and_the_kept_averages_decide_what_is_sampled_and_nothing_where_it_is_null(
    trained: Training,
) -> None:
    stage = Sample()
    usual, short, long, again = (run_of(trained, sigma_rel=each) for each in (None, 0.05, 0.1, 0.1))
    assert stage.folder(long) == stage.folder(again)
    assert len({stage.folder(run) for run in (usual, short, long)}) == 3
    assert len({_work(run, run.config.evaluate.likelihoods[0]).folder for run in (usual, short, long)}) == 3
    fewer = dict(list(long.results["train"].facts["averages"].items())[1:])
    for run, changes in ((usual, False), (long, True)):
        before, identity = stage.folder(run), weights_identity(run)
        run.results["train"].facts["averages"] = fewer
        assert (stage.folder(run) != before) is changes
        assert (weights_identity(run) != identity) is changes


def test_finishing_a_training_again_forgets_what_was_made_of_its_averages(trained: Training) -> None:
    ModelFolders.of(run_of(trained, sigma_rel=0.06))
    assert (trained.folder / AVERAGES / "sigma_rel-0.06.safetensors").exists()
    facts = _keep_weights(trained.folder, FINAL)
    assert not list((trained.folder / AVERAGES).glob("sigma_rel-*"))
    assert list(facts["averages"]) == NAMES


@pytest.mark.parametrize("averages", [[], [{"kind": "exponential"}]], ids=str)
def test_a_length_without_a_power_function_to_make_it_of_is_refused(tmp_path: Path, averages: Any) -> None:
    says = r"sample.sigma_rel: 0.1 is made of power-function averages, and train.ema .* set train.also_averaged="
    with pytest.raises(ValueError, match=says):
        config_of(tmp_path, averages, sigma_rel=0.1)


@pytest.mark.parametrize("sigma_rel", [0, 0.289])
def test_a_length_that_no_power_function_has_is_refused(tmp_path: Path, sigma_rel: float) -> None:
    with pytest.raises(ValueError, match=r"sample.sigma_rel\n.*(greater than 0|less than or equal to 0\.288)"):
        config_of(tmp_path, sigma_rel=sigma_rel)


def test_the_sampled_average_itself_may_be_the_power_function(tmp_path: Path) -> None:
    settings = config_of(tmp_path, []).model_dump(by_alias=True)
    settings["train"]["ema"], settings["sample"]["sigma_rel"] = POWERS[0], 0.1
    assert Config.model_validate(settings).sample.sigma_rel == 0.1
