"""An MLflow store of each test module's own, and a run in it for each test."""

from pathlib import Path

import pytest

from pipeline.mlflow_store import resolve_uri
from pipeline.tracking import TrackedRun, open_run


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return resolve_uri(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db", Path())


@pytest.fixture
def run(uri: str, tmp_path: Path) -> TrackedRun:
    return open_run(uri, "digits", "night", tmp_path / "run", {}, {})
