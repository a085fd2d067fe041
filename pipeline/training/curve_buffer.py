"""The actor that holds the training curve on its way. Its process imports this file, so none that takes seconds."""

from typing import Any

Point = dict[str, Any]


class CurveBuffer:
    """Points on their way from the worker to the driver; runs as an actor."""

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._said: list[str] = []

    def add(self, point: Point) -> None:
        """Called by rank 0."""
        self._points.append(point)

    def say(self, text: str) -> None:
        """Called by rank 0: a line for the terminal."""
        self._said.append(text)

    def take(self) -> tuple[list[Point], list[str]]:
        """Called by the driver: the points and the lines since its last call."""
        taken = self._points, self._said
        self._points, self._said = [], []
        return taken
