"""Real servers of MLflow and PostgreSQL, each in a folder of the test's own, killed without warning at its end."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from .waiting import wait_until

_START_S = 240


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextmanager
def mlflow_server(folder: Path, port: int, store: str | None = None) -> Iterator[str]:
    """The application that `mlflow server` runs, without its command line, which doubles the start. Gives its address.

    Artifacts go through it, into the folder. store: the database's address; by default an SQLite file in the folder.
    """
    store = store or f"sqlite:///{folder}/mlflow.db"
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    stores = {
        "_MLFLOW_SERVER_FILE_STORE": store,
        "_MLFLOW_SERVER_REGISTRY_STORE": store,
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
    }
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), "mlflow.server.fastapi_app:app"]
    with _started(command, folder, environment | stores, lambda: answers(port)):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def mlflow_server_by_its_command(folder: Path, port: int, store: str) -> Iterator[str]:
    """`mlflow server` as an operator starts it, with workers of its own and artifacts through it. Gives its address."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    stores = ["--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with _started([*command, *stores, "--workers", "2"], folder, environment, lambda: answers(port)):
        yield f"http://127.0.0.1:{port}"


def answers(port: int) -> bool:
    """Whether an MLflow server is healthy there."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def postgres_programs() -> Path | None:
    """The folder of initdb and postgres, where Debian's package or a link on the path has them; None: nowhere."""
    found = shutil.which("initdb") or next(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)
    return Path(found).resolve().parent if found else None


@contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """A cluster of its own with one empty database. Gives its address, with user and password.

    It refuses to run as root; there it runs as the user `postgres`, whom the package has made.
    """
    port, password = free_port(), "not-so-secret"
    user: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    with TemporaryDirectory(prefix="postgres-") as name:  # below /tmp: the name of a socket may have 107 bytes
        folder = Path(name)
        (folder / "password").write_text(password)
        if user:
            found = pwd.getpwnam(user["user"])
            for path in (folder, folder / "password"):
                os.chown(path, found.pw_uid, found.pw_gid)
        made = [str(programs / "initdb"), "-D", f"{name}/data", "-U", "mlflow", "-A", "scram-sha-256", "--no-sync"]
        subprocess.run(
            [*made, f"--pwfile={name}/password"], check=True, capture_output=True, timeout=_START_S, cwd=name, **user
        )
        options = ["-c", f"unix_socket_directories={name}", "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        command = [str(programs / "postgres"), "-D", f"{name}/data", "-p", str(port), *options]
        with _started(command, folder, dict(os.environ), lambda: _accepts(port), **user):
            yield f"postgresql+psycopg2://mlflow:{password}@127.0.0.1:{port}/postgres"


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


@contextmanager
def _started(
    command: list[str], folder: Path, environment: dict[str, str], ready: Callable[[], bool], **options: Any
) -> Iterator[None]:
    """The process and all that it starts, from when it is ready until the block ends; its words are in `folder`."""
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder, **options
        )
    try:
        wait_until(lambda: ready() or process.poll() is not None, _START_S)
        assert process.poll() is None, (folder / "server.log").read_text()
        yield
    finally:
        with suppress(ProcessLookupError):  # it did not start
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
