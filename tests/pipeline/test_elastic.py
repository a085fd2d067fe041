"""Workers are a resource: other numbers of them, and those that come, go and die, leave the same training."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as Nodes

from pipeline.clusters.cluster import Cluster
from pipeline.runfile.config import Config
from pipeline.training.checkpoint import CHECKPOINTS, images_of
from pipeline.training.curve import read_curve
from pipeline.training.train import Train

from .trainings import TINY, kill, losses, paced, prepared, processes_of, train_here

CONFIG = TINY | {
    "network": TINY["network"] | {"channel_multipliers": [1, 2], "attention_sizes": [4], "dropout": 0.0},
    "train": {
        "images": 1_600,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "log_images": 32,
        "checkpoint_images": 640,
        "preview_images": 0,
    },
    "sample": {"images": 2, "sampler": {"kind": "ddim"}},
    "cluster": {"resize_s": 2, "max_failures": 20, "timeout_s": 120},
}
LONG = {"images": 20_480, "log_images": 320, "checkpoint_images": 6_400}
TOLERANCE = 1e-5  # relative: another number of workers adds up in another order
WAIT_S = 400
WORKER = "RayTrainWorker"

# Ray Train imports Ray Data, which warns of its own settings.
pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def assert_same_curve(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    assert [images for images, _ in found] == [images for images, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=TOLERANCE)


@pytest.fixture
def three_cpus() -> Iterator[Cluster]:
    config = Config.model_validate(CONFIG).cluster
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 1024**2)
    yield Cluster(config, 3, 0)
    ray.shutdown()


@pytest.mark.slow
def test_one_two_and_three_workers_have_the_same_losses_over_50_steps(three_cpus: Cluster, tmp_path: Path) -> None:
    """Three share a batch of 32 as 10, 11 and 11."""
    expected = losses(train_here(prepared(CONFIG, tmp_path / "here", three_cpus)).folder)
    assert len(expected) == 50
    for workers in (1, 2, 3):
        run = prepared(CONFIG, tmp_path / str(workers), three_cpus, num_workers=workers)
        Train().finish(run)
        assert_same_curve(losses(Train().folder(run)), expected)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A cluster of one node of one CPU, to which others can be added."""
    memory = {"object_store_memory": 100 * 1024**2}
    # nodes are added from a thread, where no signal handler can be set
    cluster = Nodes(
        initialize_head=True,
        shutdown_at_exit=False,
        head_node_args={"num_cpus": 1, "include_dashboard": False, **memory},
    )
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def drain(node: Any) -> None:
    """What a cloud says of a machine that it is about to take back."""
    from ray._raylet import GcsClient

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    deadline_ms = int((time.time() + 120) * 1000)
    accepted, why = client.drain_node(node.node_id, 2, "taken back", deadline_ms)  # 2: preemption
    assert accepted, why


class Elastic:
    """A training on as many nodes as there are, which events of a script disturb."""

    def __init__(self, nodes: Nodes, output: Path) -> None:
        self.nodes = nodes
        cluster = Cluster(Config.model_validate(CONFIG).cluster, 1, 0)
        self.expected = train_here(prepared(CONFIG, output / "here", cluster, **LONG))
        self.run = prepared(CONFIG, output / "elastic", cluster, **LONG, num_workers=[1, 2])
        self.folder = Train().folder(self.run)
        self.over = Event()

    def points(self) -> int:
        return len(read_curve(self.folder))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, "the condition was never met"
            assert not self.over.wait(0.1), "it was over before"

    def wait_for_points(self, more: int) -> None:
        seen = self.points()
        self.wait_until(lambda: self.points() > seen + more)

    def grow(self) -> Any:
        """A second node, and its worker at work. -> the node."""
        self.wait_for_points(1)
        node = self.nodes.add_node(num_cpus=1, object_store_memory=100 * 1024**2)
        self.wait_until(lambda: len(processes_of(WORKER)) == 2)
        self.wait_for_points(1)
        return node

    def lose(self, node: Any) -> None:
        """Kills its raylet, while there is still something to train."""
        self.nodes.remove_node(node, allow_graceful=False)
        assert self.points() < LONG["images"] // LONG["log_images"], "it was over before the node had gone"

    def made_just_in_time(self) -> list[Path]:
        checkpoints = (self.folder / CHECKPOINTS).glob("images-*")
        return [path for path in checkpoints if images_of(path) % LONG["checkpoint_images"]]

    def finish_although(self, script: Callable[[], None]) -> None:
        with paced("CurveBuffer", self.over), ThreadPoolExecutor(1) as pool:  # Ray Train wants the main thread
            disturbed = pool.submit(script)
            try:
                Train().finish(self.run)
            finally:
                self.over.set()
            disturbed.result(timeout=WAIT_S)
        assert_same_curve(losses(self.folder), losses(self.expected.folder))


def test_workers_and_nodes_that_come_go_and_die_leave_the_same_training(nodes: Nodes, tmp_path: Path) -> None:
    """From one worker to two, as a node is added; one of them is killed; the node's going is announced, so that a
    checkpoint is made just in time; its raylet is killed, and one worker goes on from there.
    """
    training = Elastic(nodes, tmp_path)

    def come_and_go() -> None:
        node = training.grow()
        kill(WORKER)
        training.wait_for_points(1)
        drain(node)
        training.wait_until(lambda: bool(training.made_just_in_time()))
        training.lose(node)

    training.finish_although(come_and_go)


@pytest.mark.slow
def test_a_node_that_is_lost_without_notice_leaves_the_same_training(nodes: Nodes, tmp_path: Path) -> None:
    training = Elastic(nodes, tmp_path)
    training.finish_although(lambda: training.lose(training.grow()))
