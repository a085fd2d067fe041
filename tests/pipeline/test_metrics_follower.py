"""MLflow follows the metrics file and the pictures: kills, outages and rewritten files neither lose nor double
anything.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
from PIL import Image

from evaluation.pictures import image_grid
from pipeline.errors import TrackingError
from pipeline.tracking.tracked_run import TrackedRun, open_run
from pipeline.training.metrics_follower import MetricsFollower

from .servers import free_port, mlflow_server
from .waiting import wait_until


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def lines(steps: Iterable[int], time_ms: int = 1_700_000_000_000) -> str:
    rows = ({"images": step, "time_ms": time_ms + step, "loss": 1 / (step + 1), "note": "x"} for step in steps)
    return "".join(json.dumps(row) + "\n" for row in rows)


def append(source: Path, text: str) -> None:
    with source.open("a") as file:
        file.write(text)


def follower_of(run: TrackedRun, source: Path) -> MetricsFollower:
    return MetricsFollower(run, source, source.parent / "previews")


def follow(run: TrackedRun, source: Path) -> None:
    follower_of(run, source).close(timeout_s=20)


def draw(source: Path, images: int) -> Path:
    """A picture of this many images seen, beside the file of metrics."""
    path = source.parent / "previews" / f"images-{images:012d}.png"
    image_grid(np.full((4, 8, 8, 1), images % 256, dtype=np.uint8), 2, path)
    return path


def stored_pictures(run: TrackedRun) -> list[str]:
    """Names of the files in MLflow, in the order of their steps."""
    names = [Path(file.path).name for file in run.client.list_artifacts(run.run_id, "images")]
    return sorted(names, key=lambda name: (int(name.split("+")[2]), name))


def picture_steps(run: TrackedRun) -> list[int]:
    """Steps at which MLflow has a picture. Each must be there once, with one small copy."""
    names = stored_pictures(run)
    whole = [name for name in names if name.endswith(".png")]
    copies = [name for name in names if name.endswith("+compressed.webp")]
    assert [name.removesuffix(".png") for name in whole] == [name.removesuffix("+compressed.webp") for name in copies]
    assert len(names) == 2 * len(whole)
    return [int(name.split("+")[2]) for name in whole]


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
    follower = follower_of(run, source)  # the file does not exist yet
    for start in (0, 10, 20):
        append(source, lines(range(start, start + 10)))
        follower.flush(timeout_s=20)
        assert steps(run) == list(range(start + 10))
    follower.close(timeout_s=20)


def test_a_line_that_is_still_being_written_waits_for_its_end(run: TrackedRun, source: Path) -> None:
    first, second = lines([1]), lines([2])
    source.write_text(first + second[:20])
    follower = follower_of(run, source)
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
    follower = follower_of(run, source)
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
    follower = follower_of(run, source)
    follower.flush(timeout_s=20)
    run.client.delete_run(run.run_id)  # from now on the store refuses
    append(source, lines(range(3, 6)))
    with pytest.raises(
        TrackingError, match=r"metrics\.jsonl and .*: not all could be sent to MLflow, and for 1 s .*nothing arrived"
    ):
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
        follower_of(run, source).close(timeout_s=0.5)
    wait_until(lambda: all(thread.name != "mlflow-follower" for thread in threading.enumerate()), within_s=5)


def test_pictures_arrive_in_order_named_as_mlflow_itself_names_them(run: TrackedRun, source: Path) -> None:
    """So that its UI shows them as one picture that changes with the step."""
    follower = follower_of(run, source)  # the folder does not exist yet
    first = draw(source, 1_000)
    follower.flush(timeout_s=20)
    draw(source, 12_000)
    follower.close(timeout_s=20)
    assert picture_steps(run) == [1_000, 12_000]
    time_ms = first.stat().st_mtime_ns // 1_000_000
    assert stored_pictures(run)[1].startswith(f"samples+step+1000+timestamp+{time_ms}+")

    other = run.client.create_run(run.experiment_id)
    run.client.log_image(other.info.run_id, Image.open(first), key="samples", step=1_000, timestamp=time_ms)
    expected = TrackedRun(run.uri, run.experiment_id, other.info.run_id)
    assert [_without_uuid(name) for name in stored_pictures(run)[:2]] == [
        _without_uuid(name) for name in stored_pictures(expected)
    ]
    tags = [run.client.get_run(each.run_id).data.tags["mlflow.loggedImages"] for each in (run, expected)]
    assert tags[0] == tags[1]
    downloaded = run.client.download_artifacts(run.run_id, f"images/{stored_pictures(run)[1]}")
    assert Path(downloaded).read_bytes() == first.read_bytes()


def _without_uuid(name: str) -> str:
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", name)


def test_a_new_start_sends_only_new_pictures_and_those_that_came_late(run: TrackedRun, source: Path) -> None:
    """A training that goes on from an earlier checkpoint, with other cadences, may draw one before those sent."""
    draw(source, 4_000)
    follow(run, source)
    (before,) = [name for name in stored_pictures(run) if name.endswith(".png")]
    draw(source, 2_000)
    draw(source, 6_000)
    follow(run, source)
    assert picture_steps(run) == [2_000, 4_000, 6_000]
    assert before in stored_pictures(run)


def test_a_picture_of_which_a_kill_left_half_is_sent_again_and_there_once(run: TrackedRun, source: Path) -> None:
    draw(source, 4_000)
    follow(run, source)
    (copy,) = Path(run.client.get_run(run.run_id).info.artifact_uri.removeprefix("file://")).glob("images/*.webp")
    copy.unlink()
    follow(run, source)
    assert picture_steps(run) == [4_000]


def test_a_picture_that_the_disk_has_damaged_is_left_out_with_a_warning(
    run: TrackedRun, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut, holed = draw(source, 1_000), draw(source, 1_500)
    cut.write_bytes(cut.read_bytes()[:200])
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(holed)  # of several blocks, whose damage Pillow calls by another name
    content = holed.read_bytes()
    holed.write_bytes(content[:60_000] + bytes(20_000) + content[80_000:])
    draw(source, 2_000)
    follow(run, source)
    assert picture_steps(run) == [2_000]
    assert caplog.text.count("a picture of the training is left out") == 2


@contextmanager
def training(source: Path) -> Iterator[None]:
    """While the block runs, a line of the file every 20 ms and a picture with every 20th."""
    ended = Event()

    def write() -> None:
        for images in count(1):
            if ended.wait(0.02):
                return
            append(source, lines([images]))
            if images % 20 == 0:
                draw(source, images)

    thread = Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def written(source: Path) -> list[int]:
    return [int(json.loads(line)["images"]) for line in source.read_text().splitlines()]


def test_a_server_killed_while_points_and_pictures_arrive_has_everything_once_when_it_is_back(
    run: TrackedRun, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    database = Path(run.uri.removeprefix("sqlite:///"))
    (tmp_path / "mlflow.db").write_bytes(database.read_bytes())  # migrated already
    port = free_port()
    with ExitStack() as stack:
        with mlflow_server(tmp_path, port):
            page = open_run(f"http://127.0.0.1:{port}", "served", "served", tmp_path / "served", {}, {})
            stack.enter_context(training(source))
            follower = follower_of(page, source)
            wait_until(lambda: len(picture_steps_so_far(page)) > 1, within_s=60)
        with pytest.raises(TrackingError, match="connection refused"):
            follower.flush(timeout_s=1)
        lost_at = len(written(source))
        wait_until(lambda: len(written(source)) > lost_at + 50, within_s=60)  # the training does not notice
        with mlflow_server(tmp_path, port):
            wait_until(lambda: len(steps(page)) > lost_at + 50, within_s=60)
            stack.close()
            follower.close(timeout_s=30)
            assert steps(page) == written(source) == list(range(1, len(written(source)) + 1))
            assert picture_steps(page) == list(range(20, len(written(source)) + 1, 20))


def picture_steps_so_far(run: TrackedRun) -> set[str]:
    return {name for name in stored_pictures(run) if name.endswith(".webp")}
