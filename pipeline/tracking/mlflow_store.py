"""The MLflow store: its address, whether it answers, and its errors in one form that shows no credentials."""

import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING

from ..errors import TrackingError
from ..redaction import redacted
from ..terminal import quiet_libraries

if TYPE_CHECKING:
    from mlflow import MlflowClient

ANSWER_S = 30.0
"""Longest wait for an answer, seconds, where no configuration says another."""

_ENVIRONMENT = {
    # MLflow's own defaults wait 2 minutes for an answer and ask 8 times, over about 4 more minutes, or longer where
    # the server says so.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": f"{ANSWER_S:.0f}",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_UV_AUTO_DETECT": "false",  # or a uv.lock in the working directory decides a model's requirements
}
"""Set in this process before MLflow is imported, unless they are set already."""

_CURES = {
    "Invalid Host header": "the server refuses this host name (HTTP 403, Invalid Host header); start it with "
    "--allowed-hosts 'HOST,HOST:*', HOST being the name in the address",
    "HTTP 401": "the server wants to know who asks (HTTP 401); set MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "HTTP 403": "the server refuses (HTTP 403); are these credentials allowed to write?",
    "HTTP 404": "something answers there that is not an MLflow server (HTTP 404); correct tracking.uri",
    "not in a valid JSON format": "what answers there is not an MLflow server; correct tracking.uri",
    "timed out": "no answer for {seconds} s (tracking.timeout_s); is the address right, and the server running?",
    "Connection refused": "connection refused; start the server, or correct tracking.uri",
    "NameResolutionError": "no such host name; correct tracking.uri",
    "Could not parse SQLAlchemy URL": "not an address; expected http://HOST:PORT, sqlite:///FILE or "
    "postgresql+psycopg2://...",
    "No module named 'psycopg'": "the driver psycopg is not installed; psycopg2, which the extra `server` brings, is "
    "asked for by postgresql+psycopg2://...",
    "No module named 'psycopg2'": "the driver psycopg2 is not installed; the extra `server` brings it",
    "file is not a database": "the file is not an SQLite database; move it away, or correct tracking.uri",
}
"""What a message of the libraries contains -> what to say in its place."""


def resolve_uri(configured: str | None, output: Path = Path("outputs")) -> str:
    """The store's address: `tracking.uri`, else MLFLOW_TRACKING_URI, else one SQLite file under `output`.

    TrackingError where MLflow would take the name of that file for another one.
    """
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        uri = f"sqlite:///{output.absolute()}/mlflow.db"
        if re.search(r"\?|%[0-9A-Fa-f]{2}", uri):
            raise TrackingError(
                f"output {output}: MLflow cannot keep its SQLite file below a name with a '?' or a '%' and two "
                f"hexadecimal digits; choose another output, or set tracking.uri"
            )
    if (file := _sqlite_file(uri)) is not None:
        return f"sqlite:///{file.absolute()}"
    return uri


def check_answers(uri: str, timeout_s: float = ANSWER_S) -> None:
    """TrackingError, within about `timeout_s`, unless the store at `uri` answers. Creates nothing.

    From then on every request of this process to a server waits as long for each answer, rounded up to whole seconds.
    """
    # It limits the seconds without a byte, not a whole request: weights take longer, through the same connection.
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(math.ceil(timeout_s))
    probe = _probe_server if uri.startswith(("http://", "https://")) else _probe_database
    with reported("reach MLflow", uri):
        _within(timeout_s, lambda: probe(uri, timeout_s))


def artifact_location(uri: str, folder: Path) -> str | None:
    """Where a new experiment's files go, for a run in `folder`; None: the server knows.

    With a bare database MLflow would take the working directory of whoever makes the experiment.
    """
    if uri.startswith(("http://", "https://")):
        return None
    file = _sqlite_file(uri)
    return ((file or folder.absolute()).parent / "mlartifacts").as_uri()


def how_to_look(uri: str) -> str:
    """What a person types to see the store's pages."""
    return f"make ui, or mlflow ui --backend-store-uri {redacted(uri)}"


def connect(uri: str) -> "MlflowClient":
    """A client of both halves of the store at `uri`, runs and registry."""
    _prepare()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def default_store(uri: str) -> Iterator[None]:
    """Makes this one the process's, where MLflow 3.17 looks for a version's model instead of in its client's."""
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    before = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        with _use_tracking_uri(uri):
            yield
    finally:
        if before is not None:  # _use_tracking_uri unsets it
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextmanager
def reported(doing: str, uri: str) -> Iterator[None]:
    """Turns what MLflow and the libraries below it raise into a TrackingError that shows no credentials."""
    _prepare()
    from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]  # its stubs are not installed
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, ParseError, RequestException, SQLAlchemyError, OSError, ImportError) as error:
        raise TrackingError(redacted(f"{uri}: cannot {doing}: {explained(str(error))}")) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # at what an answer lacks, or has in its place
        strange = f"the store's answer makes no sense ({type(error).__name__}: {error})"
        raise TrackingError(redacted(f"{uri}: cannot {doing}: {strange}; is it an MLflow server?")) from error


def explained(message: str) -> str:
    """What a message of the libraries means and what to do, where that is known; else its first line."""
    for symptom, cure in _CURES.items():
        if symptom in message:
            return cure.replace("{seconds}", os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
    return message.strip().partition("\n")[0]


@cache
def _prepare() -> None:
    """Once in a process, before its first import of MLflow, which reads some of the settings then."""
    quiet_libraries()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        # MLflow 3.17 maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
        warnings.filterwarnings("ignore", "The ``noload`` loader strategy", DeprecationWarning)
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  # for its warning


def _sqlite_file(uri: str) -> Path | None:
    path = uri.removeprefix("sqlite:///")
    return Path(path) if path != uri else None


def _within(timeout_s: float, probe: Callable[[], None]) -> None:
    """Name look-ups and database drivers know no time-out: the probe has a thread, left behind if need be."""
    outcome: Queue[Exception | None] = Queue()

    def answer() -> None:
        try:
            probe()
            outcome.put(None)
        except Exception as error:
            outcome.put(error)

    Thread(target=answer, name="mlflow-probe", daemon=True).start()
    try:
        error = outcome.get(timeout=timeout_s)
    except Empty:
        raise TimeoutError("timed out") from None
    if error is not None:
        raise error


def _probe_server(uri: str, timeout_s: float) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    question = "/api/2.0/mlflow/experiments/search"
    answer = http_request(  # type: ignore[no-untyped-call]  # MLflow's
        get_default_host_creds(uri),  # type: ignore[no-untyped-call]  # MLflow's
        question,
        "GET",
        max_retries=0,
        raise_on_status=False,
        timeout=timeout_s,
        params={"max_results": 1},
        stream=True,  # no more is read than this needs: an answer may have no end
    )
    with answer:
        beginning = answer.raw.read(200, decode_content=True).decode(errors="replace")
    if answer.status_code != 200:
        raise MlflowException(f"HTTP {answer.status_code}: {beginning}")
    if not beginning.startswith("{"):
        raise MlflowException("not in a valid JSON format")


def _probe_database(uri: str, _timeout_s: float) -> None:
    import sqlalchemy

    if (file := _sqlite_file(uri)) is not None and not file.exists():
        return
    question = "PRAGMA schema_version" if uri.startswith("sqlite") else "SELECT 1"
    engine = sqlalchemy.create_engine(uri)
    try:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(question))
    finally:
        engine.dispose()
