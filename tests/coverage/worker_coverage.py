"""What Ray's workers go through is saved every second: Ray ends them without letting Python finish.

A plugin of coverage.py, named in pyproject.toml, so it begins with the measurement of each process.
"""

import sys
import time
from threading import Thread

from coverage import Coverage


def coverage_init(_registry: object, _options: object) -> None:
    """Called by coverage.py in every process that it measures."""
    if any(argument.endswith("default_worker.py") for argument in sys.orig_argv):
        Thread(target=_save_for_ever, daemon=True).start()


def _save_for_ever() -> None:
    while True:
        time.sleep(1)
        measured = Coverage.current()
        if measured:
            measured.save()
