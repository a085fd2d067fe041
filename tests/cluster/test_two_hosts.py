"""A job on two hosts: submitted from a third, with MLflow on a fourth; a link is cut, and another host comes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import pytest
import ray
import requests

from pipeline.clusters.cluster import Cluster
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import dump
from pipeline.tracking.mlflow_store import connect
from pipeline.training.curve import read_curve

from ..pipeline.trainings import TINY, losses, paced, prepared, train_here
from .hosts import INTERFACE, Host, Network, network, why_not

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray Train imports Ray Data, which warns
]
PYTHON = Path(sys.executable)
TRAIN = {
    "images": 25_600,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "log_images": 320,
    "checkpoint_images": 3_200,
    "preview_images": 0,
}
CONFIG = TINY | {
    "network": TINY["network"] | {"channel_multipliers": [1, 2], "attention_sizes": [4], "dropout": 0.0},
    "train": TRAIN | {"num_workers": [1, 2]},
    "sample": {"images": 6_000, "chunk_images": 100, "sampler": {"kind": "ddim", "steps": 20}},
    "evaluate": {"extractor": {"kind": "classifier", "images": 2_000, "width": 4, "features": 16}},
    "cluster": {"resize_s": 2, "max_failures": 20, "timeout_s": 120, "num_samplers": 2, "address": "auto"},
    "register": {"model_name": "two-hosts"},
}
TOLERANCE = 1e-5  # relative: another number of workers adds up in another order
WORKER, DRAWER = "RayTrainWorker", "Drawer"
UP_S, WAIT_S = 120, 400
_SOON_DEAD = {  # a host that says nothing for about 16 s is given up; Ray itself waits for more than a minute
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}


def wait_until(condition: Callable[[], bool], what: str, within_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s"
        time.sleep(0.2)


@dataclass
class Site:
    """What stands before a job comes: hosts with Ray, whose cluster asks for a token, and one with MLflow."""

    network: Network
    folder: Path
    environment: Mapping[str, str]
    head: Host
    tracking: Host

    @property
    def tracking_uri(self) -> str:
        return f"http://{self.tracking.address}:5000"

    @property
    def dashboard(self) -> str:
        return f"http://{self.head.address}:8265"

    def start_ray(self, host: Host, *options: str) -> None:
        """One of its nodes, of one CPU."""
        resources = ("--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block")
        command = (str(PYTHON.with_name("ray")), "start", f"--node-ip-address={host.address}", *resources, *options)
        log = self.folder / f"{host.name}.log"
        host.start(*command, log=log, environment=self.environment)
        wait_until(lambda: "Ray runtime started" in log.read_text(), f"Ray on {host.name}", UP_S)

    def join(self) -> Host:
        """One host more in the cluster."""
        host = self.network.host()
        self.start_ray(host, f"--address={self.head.address}:6379")
        return host


@pytest.fixture
def undisturbed(tmp_path: Path) -> list[tuple[int, float]]:
    """The losses of the same training by one process."""
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 1024**2)
    try:
        cluster = Cluster(Config.model_validate(CONFIG).cluster, 1, 0)
        found = losses(train_here(prepared(CONFIG, tmp_path / "here", cluster, num_workers=1)).folder)
    finally:
        ray.shutdown()
    assert len(found) == TRAIN["images"] // TRAIN["log_images"]
    return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    token = tmp_path / "home" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("7a" * 32)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = inherited | _SOON_DEAD | {"HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "token"}
    environment["PATH"] = f"{PYTHON.parent}:{environment['PATH']}"  # the job's `python`
    environment["GLOO_SOCKET_IFNAME"] = INTERFACE  # it would take that of the machine's name, which is none of theirs
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # which takes processes that nobody asks for here
    disks = tmp_path / "disks"
    disks.mkdir()
    with network(disks) as made:
        site = Site(made, tmp_path, environment, made.host(), made.host())
        site.start_ray(site.head, "--head", "--port=6379", f"--dashboard-host={site.head.address}")
        store = f"sqlite:///{tmp_path}/mlflow.db"
        server = ("server", "--host", site.tracking.address, "--port", "5000", "--backend-store-uri", store)
        options = ("--artifacts-destination", str(tmp_path / "artifacts"), "--workers", "1")
        allowed = ("--allowed-hosts", f"{site.tracking.address}:5000")
        command = (str(PYTHON.with_name("mlflow")), *server, *options, *allowed)
        site.tracking.start(*command, log=tmp_path / "mlflow.log", environment=environment)
        wait_until(lambda: answers(f"{site.dashboard}/api/version"), "Ray's dashboard", UP_S)
        wait_until(lambda: answers(f"{site.tracking_uri}/health"), "MLflow's server", UP_S)
        yield site


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).status_code < 500
    except requests.RequestException:
        return False


@contextmanager
def submitted(site: Site, run_file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`submit --follow` from outside all hosts; what it prints is in `job.log`."""
    command = [sys.executable, "-m", "pipeline", "submit", str(run_file), "--address", site.dashboard, "--follow"]
    log = site.folder / "job.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=dict(site.environment), stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            print(log.read_text())


def seen_drawing(hosts: list[Host], over: Event, seen: set[str]) -> None:
    """Writes down which hosts draw images, until it is over."""
    while not over.wait(0.2):
        seen.update(host.name for host in hosts if host.runs(DRAWER))


def test_a_job_whose_host_is_cut_off_goes_on_and_takes_in_another(
    undisturbed: list[tuple[int, float]], site: Site
) -> None:
    expected = undisturbed
    lost = site.join()
    output = site.folder / "shared" / "outputs"
    output.mkdir(parents=True)
    config = Config.model_validate(
        CONFIG
        | {"output": str(output), "tracking": {"uri": site.tracking_uri}}
        | {"cluster": CONFIG["cluster"] | {"shared": [str(output.parent)]}}
    )
    run_file = site.folder / "two-hosts.yaml"
    run_file.write_text(dump(config))

    def points() -> int:
        return sum(len(read_curve(folder)) for folder in output.glob("stages/train-*"))

    over, drawn_on = Event(), set[str]()
    with submitted(site, run_file) as job, ExitStack() as stack:

        def wait_for(condition: Callable[[], bool], what: str) -> None:
            def holds() -> bool:
                assert job.poll() is None, f"{what}: the job is over"
                return condition()

            wait_until(holds, what)

        stack.callback(over.set)
        stack.enter_context(paced("CurveBuffer", over))
        wait_for(lambda: points() > 12 and lost.runs(WORKER) and site.head.runs(WORKER), "training on both hosts")
        lost.cut()
        at_cut = points()
        wait_for(lambda: points() > at_cut + 10, "training on one host")
        new = site.join()
        wait_for(lambda: new.runs(WORKER), "training on the new host")
        with_new = points()
        assert with_new < len(expected), "it was over before the new host came"
        wait_for(lambda: points() > with_new + 2, "training on both again")
        over.set()
        ended = Event()
        watching = Thread(target=seen_drawing, args=([site.head, new], ended, drawn_on))
        watching.start()
        try:
            assert job.wait(timeout=WAIT_S) == 0
        finally:
            ended.set()
            watching.join()
    (training,) = output.glob("stages/train-*")
    found = losses(training)
    assert [images for images, _ in found] == [images for images, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=TOLERANCE)
    assert drawn_on == {site.head.name, new.name}
    client = connect(site.tracking_uri)
    (version,) = client.search_model_versions("name = 'two-hosts'")
    assert client.get_registered_model("two-hosts").aliases == {
        "champion": version.version,
        "candidate": version.version,
    }
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert len(client.search_runs(experiments)) == 1
