"""Training that starts from a model that exists: its weights, all else anew, and a key that knows the weights alone."""

import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.__main__ import main
from pipeline.data.prepare import Prepare
from pipeline.errors import ConfigError, TrackingError, TrainingError
from pipeline.files import write_json, write_text
from pipeline.flow import tracked
from pipeline.models.description import description_of
from pipeline.models.warm_start import START, read_start
from pipeline.models.weights import weights_digest
from pipeline.registration.gate import Gate
from pipeline.registration.model_package import ModelPackage
from pipeline.registration.registry import register
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import dump, load
from pipeline.stage import CONFIG, Run
from pipeline.terminal import Terminal
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.training.checkpoint import CHECKPOINTS, Snapshot
from pipeline.training.guide import Guide, guide_recipe_of
from pipeline.training.train import Train
from pipeline.training.train_loop import Worker

from .trainings import worker_of

RUNS = Path(__file__).parents[2] / "pipeline/runs"
SETTINGS = [
    "data.shard_images=800",
    "network={kind: ddpm_unet, base_channels: 8, channel_multipliers: [1], blocks_per_level: 1, attention_sizes: []}",
    "train.batch_size=32",
    "train.num_workers=1",
    "train.learning_rate=2e-3",
    "train.also_averaged=[{kind: power_function}]",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(scope="module")
def weights(home: Path) -> dict[str, Tensor]:
    """Those of a network that has been trained a little, on the digits."""
    worker = new_worker(home, new_run(home))
    train(worker, 80)
    return {name: tensor.clone() for name, tensor in worker.state.network.state_dict().items()}


@pytest.fixture(scope="module")
def source(home: Path, weights: dict[str, Tensor]) -> Path:
    save_file(weights, home / "source.safetensors")
    return home / "source.safetensors"


def config_of(output: Path, *overrides: str) -> Config:
    return load(RUNS / "digits.yaml", [f"output={output}", *SETTINGS, *overrides], Config)


def new_run(output: Path, warm_start: object = None, *overrides: str) -> Run:
    start = [] if warm_start is None else [f"train.warm_start={warm_start}"]
    run = Run(config_of(output, *start, *overrides), Terminal())
    run.results["prepare"] = Prepare().recall(run) or Prepare().finish(run)
    return run


def new_worker(folder: Path, run: Run) -> Worker:
    """The run's one worker, as it is before it looks for a checkpoint; its start is in the folder, as Train does it."""
    if run.warm_start:
        run.warm_start.write(folder)
    return worker_of(run, folder)


def train(worker: Worker, steps: int) -> list[float]:
    """So many steps more. -> the loss of each."""
    return [float(worker.step(batch)) for batch in islice(worker._batches(), steps)]


def digest_of(worker: Worker) -> str:
    return weights_digest(worker.state.network.state_dict())


def test_network_and_every_average_start_as_the_source_to_the_bit_and_all_else_anew(
    home: Path, source: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    worker = new_worker(tmp_path, new_run(home, source))
    assert digest_of(worker) != weights_digest(weights)
    worker.resume(worker.newest_checkpoint())
    assert digest_of(worker) == weights_digest(weights)
    assert [weights_digest(ema.state_dict()) for ema in worker.state.ema.averages] == [weights_digest(weights)] * 2
    assert (worker.state.images_seen, worker.state.curve) == (0, [])
    assert not worker.state.optimizer.state


def test_the_first_losses_are_those_of_a_trained_network(home: Path, source: Path, tmp_path: Path) -> None:
    cold, warm = new_worker(tmp_path / "cold", new_run(home)), new_worker(tmp_path / "warm", new_run(home, source))
    cold.resume(None)
    warm.resume(None)
    for was, now in zip(train(cold, 3), train(warm, 3), strict=True):  # of the same images, times and noise
        assert now < 0.7 * was


def test_averages_forget_where_they_started_by_their_own_rule(home: Path, source: Path, tmp_path: Path) -> None:
    worker = new_worker(tmp_path, new_run(home, source))
    worker.resume(None)
    train(worker, 1)
    _, power_function = worker.state.ema.averages
    assert weights_digest(power_function.state_dict()) == digest_of(worker)


def test_a_killed_training_goes_on_from_its_checkpoint_and_not_from_the_source(
    home: Path, source: Path, tmp_path: Path
) -> None:
    undisturbed = new_worker(tmp_path, new_run(home, source))
    undisturbed.resume(None)
    train(undisturbed, 2)
    Snapshot.of(undisturbed.state, undisturbed.job.identity).write(tmp_path / CHECKPOINTS)
    train(undisturbed, 2)

    resumed = new_worker(tmp_path, new_run(home, source))
    (tmp_path / START).unlink()  # not needed any more
    resumed.resume(resumed.newest_checkpoint())
    assert resumed.state.images_seen == 2 * 32
    train(resumed, 2)
    assert digest_of(resumed) == digest_of(undisturbed)


def test_a_checkpoint_of_another_start_is_refused(home: Path, source: Path, tmp_path: Path) -> None:
    cold = new_worker(tmp_path, new_run(home))
    train(cold, 1)
    Snapshot.of(cold.state, cold.job.identity).write(tmp_path / CHECKPOINTS)
    warm = new_worker(tmp_path, new_run(home, source))
    with pytest.raises(TrainingError, match=r"belongs to another configuration \(warm_start: absent there, [0-9a-f]+"):
        warm.resume(warm.newest_checkpoint())


def test_keys_change_with_the_weights_and_not_with_the_place(home: Path, source: Path, tmp_path: Path) -> None:
    shutil.copy(source, tmp_path / "elsewhere.safetensors")
    other = {name: tensor + 1e-3 for name, tensor in load_file(source).items()}
    save_file(other, tmp_path / "other.safetensors")
    cold, here, there, others = (
        new_run(home, place)
        for place in (None, source, tmp_path / "elsewhere.safetensors", tmp_path / "other.safetensors")
    )
    assert here.key == there.key
    assert Train().folder(here) == Train().folder(there)
    assert len({cold.key, here.key, others.key}) == 3
    assert len({Train().folder(run) for run in (cold, here, others)}) == 3
    assert Prepare().folder(cold) == Prepare().folder(here)
    assert cold.key == Run(config_of(home, "train.warm_start=null"), Terminal()).key


def test_the_copy_in_the_trainings_folder_is_made_once_and_mended(home: Path, source: Path, tmp_path: Path) -> None:
    start = new_run(home, source).warm_start
    assert start is not None
    start.write(tmp_path)
    made_ns = (tmp_path / START).stat().st_mtime_ns
    start.write(tmp_path)
    assert (tmp_path / START).stat().st_mtime_ns == made_ns
    content = (tmp_path / START).read_bytes()
    (tmp_path / START).write_bytes(content[:-9])
    with pytest.raises(TrainingError, match=rf"{START}: not a whole safetensors file.*the same command copies it anew"):
        read_start(tmp_path, start.digest)
    start.write(tmp_path)
    assert weights_digest(dict(read_start(tmp_path, start.digest))) == start.digest
    with pytest.raises(TrainingError, match=rf"{START}: weights {start.digest[:12]}, expected 0123; remove it"):
        read_start(tmp_path, "0123")
    assert new_run(home, tmp_path / START).key == new_run(home, source).key


def test_a_runs_folder_is_a_source(home: Path, source: Path, tmp_path: Path) -> None:
    run = new_run(home)
    write_json(tmp_path / "model.json", description_of(run.config) | {"weights": str(source), "classifier": None})
    start = new_run(home, tmp_path).warm_start
    assert start is not None
    assert start.name == str(tmp_path)
    assert start.digest == weights_digest(load_file(source))


def test_the_classifier_that_guides_starts_cold(home: Path, source: Path) -> None:
    run = new_run(home, source, "sample.guidance={kind: classifier, classifier: {classes: 10}}")
    assert guide_recipe_of(run.config).train.warm_start is None
    assert "warm_start" not in Guide().identity(run)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.safetensors", "nowhere.safetensors: no such file; give one of weights, the folder of a trained run"),
        ("nowhere", "nowhere: no such folder; give the folder of a trained run"),
        (".", r"\.: has no model.json; give the folder of a trained run"),
        ("cut.safetensors", "cut.safetensors: not a whole safetensors file"),
        ("models:/digits", "models:/digits: expected models:/NAME@ALIAS"),
        ("models:/digits@champion", "there is no MLflow store .*mlflow.db; give its address by tracking.uri"),
    ],
)
def test_what_is_not_there_is_refused(
    name: str, says: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(source.read_bytes()[:-9])
    with pytest.raises(ConfigError, match=rf"^train\.warm_start: .*{says}"):
        Run(config_of(tmp_path / "out", f"train.warm_start={name}"), Terminal())
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network_are_refused_with_the_first_name_that_differs(home: Path, source: Path) -> None:
    says = r"source\.safetensors: .* is \[8\], where the network of this configuration has \[16\].*of another model"
    with pytest.raises(ConfigError, match=says):
        new_run(home, source, "network.base_channels=16")


def test_check_shows_the_start_and_refuses_a_wrong_one(
    home: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["check", str(RUNS / "digits.yaml"), f"output={home}", *SETTINGS]
    assert main([*command, f"train.warm_start={source}"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert f"warmstart{source},weights{weights_digest(load_file(source))[:12]}" in shown
    assert main([*command, "train.warm_start=nowhere.safetensors"]) == 2
    assert "train.warm_start: nowhere.safetensors: no such file" in capsys.readouterr().err


@pytest.fixture(scope="module")
def registered(home: Path, source: Path) -> tuple[ModelPackage, str]:
    config = config_of(home)
    write_json(home / "model.json", description_of(config))
    write_text(home / CONFIG, dump(config))
    package = ModelPackage(
        run_key="first",
        weights=source,
        description=home / "model.json",
        config=home / CONFIG,
        protocol={},
        protocol_digest="p" * 64,
        scores={"fid_classifier": 1.0, "fid_classifier_se": 0.01},
        primary_score="fid_classifier",
        data_digest="d" * 64,
        trained_images=1_000,
    )
    return package, "warm"


def test_an_alias_is_looked_up_once_and_its_version_or_its_copy_is_the_same_run(
    home: Path, source: Path, run: TrackedRun, uri: str, registered: tuple[ModelPackage, str], tmp_path: Path
) -> None:
    """As each night: the training starts from the champion, which another one becomes meanwhile."""
    package, name = registered
    register(run, package, name, Gate())
    store = f"tracking.uri={uri}"
    before = new_run(home, f"models:/{name}@champion", store)
    assert before.warm_start is not None
    assert (before.warm_start.name, before.warm_start.digest) == (
        f"models:/{name}/1",
        weights_digest(load_file(source)),
    )

    save_file({key: tensor * 2 for key, tensor in load_file(source).items()}, home / "second.safetensors")
    better = {"fid_classifier": 0.5, "fid_classifier_se": 0.01}
    register(run, replace(package, run_key="second", weights=home / "second.safetensors", scores=better), name, Gate())
    after = new_run(home, f"models:/{name}@champion", store)
    assert after.warm_start is not None
    assert after.warm_start.name == f"models:/{name}/2"
    assert after.key != before.key
    assert Train().identity(before)["warm_start"] == weights_digest(load_file(source))

    before.warm_start.write(tmp_path)
    assert new_run(home, f"models:/{name}/1", store).key == before.key
    assert new_run(home, tmp_path / START, "tracking.uri=http://127.0.0.1:9").key == before.key

    with tracked(after, tmp_path, after.key, {}) as page:
        tags = run.client.get_run(page.run_id).data.tags
    assert tags["warm_start"] == f"models:/{name}/2"
    assert tags["warm_start_digest"] == after.warm_start.digest
    with pytest.raises(TrackingError, match=r"train\.warm_start: .*cannot download models:/warm@nobody: .*nobody"):
        new_run(home, f"models:/{name}@nobody", store)


def test_an_mlflow_that_does_not_answer_is_refused_within_its_time(home: Path, silent: str) -> None:
    says = rf"train\.warm_start: {silent}: cannot reach MLflow: no answer for 1 s \(tracking\.timeout_s\)"
    with pytest.raises(TrackingError, match=says):
        new_run(home, "models:/warm@champion", f"tracking.uri={silent}", "tracking.timeout_s=0.5")
