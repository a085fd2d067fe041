"""MLflow on a real PostgreSQL: dumped, dropped, restored; its runs and versions are there again."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

SCRIPTS = Path(__file__).resolve().parents[2] / "infra" / "kubernetes" / "base"
_INSTALLED = [str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
PROGRAMS = os.pathsep.join([*_INSTALLED, os.environ.get("PATH", "")])

pytestmark = [
    pytest.mark.skipif(
        shutil.which("initdb", path=PROGRAMS) is None, reason="PostgreSQL is not here: apt-get install postgresql"
    ),
    # alembic's and SQLAlchemy's own, of MLflow's migrations
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning"),
]


class Database:
    """A server of PostgreSQL on a port of its own, and its environment for libpq's programs."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.uri = f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"
        libpq = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "mlflow", "PGDATABASE": "mlflow"}
        self.environment = {**os.environ, "PATH": PROGRAMS, **libpq}

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*map(str, command)], env=self.environment, capture_output=True, text=True, check=False, timeout=120
        )

    def serve(self, *command: str | Path) -> None:
        """As the user of PostgreSQL's package where this is root, which the server refuses to be."""
        other = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.getuid() == 0 else []
        done = self.run(*other, *command)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def database() -> Iterator[Database]:
    folder = Path("/tmp") / f"postgres-{os.getpid()}"  # which another user can reach, and short for a socket
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = Database(folder, port)
    data, log = folder / "data", folder / "log"
    made.serve("initdb", "--pgdata", data, "--username=mlflow", "--auth=trust", "--no-sync", "--encoding=UTF8")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    made.serve("pg_ctl", "--pgdata", data, "--log", log, "--wait", "--options", options, "start")
    try:
        assert made.run("createdb", "mlflow").returncode == 0
        yield made
    finally:
        made.serve("pg_ctl", "--pgdata", data, "--mode=immediate", "--wait", "stop")
        shutil.rmtree(folder)


def test_a_dropped_database_is_restored_with_runs_versions_and_aliases(database: Database, tmp_path: Path) -> None:
    client = MlflowClient(database.uri)
    experiment = client.create_experiment("nights", artifact_location=tmp_path.as_uri())
    night = client.create_run(experiment, tags={"night": "1"})
    client.log_metric(night.info.run_id, "fid", 12.5, step=3)
    client.create_registered_model("ddpm")
    client.create_model_version("ddpm", source=f"{tmp_path.as_uri()}/model", run_id=night.info.run_id)
    client.set_registered_model_alias("ddpm", "champion", "1")

    dumped = database.run(SCRIPTS / "backup.sh", tmp_path, "2")
    assert dumped.returncode == 0, dumped.stderr
    (dump,) = tmp_path.glob("mlflow-*.dump")
    assert f"{dump}: " in dumped.stdout

    client.set_tag(night.info.run_id, "after", "the dump")
    client.create_registered_model("made-after-the-dump")
    assert database.run("dropdb", "--force", "mlflow").returncode == 0
    assert database.run("createdb", "mlflow").returncode == 0
    restored = database.run(SCRIPTS / "restore.sh", dump)
    assert restored.returncode == 0, restored.stderr

    found = client.get_run(night.info.run_id)
    assert (found.data.metrics, found.data.tags.get("after")) == ({"fid": 12.5}, None)
    champion: ModelVersion = client.get_model_version_by_alias("ddpm", "champion")
    assert (champion.version, champion.run_id) == (1, night.info.run_id)
    assert [model.name for model in client.search_registered_models()] == ["ddpm"]
    client.log_metric(night.info.run_id, "fid", 11.5, step=4)  # sequences count on

    cut = tmp_path / "cut.dump"
    cut.write_bytes(dump.read_bytes()[: dump.stat().st_size // 2])
    refused = database.run(SCRIPTS / "restore.sh", cut)
    assert refused.returncode != 0
    assert client.get_run(night.info.run_id).data.metrics == {"fid": 11.5}  # as it was


def test_the_newest_dumps_are_kept_and_a_failed_one_is_none(database: Database, tmp_path: Path) -> None:
    for day in range(1, 4):
        (tmp_path / f"mlflow-2026010{day}T000000Z.dump").touch()
    (tmp_path / "other-20200101T000000Z.dump").touch()
    assert database.run(SCRIPTS / "backup.sh", tmp_path, "2").returncode == 0
    newest, second = sorted((path.name for path in tmp_path.glob("mlflow-*.dump")), reverse=True)
    assert newest > second == "mlflow-20260103T000000Z.dump"
    assert (tmp_path / "other-20200101T000000Z.dump").exists()

    database.environment["PGDATABASE"] = "nowhere"
    failed = database.run(SCRIPTS / "backup.sh", tmp_path, "2")
    assert failed.returncode != 0
    assert "nowhere" in failed.stderr
    assert not list(tmp_path.glob("nowhere-*.dump"))


@pytest.mark.parametrize("script", ["backup.sh", "restore.sh"])
def test_scripts_say_what_they_want(script: str) -> None:
    done = subprocess.run([SCRIPTS / script], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr.startswith(f"usage: {script}")) == (2, True)
