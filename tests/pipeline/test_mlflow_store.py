"""The store's address and its answers: servers and databases that misbehave are real ones."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pipeline.errors import TrackingError
from pipeline.redaction import redacted
from pipeline.tracking.mlflow_store import check_answers, connect, reported, resolve_uri


def test_the_store_is_the_configured_one_else_the_environments_else_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment:5000")
    assert resolve_uri(None, tmp_path) == "http://from-environment:5000"
    assert resolve_uri("http://configured:5000", tmp_path) == "http://configured:5000"


def test_a_relative_sqlite_file_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///runs.db", tmp_path) == f"sqlite:///{tmp_path}/runs.db"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:secret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://ann:se/cr@et@db/mlflow", "postgresql://***@db/mlflow"),
        ("mysql://db/x?user=ann&password=secret&ssl=1", "mysql://db/x?user=ann&password=***&ssl=1"),
        ("https://bucket/x?X-Amz-Signature=secret&a=1", "https://bucket/x?X-Amz-Signature=***&a=1"),
        ('["http://ann:secret@host","me@home"]', '["http://***@host","me@home"]'),
        ("tracking.uri=http:/ann:secret@host: no such file", "tracking.uri=http:/***@host: no such file"),
        ("models:/digits@champion", "models:/digits@champion"),
        ("sqlite:////home/ann/mlflow.db", "sqlite:////home/ann/mlflow.db"),
    ],
)
def test_credentials_are_not_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """A server on a free port that gives everyone this answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://ann:secret@127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (403, "Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts"),
        (401, "who are you", "MLFLOW_TRACKING_USERNAME"),
        (403, "no", "are these credentials allowed to write"),
        (404, "<html>", "not an MLflow server"),
        (500, "oops", "HTTP 500: oops"),
        (200, "<html>please log in", "what answers there is not an MLflow server"),
    ],
)
def test_a_server_that_refuses_is_reported_with_the_cure(status: int, body: str, says: str) -> None:
    with answering(status, body) as uri, pytest.raises(TrackingError, match=says) as refused:
        check_answers(uri)
    assert "secret" not in str(refused.value)
    assert "http://***@127.0.0.1" in str(refused.value)


def test_a_server_that_answers_passes() -> None:
    with answering(200, "{}") as uri:
        check_answers(uri)


def test_an_answer_that_makes_no_sense_is_reported() -> None:
    with (
        answering(200, '{"registered_models": 3}') as uri,
        pytest.raises(TrackingError, match="cannot look: Failed to parse"),
        reported("look", uri),
    ):
        connect(uri).search_registered_models()


def test_nothing_listening_is_reported_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(TrackingError, match=r"connection refused; start the server"):
        check_answers("http://ann:secret@127.0.0.1:1")
    assert time.monotonic() - began < 2


def test_a_server_that_keeps_silent_is_given_up(silent: str) -> None:
    began = time.monotonic()
    with pytest.raises(TrackingError, match=r"no answer for 1 s \(tracking\.timeout_s\); is the address right"):
        check_answers(silent, timeout_s=0.5)
    assert time.monotonic() - began < 2


def test_a_server_that_falls_silent_later_is_given_up_after_three_requests(silent: str) -> None:
    """A request has no limit of its own: it is the one that the first question had."""
    with pytest.raises(TrackingError):
        check_answers(silent, timeout_s=1)
    from mlflow.entities import Param

    began = time.monotonic()
    with (
        pytest.raises(TrackingError, match=r"cannot log: no answer for 1 s \(tracking\.timeout_s\)"),
        reported("log", silent),
    ):
        connect(silent).log_batch("0" * 32, params=[Param("seed", "0")])
    assert time.monotonic() - began < 15  # by MLflow's own defaults it would be a quarter of an hour


def test_an_address_of_no_known_kind_is_refused() -> None:
    with pytest.raises(TrackingError, match=r"not an address; expected http://HOST:PORT"):
        check_answers("./mlruns")


def test_a_database_whose_driver_is_not_installed_is_refused_without_its_password() -> None:
    with pytest.raises(TrackingError, match="No module named") as refused:
        check_answers("oracle://ann:secret@127.0.0.1/mlflow")
    assert "secret" not in str(refused.value)


def test_a_database_by_a_driver_that_is_not_installed_is_told_of_the_one_that_is() -> None:
    with pytest.raises(TrackingError, match=r"psycopg is not installed; psycopg2, .* by postgresql\+psycopg2://"):
        check_answers("postgresql://ann:secret@127.0.0.1/mlflow")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("these are not the tables you are looking for" * 100)
    with pytest.raises(TrackingError, match="not an SQLite database"):
        check_answers(f"sqlite:///{tmp_path}/mlflow.db")


def test_checking_creates_nothing(tmp_path: Path) -> None:
    check_answers(f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["what?", "a%20b"])
def test_a_folder_whose_name_mlflow_would_misread_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError, match=r"MLflow cannot keep its SQLite file below.*choose another output"):
        resolve_uri(None, tmp_path / name)
    assert resolve_uri("http://host:5000", tmp_path / name) == "http://host:5000"
    assert resolve_uri(None, tmp_path / "100% ä b#") == f"sqlite:///{tmp_path}/100% ä b#/mlflow.db"
