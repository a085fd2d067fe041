"""The training curve: from rank 0 to a file and the terminal, without ever holding up a step.

Rank 0 hands each point to a small actor; the driver empties it into `metrics.jsonl`, the one record of the curve.
MLflow copies from that file. A training that resumed passes some points again; they are the same points, and the file
keeps the first. The numbers of the last point are also Ray metrics (gauges.py), which a cluster's Prometheus scrapes.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ray

from ..errors import TrainingError
from ..files import write_text
from .curve_buffer import CurveBuffer, Point

CURVE = "metrics.jsonl"
_POLL_S = 0.5


@contextmanager
def recorded(
    folder: Path,
    timeout_s: float,
    on_point: Callable[[Point], None],
    on_line: Callable[[str], None] = lambda _: None,
) -> Iterator[Any]:
    """Yields the actor that rank 0 gives its points and lines to. While the block runs, points go on to the file in
    `folder` and to `on_point`, and lines for the person at the terminal to `on_line`.

    TrainingError where the last ones do not come within timeout_s of the block's end.
    """
    buffer: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(CurveBuffer).remote()
    ended = Event()
    writer = Thread(target=_write, args=(buffer, folder / CURVE, on_point, on_line, ended), name="curve", daemon=True)
    writer.start()
    try:
        yield buffer
    finally:
        ended.set()
        writer.join(timeout_s)
        late = writer.is_alive()
        ray.kill(buffer)
    if late:
        raise TrainingError(
            f"{folder / CURVE}: the last points of the curve have not come for {timeout_s:g} s (cluster.timeout_s); "
            "they are in the last checkpoint, too, from which the same command goes on"
        )


def read_curve(folder: Path) -> list[Point]:
    """All points of the curve; a last line that a kill cut short is not one."""
    path = folder / CURVE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def restore_curve(folder: Path, saved: list[Point]) -> None:
    """Makes the file whole before training goes on: with the points that only the checkpoint has, without a line
    that was cut short or a loss that was not finite.
    """
    points = read_curve(folder)
    last = points[-1]["images"] if points else 0
    points += [point for point in saved if point["images"] > last]
    lines = [json.dumps(point) + "\n" for point in points if "not_finite" not in point]
    write_text(folder / CURVE, "".join(lines))


def _write(
    buffer: Any, path: Path, on_point: Callable[[Point], None], on_line: Callable[[str], None], ended: Event
) -> None:
    points = read_curve(path.parent)
    written = points[-1]["images"] if points else 0
    while True:
        last_round = ended.wait(_POLL_S)
        try:
            arrived, said = ray.get(buffer.take.remote())
        except ray.exceptions.RayError:  # the cluster is gone, and with it the training, which says why
            return
        for line in said:
            on_line(line)
        for point in arrived:
            on_point(point)
            if point["images"] > written or "not_finite" in point:
                written = point["images"]
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(point) + "\n")
        if last_round:
            return
