"""Copies `metrics.jsonl` and the pictures beside it to MLflow, from a thread that can neither stop nor slow the
training.

The files are the truth and MLflow follows them. How far it got with the lines is a tag of the MLflow run, written by
the same request as the metrics, and a metric is stored under (key, time, step, value): a line that is sent again after
an outage, a kill or a new start, is the same line. Of the pictures, MLflow is asked which it has, and one that is sent
again has the same name. Nothing is lost and nothing doubled.
"""

import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Condition, Thread
from typing import BinaryIO

from PIL import Image

from ..errors import TrackingError
from ..redaction import redacted
from ..tracking.mlflow_store import reported
from ..tracking.tracked_run import TrackedRun
from .checkpoint import images_of

_FOLLOWED_TAG = "pipeline.followed_images"
_POLL_S = 1.0
_LONGEST_RETRY_S = 30.0
_HURRIED_RETRY_S = 0.2  # while flush waits
_MAX_METRICS = 999  # of one log_batch, which takes 1,000 things, the tag included
_IMAGES, _KEY = "images", "samples"  # the folder in which MLflow looks for pictures, and ours' name there

_logger = logging.getLogger(__name__)


class MetricsFollower:
    """Follows one training into one run, from its making until `close`. Neither file nor folder need exist yet."""

    def __init__(self, run: TrackedRun, curve: Path, previews: Path) -> None:
        self._curve = curve
        self._lines, self._pictures = _Lines(run, curve), _Pictures(run, previews, self._progressed)
        self._problem = ""
        self._rounds = 0  # how often everything that was there has been sent
        self._sent_pictures = 0
        self._hurry = False
        self._closed = False
        self._changed = Condition()
        Thread(target=self._follow, name="mlflow-follower", daemon=True).start()

    def flush(self, timeout_s: float) -> None:
        """Returns once MLflow has every line and picture that is there now.

        TrackingError where nothing arrives there for timeout_s.
        """
        with self._changed:
            # The round under way may have looked before the last line was written: await the next one.
            target, self._hurry = self._rounds + 2, True
            self._changed.notify_all()
            while self._rounds < target and self._arrives(timeout_s):
                pass
            self._hurry = False
        if self._rounds < target:
            raise TrackingError(
                f"{self._curve} and the pictures beside it: not all could be sent to MLflow, and for {timeout_s:g} s "
                f"(tracking.timeout_s) nothing arrived ({self._problem or 'the answers are too slow'}); the files are "
                "complete, and the same command sends the rest"
            )

    def _arrives(self, timeout_s: float) -> bool:
        """Whether a picture, or all that there is, arrives within this time."""
        before = self._rounds, self._sent_pictures
        return self._changed.wait_for(lambda: (self._rounds, self._sent_pictures) != before, timeout_s)

    def close(self, timeout_s: float) -> None:
        """`flush`, and then the thread ends, also where flush raises."""
        try:
            self.flush(timeout_s)
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()

    def _progressed(self) -> None:
        with self._changed:
            self._sent_pictures += 1
            self._changed.notify_all()

    def _follow(self) -> None:
        pause_s = _POLL_S
        while not self._closed:
            try:
                self._lines.send_new()
                self._pictures.send_new()
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


@dataclass(frozen=True)
class _Line:
    """One line of the file. images: the step; lines are sent in this order and never twice."""

    images: int
    time_ms: int
    values: dict[str, float]


class _Lines:
    """The lines of the curve on their way to MLflow."""

    def __init__(self, run: TrackedRun, source: Path) -> None:
        self._run = run
        self._tail = _Tail(source)
        self._unsent: list[_Line] = []
        self._read_images: int | None = None  # None: the store has not been asked yet

    def send_new(self) -> None:
        """All that the file has gained. TrackingError where the store refuses."""
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


class _Pictures:
    """Pictures on their way to MLflow, which shows them as one, with a slider over the step.

    Sent as by `MlflowClient.log_image`, but so that sending one again is harmless. That method gives a picture another
    name each time, and where it is killed between the picture's two files, half stays behind. Here the name is a
    function of the run and the images seen, and a picture is there once its second file is, the small copy.
    """

    def __init__(self, run: TrackedRun, folder: Path, progressed: Callable[[], None]) -> None:
        """progressed: called after each picture."""
        self._run, self._folder, self._progressed = run, folder, progressed
        self._sent: set[int] | None = None  # by images seen; None: the store has not been asked yet

    def send_new(self) -> None:
        """All that the folder has gained, in order. TrackingError where the store refuses."""
        new = {images_of(path): path for path in self._folder.glob("images-*.png")}
        if not new:
            return
        with reported("log the pictures of the training", self._run.uri):
            if self._sent is None:
                self._sent = self._stored()
            for images in sorted(new.keys() - self._sent):
                if _is_whole(new[images]):
                    self._send(new[images], images)
                self._sent.add(images)
                self._progressed()

    def _stored(self) -> set[int]:
        """Images seen at the pictures that MLflow has."""
        names = [file.path for file in self._run.client.list_artifacts(self._run.run_id, _IMAGES)]
        found = (re.fullmatch(rf"{_IMAGES}/{_KEY}\+step\+(\d+)\+.*\+compressed\.webp", name) for name in names)
        return {int(match[1]) for match in found if match}

    def _send(self, path: Path, images: int) -> None:
        from mlflow.tracking.multimedia import compress_image_size
        from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES

        client, run_id = self._run.client, self._run.run_id
        client.set_tag(run_id, MLFLOW_LOGGED_IMAGES, "True")
        time_ms = path.stat().st_mtime_ns // 1_000_000
        unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id} {images}")
        name = f"{_KEY}+step+{images}+timestamp+{time_ms}+{unique}"
        with TemporaryDirectory() as folder, Image.open(path) as image:
            whole, small = Path(folder, f"{name}.png"), Path(folder, f"{name}+compressed.webp")
            shutil.copyfile(path, whole)
            compress_image_size(image).save(small)
            for file in (whole, small):
                client.log_artifact(run_id, str(file), _IMAGES)


def _is_whole(path: Path) -> bool:
    """Warns where the disk has damaged a picture, which is then left out; the others are sent."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError) as error:  # the latter is how Pillow names some damage
        _logger.warning("a picture of the training is left out, it cannot be read: %s", error)
        return False
    return True


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
