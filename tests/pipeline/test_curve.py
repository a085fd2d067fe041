"""The file of the training curve: whole lines, each point once, in order."""

import json
from pathlib import Path

from pipeline.training.curve import CURVE, read_curve, restore_curve
from pipeline.training.curve_buffer import CurveBuffer


def point(images: int, **more: object) -> dict[str, object]:
    return {"images": images, "loss": 1.0, **more}


def write(folder: Path, *points: dict[str, object], tail: str = "") -> None:
    (folder / CURVE).write_text("".join(json.dumps(each) + "\n" for each in points) + tail)


def test_there_is_no_curve_before_training(tmp_path: Path) -> None:
    assert read_curve(tmp_path) == []


def test_a_last_line_that_was_cut_short_is_no_point(tmp_path: Path) -> None:
    write(tmp_path, point(1), tail='{"images": 2, "lo')
    assert read_curve(tmp_path) == [point(1)]


def test_points_that_only_the_checkpoint_has_are_put_back(tmp_path: Path) -> None:
    write(tmp_path, point(1), point(2, seconds=5), tail='{"im')
    restore_curve(tmp_path, [point(1), point(2), point(3)])
    assert read_curve(tmp_path) == [point(1), point(2, seconds=5), point(3)]


def test_points_after_the_checkpoint_stay(tmp_path: Path) -> None:
    write(tmp_path, point(1), point(2))
    restore_curve(tmp_path, [point(1)])
    assert read_curve(tmp_path) == [point(1), point(2)]


def test_a_loss_that_was_not_finite_is_forgotten_when_training_goes_on(tmp_path: Path) -> None:
    write(tmp_path, point(1), {"images": 2, "not_finite": True})
    restore_curve(tmp_path, [])
    assert read_curve(tmp_path) == [point(1)]


def test_the_buffer_gives_each_point_once() -> None:
    buffer = CurveBuffer()
    buffer.add(point(1))
    buffer.say("a line")
    assert (buffer.take(), buffer.take()) == (([point(1)], ["a line"]), ([], []))
