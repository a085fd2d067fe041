"""Waiting in tests, never for ever."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], within_s: float, every_s: float = 0.05) -> None:
    """Returns once the condition holds, which is looked at every so often; fails where that takes too long."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(every_s)
