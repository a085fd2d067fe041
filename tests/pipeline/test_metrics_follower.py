"""MLflow follows the metrics file: kills, outages and rewritten files neither lose nor double anything."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from pipeline.errors import TrackingError
from pipeline.metrics_follower import MetricsFollower
from pipeline.tracking import TrackedRun, open_run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def lines(steps: Iterable[int], time_ms: int = 1_700_000_000_000) -> str:
    rows = ({"images": step, "time_ms": time_ms + step, "loss": 1 / (step + 1), "note": "x"} for step in steps)
    return "".join(json.dumps(row) + "\n" for row in rows)


def append(source: Path, text: str) -> None:
    with source.open("a") as file:
        file.write(text)


def follow(run: TrackedRun, source: Path) -> None:
    MetricsFollower(run, source).close(timeout_s=20)


def steps(run: TrackedRun) -> list[int]:
    return [point.step for point in run.client.get_metric_history(run.run_id, "loss")]


def test_every_line_arrives_in_order_with_its_step_time_and_value(run: TrackedRun, source: Path) -> None:
    source.write_text(lines(range(2500)))  # more than two requests take
    follow(run, source)
    history = run.client.get_metric_history(run.run_id, "loss")
    assert [(point.step, point.timestamp, point.value) for point in history] == [
        (step, 1_700_000_000_000 + step, 1 / (step + 1)) for step in range(2500)
    ]
    assert set(run.client.get_run(run.run_id).data.metrics) == {"loss"}


def test_lines_written_while_it_follows_arrive(run: TrackedRun, source: Path) -> None:
    follower = MetricsFollower(run, source)  # the file does not exist yet
    for start in (0, 10, 20):
        append(source, lines(range(start, start + 10)))
        follower.flush(timeout_s=20)
        assert steps(run) == list(range(start + 10))
    follower.close(timeout_s=20)


def test_a_line_that_is_still_being_written_waits_for_its_end(run: TrackedRun, source: Path) -> None:
    first, second = lines([1]), lines([2])
    source.write_text(first + second[:20])
    follower = MetricsFollower(run, source)
    follower.flush(timeout_s=20)
    assert steps(run) == [1]
    append(source, second[20:])
    follower.close(timeout_s=20)
    assert steps(run) == [1, 2]


def test_following_again_sends_only_what_is_new(run: TrackedRun, source: Path) -> None:
    source.write_text(lines(range(5)))
    follow(run, source)
    append(source, lines(range(5, 8)))
    follow(run, source)
    assert steps(run) == list(range(8))


def test_the_same_lines_sent_twice_are_stored_once(run: TrackedRun, source: Path) -> None:
    source.write_text(lines(range(5)))
    follow(run, source)
    run.client.delete_tag(run.run_id, "pipeline.followed_images")  # as if the answer had been lost
    append(source, lines(range(5, 8)))
    follow(run, source)
    assert steps(run) == list(range(8))


def test_another_run_with_the_same_training_gets_the_whole_curve(
    run: TrackedRun, source: Path, uri: str, tmp_path: Path
) -> None:
    source.write_text(lines(range(5)))
    follow(run, source)
    other = open_run(uri, "digits", "other", tmp_path / "other", {}, {})
    follow(other, source)
    assert steps(other) == steps(run) == list(range(5))


@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "cut"])
def test_steps_that_a_resumed_training_writes_again_are_not_doubled(
    run: TrackedRun, source: Path, replaced: bool
) -> None:
    source.write_text(lines(range(10)))
    follower = MetricsFollower(run, source)
    follower.flush(timeout_s=20)
    resumed = lines(range(4)) + lines(range(4, 9), time_ms=1_800_000_000_000)
    if replaced:
        (new := source.with_suffix(".new")).write_text(resumed)
        new.rename(source)
    else:
        source.write_text(resumed)
    follower.flush(timeout_s=20)
    append(source, lines(range(9, 12), time_ms=1_800_000_000_000))
    follower.close(timeout_s=20)
    assert steps(run) == list(range(12))


@pytest.mark.parametrize("broken", ['{"images": 1, "lo\n', "[]\n", '{"loss": 1}\n', "\x00\n"])
def test_a_line_cut_by_a_kill_is_left_out_with_a_warning(
    run: TrackedRun, source: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    source.write_text(lines([0]) + broken + lines([2]))
    follow(run, source)
    assert steps(run) == [0, 2]
    assert "a line of the metrics file is left out" in caplog.text


def test_an_outage_is_said_once_survived_and_made_good(
    run: TrackedRun, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source.write_text(lines(range(3)))
    follower = MetricsFollower(run, source)
    follower.flush(timeout_s=20)
    run.client.delete_run(run.run_id)  # from now on the store refuses
    append(source, lines(range(3, 6)))
    with pytest.raises(TrackingError, match=r"metrics\.jsonl: not all of it could be sent to MLflow within 1 s"):
        follower.flush(timeout_s=1)
    run.client.restore_run(run.run_id)
    follower.close(timeout_s=20)
    assert steps(run) == list(range(6))
    assert caplog.text.count("the training goes on") == 1


def test_close_ends_the_thread_also_when_the_store_never_answers(run: TrackedRun, source: Path) -> None:
    import threading

    run.client.delete_run(run.run_id)
    source.write_text(lines(range(3)))
    with pytest.raises(TrackingError, match="must be in the 'active' state"):
        MetricsFollower(run, source).close(timeout_s=0.5)
    deadline = time.monotonic() + 5
    while any(thread.name == "mlflow-follower" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """The application that `mlflow server` runs, without its command line, which doubles the start."""
    store = f"sqlite:///{folder}/mlflow.db"
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    stores = {"_MLFLOW_SERVER_FILE_STORE": store, "_MLFLOW_SERVER_REGISTRY_STORE": store}
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), "mlflow.server.fastapi_app:app"]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=environment | stores, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
    try:
        deadline = time.monotonic() + 60
        while not answers(port):
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_a_killed_server_that_comes_back_has_everything_once(
    uri: str, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "mlflow.db").write_bytes(Path(uri.removeprefix("sqlite:///")).read_bytes())  # migrated already
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with server(tmp_path, port):
        run = open_run(f"http://127.0.0.1:{port}", "digits", "served", tmp_path / "served", {}, {})
        append(source, lines(range(5)))
        follower = MetricsFollower(run, source)
        follower.flush(timeout_s=20)
    append(source, lines(range(5, 1500)))
    with pytest.raises(TrackingError, match="connection refused"):
        follower.flush(timeout_s=1)
    with server(tmp_path, port):
        follower.close(timeout_s=30)
        assert steps(run) == list(range(1500))
