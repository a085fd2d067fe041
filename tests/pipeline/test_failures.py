"""Processes killed in the middle of training and sampling on a real Ray cluster: nothing is lost, nothing differs."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import ray

from pipeline.clusters.cluster import Cluster, connected
from pipeline.clusters.fan_out import result_of
from pipeline.errors import DataError, PipelineError
from pipeline.runfile.config import Config
from pipeline.sampling.sample import Sample
from pipeline.stage import Result, Run
from pipeline.training.checkpoint import CHECKPOINTS, OPTIMIZER, images_of
from pipeline.training.curve import CURVE, read_curve
from pipeline.training.train import Train

from .trainings import TINY, assert_same_state, drafts, kill, losses, prepared, train_in
from .waiting import wait_until

CONFIG = TINY | {
    "network": TINY["network"] | {"attention_sizes": [8]},
    "train": {
        "images": 4_800,
        "batch_size": 32,
        "num_workers": 2,
        "times": {"kind": "loss_second_moment", "intervals": 10},  # whose state must survive, too
        "checkpoint_images": 2_400,
        "log_images": 200,
        "preview_images": 0,
    },
    "sample": {"images": 60, "chunk_images": 5, "sampler": {"kind": "ddim", "steps": 20}},
}


# Ray Train imports Ray Data, which warns of its own settings.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected(Config.model_validate(CONFIG).cluster) as joined:
        yield joined


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = prepared(CONFIG, tmp_path_factory.mktemp("undisturbed"), cluster)
    for stage in (Train(), Sample()):
        run.results[stage.name] = stage.finish(run)
    return run


def kill_in(stage: Train | Sample, run: Run, name: str, when: Callable[[], bool], count: int = 1) -> Result:
    """Finishes the stage although so many processes are killed as soon as `when` holds."""
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(_kill_when, when, name, count)
        result = stage.finish(run)
        killed.result()
    return result


def _kill_when(condition: Callable[[], bool], name: str, count: int) -> None:
    wait_until(condition, within_s=150, every_s=0.001)
    kill(name, count)


def test_damage_and_a_killed_worker_change_neither_state_nor_curve(
    undisturbed: Run, cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a power cut may leave: the last checkpoint unreadable, another half written, the last line, too.
    Then, while the training goes on from the checkpoint before, one of its workers dies.
    """
    run, stage = prepared(CONFIG, tmp_path, cluster), Train()
    folder, expected = stage.folder(run), undisturbed.results["train"]
    shutil.copytree(expected.folder, folder)
    (folder / "done.json").unlink()
    older, newest = sorted((folder / CHECKPOINTS).glob("images-*"))
    (newest / OPTIMIZER).write_bytes(b"")
    (folder / CHECKPOINTS / ".writing-images-000000009999").mkdir()
    lines = (folder / CURVE).read_text().splitlines(keepends=True)
    (folder / CURVE).write_text("".join(lines[:5]) + lines[5][:20])

    result = kill_in(stage, run, "RayTrainWorker", lambda: read_curve(folder)[-1]["images"] > images_of(older))
    assert not drafts(folder)
    assert f"{newest}" in capsys.readouterr().out
    assert result.facts["weights_digest"] == expected.facts["weights_digest"]
    assert_same_state(folder, expected.folder)
    assert losses(folder) == losses(expected.folder)


def test_all_workers_killed_in_the_middle_of_a_save_change_neither_state_nor_curve(
    undisturbed: Run, cluster: Cluster, tmp_path: Path
) -> None:
    run, stage = prepared(CONFIG, tmp_path, cluster, checkpoint_images=200), Train()  # with each point
    folder = stage.folder(run)
    kill_in(stage, run, "RayTrainWorker", lambda: bool(read_curve(folder) and drafts(folder)), count=2)
    expected = undisturbed.results["train"].folder
    assert_same_state(folder, expected)
    assert losses(folder) == losses(expected)


def test_an_actor_killed_in_sampling_changes_no_image(undisturbed: Run, cluster: Cluster, tmp_path: Path) -> None:
    run = prepared(CONFIG, tmp_path, cluster)
    run.results["train"] = undisturbed.results["train"]
    stage = Sample()
    folder = stage.folder(run)
    kill_in(stage, run, "Drawer", lambda: len(list(folder.glob("chunk-*.npz"))) > 1)
    for path in undisturbed.results["sample"].folder.glob("chunk-*.npz"):
        expected, found = np.load(path), np.load(folder / path.name)
        np.testing.assert_array_equal(found["images"], expected["images"])


def test_a_loss_that_is_not_finite_ends_the_training_without_a_checkpoint_of_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    run = prepared(CONFIG, tmp_path, cluster, learning_rate=1e18, num_workers=1)
    train_in(tmp_path, run)
    last = read_curve(tmp_path)[-1]
    assert last["not_finite"] is True
    assert last["images"] < run.config.train.checkpoint_images
    assert last["skipped_steps"] >= run.config.train.max_skipped_steps


def test_what_a_task_raises_on_purpose_comes_out_as_it_was(cluster: Cluster) -> None:
    def refuse() -> None:
        raise DataError("restore the shard")

    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"^restore the shard$"):
        result_of(ray.remote(refuse).remote())
    with pytest.raises(PipelineError, match=r"a worker process failed: .*No space left.*the same command goes on"):
        result_of(ray.remote(fail).remote())
