"""The command line in processes of its own, on a run file of the test's: to the end, or killed on its way."""

import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from pipeline.__main__ import main

FILE_NAME = "tiny.yaml"
_LIMIT_S = 700
_KILL_WITHIN_S = 500


def new_folder(tmp_path_factory: pytest.TempPathFactory, name: str, run_file: str, store: bytes | None = None) -> Path:
    """A folder with this text as its run file, and this database as the MLflow store of its results."""
    folder = tmp_path_factory.mktemp(name)
    (folder / FILE_NAME).write_text(run_file)
    if store:
        (folder / "outputs").mkdir()
        (folder / "outputs/mlflow.db").write_bytes(store)
    return folder


def run(verb: str, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline VERB` on the folder's run file, to its end; results lie in `outputs` there."""
    command = _command(verb, folder, overrides)
    return subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, cwd=folder, check=False)


def run_here(verb: str, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has imported all that a process of its own takes many seconds for."""
    arguments = _arguments(verb, folder, overrides)
    with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
        code = main(arguments)
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())


def kill_when(condition: Callable[[], bool], verb: str, folder: Path, *overrides: str) -> None:
    """Starts the same command and kills its driver without warning as soon as `condition` holds."""
    with subprocess.Popen(
        _command(verb, folder, overrides),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        start_new_session=True,
    ) as driver:
        deadline = time.monotonic() + _KILL_WITHIN_S
        while not condition():
            assert driver.poll() is None, f"{verb} ended before it could be killed"
            assert time.monotonic() < deadline, "the condition was never met"
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)


def _command(verb: str, folder: Path, overrides: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "pipeline", *_arguments(verb, folder, overrides)]


def _arguments(verb: str, folder: Path, overrides: tuple[str, ...]) -> list[str]:
    return [verb, str(folder / FILE_NAME), f"output={folder / 'outputs'}", *overrides]
