"""Processes killed in the middle of training and sampling on a real Ray cluster: nothing is lost, nothing differs."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from pipeline.checkpoint import CHECKPOINTS, OPTIMIZER
from pipeline.cluster import Cluster, connected
from pipeline.config import Config
from pipeline.curve import CURVE, read_curve, recorded
from pipeline.errors import DataError, PipelineError
from pipeline.fan_out import result_of
from pipeline.order import Permutation
from pipeline.prepare import Prepare
from pipeline.sample import Sample
from pipeline.shard_cache import ShardCacheConfig
from pipeline.stage import Result, Run
from pipeline.terminal import Terminal
from pipeline.train import Train, recipe_of
from pipeline.train_loop import TrainJob, Worker

from .processes import ancestors

CONFIG = {
    "name": "tiny",
    "data": {"source": {"kind": "digits"}, "image_size": 8, "channels": 1, "heldout_fraction": 0.2},
    "network": {
        "kind": "ddpm_unet",
        "base_channels": 8,
        "channel_multipliers": [1],
        "blocks_per_level": 1,
        "attention_sizes": [8],
    },
    "path": {"kind": "vp_cosine"},
    "train": {
        "images": 4_800,
        "batch_size": 32,
        "num_workers": 2,
        "times": {"kind": "loss_second_moment", "intervals": 10},  # whose state must survive, too
        "checkpoint_images": 2_400,
        "log_images": 200,
    },
    "sample": {"images": 60, "chunk_images": 5, "sampler": {"kind": "ddim", "steps": 20}},
    "evaluate": {"extractor": {"kind": "classifier"}},
    "register": {"model_name": "tiny"},
}


# Ray Train imports Ray Data, which warns of its own settings.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected(Config.model_validate(CONFIG).cluster) as joined:
        yield joined


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = prepared(cluster, tmp_path_factory.mktemp("undisturbed"))
    for stage in (Train(), Sample()):
        run.results[stage.name] = stage.finish(run)
    return run


def prepared(cluster: Cluster, output: Path, **train: object) -> Run:
    settings = CONFIG | {"output": str(output), "train": CONFIG["train"] | train}  # type: ignore[operator]
    run = Run(Config.model_validate(settings), Terminal(), cluster)
    run.results["prepare"] = Prepare().finish(run)
    return run


def kill_process(name: str) -> None:
    """SIGKILL to the first process below this one that Ray says runs `name`."""
    pids = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.read_bytes().startswith(f"ray::{name}".encode()) and os.getpid() in ancestors(int(path.parent.name))
    ]
    assert pids, f"no {name} is alive"
    os.kill(pids[0], signal.SIGKILL)


def kill_in(stage: Train | Sample, run: Run, name: str, when: Callable[[], bool]) -> Result:
    """Finishes the stage although a process is killed as soon as `when` holds."""
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(_kill_when, when, name)
        result = stage.finish(run)
        killed.result()
    return result


def _kill_when(condition: Callable[[], bool], name: str) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.01)
    kill_process(name)


def test_damage_and_a_killed_worker_change_neither_weights_nor_curve(
    undisturbed: Run, cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a power cut may leave: the last checkpoint unreadable, another half written, the last line, too.
    Then, while the training goes on from the checkpoint before, one of its workers dies.
    """
    run, stage = prepared(cluster, tmp_path), Train()
    folder, expected = stage.folder(run), undisturbed.results["train"]
    shutil.copytree(expected.folder, folder)
    (folder / "done.json").unlink()
    older, newest = sorted((folder / CHECKPOINTS).glob("images-*"))
    (newest / OPTIMIZER).write_bytes(b"")
    (folder / CHECKPOINTS / ".writing-images-000000009999").mkdir()
    lines = (folder / CURVE).read_text().splitlines(keepends=True)
    (folder / CURVE).write_text("".join(lines[:5]) + lines[5][:20])

    result = kill_in(stage, run, "RayTrainWorker", lambda: read_curve(folder)[-1]["images"] > int(older.name[7:]))
    assert not list((folder / CHECKPOINTS).glob(".writing-*"))
    assert f"{newest}" in capsys.readouterr().out
    assert result.facts["weights_digest"] == expected.facts["weights_digest"]
    assert losses(folder) == losses(expected.folder)


def test_an_actor_killed_in_sampling_changes_no_image(undisturbed: Run, cluster: Cluster, tmp_path: Path) -> None:
    run = prepared(cluster, tmp_path)
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
    """The worker itself, without Ray Train around it."""
    run = prepared(cluster, tmp_path, learning_rate=1e18, num_workers=1)
    with recorded(tmp_path, 60, lambda _: None) as curve:
        job = TrainJob(
            recipe=recipe_of(run.config),
            cache="host",
            order=Permutation(),
            shard_cache=ShardCacheConfig(),
            threads=1,
            index_folder=str(run.results["prepare"].folder),
            timeout_s=60,
            folder=str(tmp_path),
            identity={},
            curve=curve,
        )
        Worker(job, torch.device("cpu")).run()
    last = read_curve(tmp_path)[-1]
    assert last["not_finite"] is True
    assert last["images"] < run.config.train.checkpoint_images
    assert last["skipped_steps"] >= run.config.train.max_skipped_steps


def test_what_a_task_raises_on_purpose_comes_out_as_it_was(cluster: Cluster) -> None:  # noqa: ARG001
    def refuse() -> None:
        raise DataError("restore the shard")

    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"^restore the shard$"):
        result_of(ray.remote(refuse).remote())
    with pytest.raises(PipelineError, match=r"a worker process failed: .*No space left.*the same command goes on"):
        result_of(ray.remote(fail).remote())


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(point["images"], point["loss"]) for point in read_curve(folder)]
