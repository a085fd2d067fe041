"""Copies `metrics.jsonl` to MLflow, from a thread that can neither stop nor slow the training.

The file is the truth and MLflow follows it. How far it got is a tag of the MLflow run, written by the same
request as the metrics, and a metric is stored under (key, time, step, value): a line that is sent again after
an outage, a kill or a new start, is the same line. Nothing is lost and nothing doubled.
"""

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import BinaryIO

from .errors import TrackingError
from .mlflow_store import redacted, reported
from .tracking import TrackedRun

_FOLLOWED_TAG = "pipeline.followed_images"
_POLL_S = 1.0
_LONGEST_RETRY_S = 30.0
_HURRIED_RETRY_S = 0.2  # while flush waits
_MAX_METRICS = 999  # of one log_batch, which takes 1,000 things, the tag included

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Line:
    """One line of the file. images: the step; lines are sent in this order and never twice."""

    images: int
    time_ms: int
    values: dict[str, float]


class MetricsFollower:
    """Follows one file into one run, from its making until `close`. The file may not exist yet."""

    def __init__(self, run: TrackedRun, source: Path) -> None:
        self._run = run
        self._tail = _Tail(source)
        self._unsent: list[_Line] = []
        self._read_images: int | None = None  # None: the store has not been asked yet
        self._problem = ""
        self._rounds = 0  # how often everything that was there has been sent
        self._hurry = False
        self._closed = False
        self._changed = Condition()
        Thread(target=self._follow, name="mlflow-follower", daemon=True).start()

    def flush(self, timeout_s: float) -> None:
        """Returns once MLflow has every line that the file holds now; else TrackingError."""
        with self._changed:
            # The round under way may have read the file before its last line was written: await the next one.
            target, self._hurry = self._rounds + 2, True
            self._changed.notify_all()
            sent = self._changed.wait_for(lambda: self._rounds >= target, timeout_s)
            self._hurry = False
        if not sent:
            raise TrackingError(
                f"{self._tail.path}: not all of it could be sent to MLflow within {timeout_s:g} s"
                f" (tracking.timeout_s; {self._problem or 'the answers are too slow'}); the file is complete,"
                " and the same command sends the rest"
            )

    def close(self, timeout_s: float) -> None:
        """`flush`, and then the thread ends, also where flush raises."""
        try:
            self.flush(timeout_s)
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()

    def _follow(self) -> None:
        pause_s = _POLL_S
        while not self._closed:
            try:
                self._send_all()
            except Exception as problem:  # nothing of MLflow's may end the thread; flush says what it was
                self._note(redacted(str(problem)))
                pause_s = min(2 * pause_s, _LONGEST_RETRY_S)
            else:
                self._note("")
                pause_s = _POLL_S
            self._rest(pause_s)

    def _note(self, problem: str) -> None:
        if problem and not self._problem:
            _logger.warning("the training goes on, MLflow does not follow at the moment: %s", problem)
        with self._changed:
            self._problem = problem
            self._rounds += not problem
            self._changed.notify_all()

    def _rest(self, pause_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._hurry or self._closed, pause_s)
        if self._problem and self._hurry:
            time.sleep(_HURRIED_RETRY_S)

    def _send_all(self) -> None:
        with reported("log the metrics of the training", self._run.uri):
            if self._read_images is None:
                tags = self._run.client.get_run(self._run.run_id).data.tags
                self._read_images = int(tags.get(_FOLLOWED_TAG, -1))
            for line in self._tail.new_lines():
                # A training that resumed from a checkpoint writes again what it had written after it.
                if line.images > self._read_images:
                    self._unsent.append(line)
                    self._read_images = line.images
            while self._unsent:
                del self._unsent[: self._send_batch()]

    def _send_batch(self) -> int:
        """Sends as many whole lines as one request takes; returns how many."""
        from mlflow.entities import Metric, RunTag

        lines, metrics = 0, list[Metric]()
        for line in self._unsent:
            if metrics and len(metrics) + len(line.values) > _MAX_METRICS:
                break
            metrics += [Metric(name, value, line.time_ms, line.images) for name, value in line.values.items()]
            lines += 1
        followed = RunTag(_FOLLOWED_TAG, str(self._unsent[lines - 1].images))
        self._run.client.log_batch(self._run.run_id, metrics=metrics, tags=[followed])
        return lines


class _Tail:
    """The complete lines that a file has gained; starts over where the file was replaced or cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset_bytes = 0
        self._inode = 0

    def new_lines(self) -> Iterator[_Line]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            self._find_place(file)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return  # it is being written
                self._offset_bytes += len(raw)
                if (line := _parsed(raw)) is not None:
                    yield line

    def _find_place(self, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        continued = status.st_ino == self._inode and 0 < self._offset_bytes <= status.st_size
        if continued:
            file.seek(self._offset_bytes - 1)
            continued = file.read(1) == b"\n"
        if not continued:
            file.seek(0)
            self._offset_bytes, self._inode = 0, status.st_ino


def _parsed(raw: bytes) -> _Line | None:
    """A line that a kill cut short costs one point of a curve, not the run."""
    try:
        values = json.loads(raw)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not {"images", "time_ms"} <= values.keys():
        _logger.warning("a line of the metrics file is left out, it cannot be read: %r", raw[:80])
        return None
    images, time_ms = int(values.pop("images")), int(values.pop("time_ms"))
    return _Line(images, time_ms, {name: float(value) for name, value in values.items() if _is_number(value)})


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
