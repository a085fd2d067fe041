"""What Prometheus scrapes: the last point of the curve, over HTTP from a real node of Ray."""

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import ray

from model import DDIM
from pipeline.clusters.cluster import Cluster
from pipeline.clusters.fan_out import images_on_actors
from pipeline.clusters.gauges import Gauges
from pipeline.runfile.config import Config, SampleConfig
from pipeline.sampling.chunks import Chunks, ChunkTask
from pipeline.scoring.evaluate import export_score
from pipeline.stage import Run
from pipeline.terminal import Terminal
from pipeline.training.curve import read_curve

from .trainings import prepared, train_in

CONFIG: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": {"kind": "digits"}, "image_size": 8, "channels": 1, "heldout_fraction": 0.2},
    "network": {"kind": "ddpm_unet", "base_channels": 8, "channel_multipliers": [1], "attention_sizes": []},
    "path": {"kind": "vp_cosine"},
    "train": {"images": 320, "batch_size": 32, "log_images": 96, "preview_images": 0},
    "sample": {"images": 2, "sampler": {"kind": "ddim"}},
    "evaluate": {"extractor": {"kind": "classifier"}},
    "register": {"model_name": "tiny"},
}

# Ray Train imports Ray Data, which warns of its own settings.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def port() -> Iterator[int]:
    """Where the one node of a cluster exports its metrics."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    ray.init(
        "local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 1024**2,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    yield port
    ray.shutdown()


def watched(work: str) -> set[str]:
    """Gauges of this work that dashboard and alerts look at."""
    names = (Path(__file__).parents[1] / "infra" / "exported_metrics.txt").read_text(encoding="utf-8")
    return set(re.findall(rf"^ray_pipeline_{work}_(\w+)$", names, re.MULTILINE))


def scraped(port: int, run: str, work: str = "train") -> dict[str, float]:
    """The gauges of this work on this run, by name."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:  # nobody listens yet
        return {}
    lines = re.findall(rf'^ray_pipeline_{work}_(\w+)\{{.*run="{run}".*\}} (\S+)$', text, re.MULTILINE)
    return {name: float(value) for name, value in lines}


def test_a_scrape_finds_the_numbers_of_the_last_point(port: int, tmp_path: Path) -> None:
    folder = tmp_path / "train-0123456789ab"
    train_in(folder, prepared(CONFIG, tmp_path, None))
    last = read_curve(folder)[-1]
    deadline = time.monotonic() + 90
    while (found := scraped(port, folder.name)).get("images") != last["images"]:
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    assert {"loss", "images_per_s", "gradient_norm", "learning_rate", "skipped_steps"} < set(found)
    assert watched("train") <= set(found)
    assert found == pytest.approx(last)


def worker() -> type:
    """A class that is sent to the workers as it is: they need not find this file."""

    class Worker:
        def __init__(self, threads: int) -> None: ...

        def ready(self) -> None: ...

        def work(self, task: ChunkTask) -> None: ...

    return Worker


def test_a_scrape_finds_how_far_drawing_is_and_the_score(port: int, tmp_path: Path) -> None:
    config = Config.model_validate({**CONFIG, "output": str(tmp_path)})
    run = Run(config, Terminal(), cluster=Cluster(config.cluster, 1, 0))
    chunks = Chunks(tmp_path, SampleConfig(images=10, chunk_images=4, sampler=DDIM()), "cpu")
    tasks = [ChunkTask(chunks, 1), ChunkTask(chunks, 2)]  # of which the last adds two images only
    with images_on_actors(run, "sample", "work", tasks, 10, worker()) as done:
        assert sum(task.images for task in done) == 6
        export_score("tiny", {"primary_score": "fid", "scores": {"fid": 2.5}})
        deadline = time.monotonic() + 90
        while (found := scraped(port, "tiny", "stage")).get("images") != 10 or not scraped(port, "tiny", "evaluate"):
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
    assert watched("stage") == set(found)
    assert found["total_images"] == 10
    assert scraped(port, "tiny", "evaluate") == {"score": 2.5}
    assert watched("evaluate") == {"score"}


def test_a_gauge_that_fails_is_told_of_once_and_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    gauges = Gauges("train", run=3)  # type: ignore[arg-type]  # which Ray refuses
    for _ in range(2):
        gauges.set({"loss": 1.0})
    assert caplog.text.count("train goes on without metrics for Prometheus") == 1
