"""Whatever waits on a cluster gives up in the end, and says what waited, for what, how long, and which key says so."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train.v2._internal.execution.controller.state import InitializingState, RunningState

from pipeline.clusters.cluster import Cluster, connected
from pipeline.clusters.fan_out import actor_pool, awaited, fan_out
from pipeline.data.prepare import Prepare
from pipeline.errors import ClusterError, DataError, PipelineError, TrainingError
from pipeline.runfile.config import ClusterConfig, Config
from pipeline.runfile.configfile import load
from pipeline.stage import Run
from pipeline.terminal import Terminal
from pipeline.training.curve import recorded
from pipeline.training.curve_buffer import CurveBuffer
from pipeline.training.start_limit import StartLimit
from pipeline.training.train import Train

from .trainings import worker_of

RUNS = Path(__file__).parents[2] / "pipeline/runs"

# Ray Train imports Ray Data, which warns of its own settings.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected(ClusterConfig()) as joined:
        yield joined


def sleeper() -> type:
    """A class that is sent to the workers as it is: they need not find this file."""

    class Sleeper:
        """Sleeps for as many seconds as a task says; is a damaged model where it `refuses`."""

        def __init__(self, refuses: bool = False) -> None:
            if refuses:
                raise DataError("restore the weights")

        def ready(self) -> None: ...

        def sleep(self, seconds: float) -> None:
            time.sleep(seconds)

    return Sleeper


def with_settings(cluster: Cluster, **settings: Any) -> Cluster:
    return replace(cluster, config=cluster.config.model_copy(update=settings))


def test_actors_for_which_there_is_no_room_are_given_up(cluster: Cluster) -> None:
    shrunk = with_settings(cluster, cpus_per_worker=64, timeout_s=1.0)
    says = r"Sleeper: 0 of 2 processes have started after 1 s \(cluster\.timeout_s\); has the cluster lost nodes"
    with pytest.raises(ClusterError, match=says), actor_pool(shrunk, (2, 2), sleeper()):
        pass


def test_what_making_an_actor_raises_is_told(cluster: Cluster) -> None:
    with (
        pytest.raises(PipelineError, match=r"a worker process failed: .*DataError: restore the weights;"),
        actor_pool(cluster, (1, 1), sleeper(), True),
    ):
        pass


def test_no_actors_are_ready_at_once(cluster: Cluster) -> None:
    with actor_pool(cluster, (0, 0), sleeper()) as pool:
        assert list(fan_out(pool, [], "sleep", "sample", 0.1)) == []


def test_a_task_that_hangs_fails_the_stage_after_the_others_are_done(cluster: Cluster) -> None:
    done = []

    def draw() -> None:
        with actor_pool(cluster, (2, 2), sleeper()) as pool:
            done.extend(fan_out(pool, [0.01, 600.0, 0.02], "sleep", "sample", 2))

    says = (
        r"sample: none of 2 processes has finished a task for 2 s \(cluster\.task_timeout_s\); .*what is done is kept"
    )
    with pytest.raises(PipelineError, match=says):
        draw()
    assert sorted(done) == [0.01, 0.02]


def test_it_is_the_time_without_a_finished_task_that_counts(cluster: Cluster) -> None:
    tasks = [0.4] * 8
    with actor_pool(cluster, (1, 1), sleeper()) as pool:
        assert list(fan_out(pool, tasks, "sleep", "sample", 2)) == tasks  # 3.2 s together


@pytest.mark.usefixtures("cluster")
def test_one_piece_of_work_that_hangs_is_named() -> None:
    training = ray.remote(num_cpus=1)(lambda: time.sleep(600)).remote()
    says = r"reference: the classifier has not been trained for 1 s \(cluster\.task_timeout_s\)"
    with pytest.raises(PipelineError, match=says):
        awaited(training, "reference: the classifier has not been trained", 1)
    ray.cancel(training, force=True)
    assert awaited(ray.put(7), "nothing", 1) == 7


@pytest.fixture(scope="module")
def run(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    overrides = [f"output={tmp_path_factory.mktemp('out')}", "cluster.timeout_s=3", "cluster.max_failures=1"]
    run = Run(load(RUNS / "digits.yaml", overrides, Config), Terminal(), with_settings(cluster, timeout_s=3))
    run.results["prepare"] = Prepare().finish(run)
    return run


def hang(buffer: Any) -> None:
    """The actor is busy with this from now on, and does not come to what it is asked next."""
    buffer.__ray_call__.remote(lambda _: time.sleep(600))


def record(folder: Path, problem: Exception | None = None) -> None:
    """A training whose curve hangs, and which has a problem of its own, perhaps."""
    with recorded(folder, 1, lambda _: None) as buffer:
        hang(buffer)
        if problem is not None:
            raise problem


@pytest.mark.usefixtures("cluster")
def test_a_curve_whose_last_points_do_not_come_is_an_error_that_says_where_they_are(tmp_path: Path) -> None:
    says = r"metrics\.jsonl: the last points of the curve have not come for 1 s \(cluster\.timeout_s\); they are in the"
    with pytest.raises(TrainingError, match=says):
        record(tmp_path)
    with pytest.raises(DataError, match="restore the shard"):
        record(tmp_path, DataError("restore the shard"))


def test_a_worker_whose_points_nobody_takes_gives_up(run: Run, tmp_path: Path) -> None:
    buffer: Any = ray.remote(num_cpus=0)(CurveBuffer).remote()
    worker = worker_of(run, tmp_path, buffer, timeout_s=1)
    hang(buffer)
    says = (
        r"worker 0 on .*: nobody has taken the points of the curve for 1 s \(cluster\.timeout_s\), after 0 images; is"
    )
    with pytest.raises(TrainingError, match=says):
        worker._say("a line")
    ray.kill(buffer)


def test_training_without_workers_ends_after_its_time_and_not_before() -> None:
    limit = StartLimit(2, 0.3)
    limit.after_controller_state_update(InitializingState(), InitializingState())
    limit.after_controller_state_update(InitializingState(), RunningState())
    time.sleep(0.4)
    limit.after_controller_state_update(RunningState(), InitializingState())
    time.sleep(0.4)
    with pytest.raises(ClusterError, match=r"train: 2 workers have not started for 0.3 s \(cluster\.timeout_s\); has"):
        limit.after_controller_state_update(InitializingState(), InitializingState())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, (2, 3)], ids=["fixed", "range"])
def test_training_for_which_there_is_no_room_any_more_is_given_up(run: Run, cluster: Cluster, workers: Any) -> None:
    """Other work holds the cluster; a range of workers would wait for ever."""
    config = run.config.model_copy(update={"train": run.config.train.model_copy(update={"num_workers": workers})})
    waiting = Run(config, Terminal(), run.cluster, results=dict(run.results))
    everything = with_settings(cluster, cpus_per_worker=int(cluster.cpus), timeout_s=60.0)
    with (
        actor_pool(everything, (1, 1), sleeper()),
        pytest.raises(ClusterError, match=r"^train: 2 workers have not started for 3 s \(cluster\.timeout_s\)"),
    ):
        Train().finish(waiting)
