"""Real Ray clusters on this machine, as `ray start` makes them, with or without a dashboard that takes jobs."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import ray

from .servers import free_port
from .waiting import wait_until

_BIN = Path(sys.executable).parent
_START_S = 180
_STORE = f"--object-store-memory={100 * 1024**2}"
TOKEN = "5e" * 32


@dataclass(frozen=True)
class Head:
    """A head node and the environment of those who may use it."""

    url: str
    """Of its dashboard."""
    gcs: str
    """HOST:PORT that nodes join."""
    environment: Mapping[str, str]
    """With its token, where it wants one."""
    nodes_environment: Mapping[str, str]
    folder: Path
    stop: Callable[[], None]
    """Ends it before the block does."""


@contextmanager
def head(folder: Path, mode: str) -> Iterator[Head]:
    """With a dashboard. mode: token or disabled.

    The dashboard is started after the node, with what jobs need: Ray gives a node 30 s to start, which a busy machine
    needs for the node alone.
    """
    home = folder / "home"
    (home / ".ray").mkdir(parents=True)
    if mode == "token":
        (home / ".ray" / "auth_token").write_text(TOKEN)
    environment, dashboard = environment_of(home), f"127.0.0.1:{free_port()}"
    serving = {**environment, "RAY_AUTH_MODE": mode}
    with ExitStack() as stack:
        gcs, session = stack.enter_context(_head_node(folder, serving))
        command = _dashboard(session, gcs, dashboard, serving)
        stack.enter_context(_process(command, serving, folder / "dashboard.log"))
        _wait(f"http://{dashboard}", mode)
        yield Head(f"http://{dashboard}", gcs, environment, serving, folder, stack.close)


@contextmanager
def head_without_dashboard(home: Path, mode: str) -> Iterator[str]:
    """Of this home, in which a token may lie; gives HOST:PORT that drivers join. mode: token or disabled."""
    with _head_node(home, {**environment_of(home), "RAY_AUTH_MODE": mode}) as (gcs, _):
        yield gcs


@contextmanager
def _head_node(folder: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """`ray start --head`; gives HOST:PORT and the folder of its session. folder: for the log."""
    gcs = f"127.0.0.1:{free_port()}"
    # Of a short name, since the path of a socket has 107 bytes at most.
    with TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as session:
        options = (f"--port={gcs.rpartition(':')[2]}", "--include-dashboard=false", f"--temp-dir={session}")
        with _started(folder, environment, "--head", *options):
            yield gcs, Path(session)


@contextmanager
def another_node(head: Head) -> Iterator[None]:
    """`ray start --address`: while it lasts the cluster has two nodes, which the dashboard knows of."""
    with _started(head.folder, head.nodes_environment, f"--address={head.gcs}"):
        wait_until(lambda: _nodes(head) == 2, within_s=_START_S)
        yield


def environment_of(home: Path) -> dict[str, str]:
    """Of a process with this home, in which nothing says which cluster, and `python` is this one."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    return {**inherited, "HOME": str(home), "PATH": f"{_BIN}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def _started(folder: Path, environment: Mapping[str, str], *options: str) -> Iterator[None]:
    command = [str(_BIN / "ray"), "start", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=2", _STORE]
    agent = f"--dashboard-agent-listen-port={free_port()}"
    log = folder / f"node-{free_port()}.log"
    with _process([*command, agent, *options], environment, log) as process:
        deadline = time.monotonic() + _START_S
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, "the node did not start"
            time.sleep(0.2)
        yield


@contextmanager
def _process(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with all that it starts, which ends with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        for each in started:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.kill()
        process.wait()


def _dashboard(temporary: Path, gcs: str, address: str, environment: Mapping[str, str]) -> list[str]:
    session = (temporary / "session_latest").resolve()
    cluster_id = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from ray._raylet import GcsClient; print(GcsClient(address='{gcs}').cluster_id.hex())",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()
    host, _, port = address.rpartition(":")
    return [
        sys.executable,
        str(Path(ray.__file__).parent / "dashboard" / "dashboard.py"),
        f"--host={host}",
        f"--port={port}",
        "--port-retries=0",
        f"--temp-dir={temporary}",
        f"--log-dir={session / 'logs'}",
        f"--session-dir={session}",
        f"--gcs-address={gcs}",
        f"--cluster-id-hex={cluster_id}",
        "--node-ip-address=127.0.0.1",
        "--modules-to-load=JobHead,NodeHead",
    ]


def _nodes(head: Head) -> int:
    """How many the dashboard knows of, dead ones among them."""
    return len(_answer(f"{head.url}/nodes?view=summary", head.nodes_environment["RAY_AUTH_MODE"])["data"]["summary"])


def _wait(url: str, mode: str) -> None:
    """Until the dashboard answers."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            _answer(f"{url}/api/jobs/", mode)
            return
        except (OSError, ValueError):
            assert time.monotonic() < deadline, "the dashboard did not start"
            time.sleep(0.5)


def _answer(url: str, mode: str) -> Any:
    headers = {"Authorization": f"Bearer {TOKEN}"} if mode == "token" else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        return json.load(answer)
