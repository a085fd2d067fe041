"""An MLflow store of each test module's own, a run in it for each test, and a folder behind a real HTTP server."""

import functools
import gc
import http.server
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster as Nodes

from pipeline.tracking.mlflow_store import connect, resolve_uri
from pipeline.tracking.tracked_run import TrackedRun, open_run


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The database of a fresh store of MLflow, to be copied: its migrations take longer than most tests."""
    folder = tmp_path_factory.mktemp("empty")
    connect(f"sqlite:///{folder}/mlflow.db").search_experiments(max_results=1)
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory, empty_store: bytes) -> str:
    folder = tmp_path_factory.mktemp("store")
    (folder / "mlflow.db").write_bytes(empty_store)
    return resolve_uri(f"sqlite:///{folder}/mlflow.db", Path())


@pytest.fixture
def run(uri: str, tmp_path: Path) -> TrackedRun:
    return open_run(uri, "digits", "night", tmp_path / "run", {}, {})


@pytest.fixture(scope="module")
def head() -> Iterator[Nodes]:
    """A Ray cluster of two CPUs, which commands of `cluster.address=auto` join in a moment."""
    cluster = _started()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
    cluster.shutdown()


def _started() -> Nodes:
    """Ray gives a node 30 s to start, which a busy machine may need: there are three attempts."""
    node = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 1024**2}
    attempts = 3
    while True:
        before = psutil.Process().children(recursive=True)
        try:
            return Nodes(initialize_head=True, shutdown_at_exit=False, head_node_args=node)
        except Exception:  # Ray's own, or none of its own, wherever it was in starting
            attempts -= 1
            if not attempts:
                raise
            _end({child for child in psutil.Process().children(recursive=True) if child not in before})


def _end(left: set[psutil.Process]) -> None:
    """Kills what is left of a node that did not start, and waits for it."""
    for child in left:
        child.kill()
    pids = {child.pid for child in left}
    for process in gc.get_objects():
        if issubclass(type(process), subprocess.Popen) and process.pid in pids:
            process.wait(10)  # which Ray does not: Python would warn of it whenever the object goes


@pytest.fixture
def homes(tmp_path: Path) -> tuple[Path, Path]:
    """One in which some earlier `ray.init` has left a token, and one without."""
    token = tmp_path / "with" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("5e" * 32)
    (tmp_path / "without").mkdir()
    return tmp_path / "with", tmp_path / "without"


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that takes every connection and never answers."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # which whoever asks it in a hurry changes
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@dataclass
class Served:
    """What the server of a test serves, and what it was asked for."""

    folder: Path
    url: str = ""
    requests: list[str] = field(default_factory=list)
    stall: threading.Event = field(default_factory=threading.Event)
    """While it is set, half of a file comes and then nothing."""
    failures: int = 0
    """So many of the next requests end half-way."""
    go_on: threading.Event = field(default_factory=threading.Event)
    """Set at the end, so that no stalled answer outlives the test."""


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, served: Served, *arguments: Any) -> None:
        self.served = served
        super().__init__(*arguments, directory=str(served.folder))

    def copyfile(self, source: Any, outputfile: Any) -> None:
        content = source.read()
        cut = self.served.failures > 0
        self.served.failures -= cut
        outputfile.write(content[: len(content) // 2])
        if self.served.stall.is_set():
            self.served.go_on.wait()
        elif not cut:
            outputfile.write(content[len(content) // 2 :])

    def do_GET(self) -> None:
        self.served.requests.append(self.path)
        super().do_GET()

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A folder and the http URL at which it is served."""
    served = Served(tmp_path / "served")
    served.folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, served)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_port}"
        yield served
        served.go_on.set()
        server.shutdown()
        thread.join()
