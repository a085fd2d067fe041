"""The number of workers is a resource: other numbers, nodes that come and nodes that go leave the same training."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as Nodes

from pipeline.checkpoint import CHECKPOINTS, verified_manifest
from pipeline.cluster import Cluster
from pipeline.config import Config
from pipeline.curve import read_curve
from pipeline.prepare import Prepare
from pipeline.stage import Run
from pipeline.terminal import Terminal
from pipeline.train import Train

from .processes import ancestors

CONFIG: dict[str, Any] = {
    "name": "elastic",
    "data": {"source": {"kind": "digits"}, "image_size": 8, "channels": 1, "heldout_fraction": 0.2},
    "network": {
        "kind": "ddpm_unet",
        "base_channels": 8,
        "channel_multipliers": [1, 2],
        "blocks_per_level": 1,
        "attention_sizes": [4],
        "dropout": 0.0,
    },
    "path": {"kind": "vp_cosine"},
    "train": {"images": 1_600, "batch_size": 32, "learning_rate": 1e-3, "log_images": 32, "checkpoint_images": 640},
    "sample": {"images": 2, "sampler": {"kind": "ddim"}},
    "evaluate": {"extractor": {"kind": "classifier"}},
    "register": {"model_name": "elastic"},
    "cluster": {"resize_s": 2, "max_failures": 20},
}
TOLERANCE = 1e-5  # relative: another number of workers adds up in another order
WAIT_S = 400

# Ray Train imports Ray Data, which warns of its own settings.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def prepared(output: Path, cluster: Cluster, **train: Any) -> Run:
    settings = CONFIG | {"output": str(output), "train": CONFIG["train"] | train}
    run = Run(Config.model_validate(settings), Terminal(), cluster)
    run.results["prepare"] = Prepare().finish(run)
    return run


def losses(run: Run) -> list[tuple[int, float]]:
    return [(point["images"], point["loss"]) for point in read_curve(Train().folder(run))]


def assert_same_curve(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    assert [images for images, _ in found] == [images for images, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=TOLERANCE)


@pytest.fixture
def three_cpus() -> Iterator[Cluster]:
    config = Config.model_validate(CONFIG).cluster
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 1024**2)
    yield Cluster(config, 3, 0)
    ray.shutdown()


def test_one_two_and_three_workers_have_the_same_losses_over_50_steps(three_cpus: Cluster, tmp_path: Path) -> None:
    """Three share a batch of 32 as 10, 11 and 11."""
    curves = []
    for workers in (1, 2, 3):
        run = prepared(tmp_path / str(workers), three_cpus, num_workers=workers)
        Train().finish(run)
        curves.append(losses(run))
    assert len(curves[0]) == 50
    assert_same_curve(curves[1], curves[0])
    assert_same_curve(curves[2], curves[0])


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


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.1)


def workers() -> int:
    """Training workers that are alive below this process."""
    me, found = os.getpid(), 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += path.read_bytes().startswith(b"ray::RayTrainWorker") and me in ancestors(int(path.parent.name))
        except OSError:  # it has just ended
            continue
    return found


def drain(node: Any) -> None:
    """What a cloud says of a machine that it is about to take back."""
    from ray._raylet import GcsClient

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    deadline_ms = int((time.time() + 120) * 1000)
    accepted, why = client.drain_node(node.node_id, 2, "taken back", deadline_ms)  # 2: preemption
    assert accepted, why


def test_nodes_that_come_and_go_leave_the_same_training(nodes: Nodes, tmp_path: Path) -> None:
    """From one worker to two, as a node is added; the node's going is announced, so a checkpoint is made just in time,
    the only one there is; its raylet is killed, and one worker goes on from there.
    """
    cluster = Cluster(Config.model_validate(CONFIG).cluster, 1, 0)
    long = {"images": 60_000, "log_images": 320, "checkpoint_images": 10**9}
    alone = prepared(tmp_path / "alone", cluster, **long)
    Train().finish(alone)
    run = prepared(tmp_path / "elastic", cluster, **long, num_workers=[1, 2])
    folder = Train().folder(run)

    def come_and_go() -> int:
        wait_until(lambda: len(read_curve(folder)) > 3)
        node = nodes.add_node(num_cpus=1, object_store_memory=100 * 1024**2)
        wait_until(lambda: workers() == 2)
        seen = len(read_curve(folder))
        wait_until(lambda: len(read_curve(folder)) > seen + 3)
        drain(node)
        wait_until(lambda: bool(list((folder / CHECKPOINTS).glob("images-*"))))
        (checkpoint,) = (folder / CHECKPOINTS).glob("images-*")
        images_seen: int = verified_manifest(checkpoint)["images_seen"]
        nodes.remove_node(node, allow_graceful=False)
        return images_seen

    with ThreadPoolExecutor(1) as pool:  # Ray Train wants the main thread
        gone = pool.submit(come_and_go)
        Train().finish(run)
        images_seen = gone.result(timeout=WAIT_S)
    assert 0 < images_seen < 60_000
    assert_same_curve(losses(run), losses(alone))
