"""What answers at MLflow's address is not what it should be: a real HTTP server that tells anything but the truth."""

import http.server
import json
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import TrackingError
from pipeline.models.model_files import files_of
from pipeline.registration.versions import show_history
from pipeline.terminal import Terminal
from pipeline.tracking.mlflow_store import check_answers, connect

VERSION = {"name": "m", "version": "1", "source": "models:/m-1", "creation_timestamp": 1, "last_updated_timestamp": 1}
LOGGED = {"model_id": "m-1", "experiment_id": "0", "name": "m", "status": "LOGGED_MODEL_READY"}
LOGGED |= {"artifact_uri": "mlflow-artifacts:/0/models/m-1/artifacts"}
FILES = {"files": [{"path": "../../evil", "is_dir": False, "file_size": 4}]}
ALIASES = [{"alias": "champion", "version": "the best"}]


@contextmanager
def lying(answers: dict[str, bytes], otherwise: bytes = b"{}", endless: bool = False) -> Iterator[str]:
    """An address. answers: by the end of the path that is asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            body = next((text for end, text in answers.items() if path.endswith(end)), otherwise)
            self.send_response(200)
            if not endless:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body)
                while endless and not over.is_set():
                    self.wfile.write(b" " * 2**20)
            except OSError:
                pass  # who asked has heard enough

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None: ...

    over = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        over.set()
        server.shutdown()
        thread.join()


def test_an_answer_without_end_takes_neither_time_nor_memory() -> None:
    with lying({}, b'{"experiments": [', endless=True) as uri:
        connect(uri)  # which imports MLflow
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        check_answers(uri, timeout_s=30)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 200_000


def download(uri: str) -> None:
    with files_of("models:/m@champion", uri, "--tracking-uri", 30.0):
        pass


@pytest.mark.parametrize("body", [b"[]", b"hello", b"[" * 100_000, b'{"model_version": NaN}', b'{"model_version": 3}'])
def test_an_answer_that_is_no_version_is_reported(body: bytes) -> None:
    with (
        lying({"experiments/search": b"{}"}, body) as uri,
        pytest.raises(TrackingError, match=r"cannot download models:/m@champion: \w+"),
    ):
        download(uri)


def test_numbers_that_are_none_are_reported() -> None:
    model = {"name": "m", "aliases": ALIASES}
    answers = {"/search": {"registered_models": [model]}, "/get": {"registered_model": model}}
    with (
        lying({end: json.dumps(answer).encode() for end, answer in answers.items()}) as uri,
        pytest.raises(TrackingError, match=r"history of m: the store's answer makes no sense \(ValueError: .+'the"),
    ):
        show_history("m", uri, Terminal())


def test_a_file_that_is_to_be_written_elsewhere_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a/b/c"))
    answers = {
        "registered-models/alias": {"model_version": VERSION},
        "model-versions/get": {"model_version": VERSION},
        "logged-models/m-1": {"model": {"info": LOGGED, "data": {}}},
        "mlflow-artifacts/artifacts": FILES,
    }
    with (
        lying({end: json.dumps(answer).encode() for end, answer in answers.items()}) as uri,
        pytest.raises(TrackingError, match="cannot download models:/m@champion: Invalid path"),
    ):
        download(uri)
    assert not list(tmp_path.rglob("evil"))
