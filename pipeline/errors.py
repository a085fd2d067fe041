"""Everything that the pipeline refuses on purpose: one clear message, an exit code, no traceback.

Each takes its whole message as its one argument, so it survives the pickling between Ray processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class PipelineError(Exception):
    """A failed run; exit code 1. The message says what, where, found against expected, and what to do."""

    exit_code = 1


class ConfigError(PipelineError):
    """A wrong configuration or command; exit code 2. The message lists every mistake at once."""

    exit_code = 2


class BusyError(PipelineError):
    """Another process is at the same work; exit code 4."""

    exit_code = 4


class DataError(PipelineError):
    """Images, shards or an index that cannot be used as they are."""


class ClusterError(PipelineError):
    """The Ray cluster cannot give what the configuration asks for."""


class TrainingError(PipelineError):
    """Training stopped: non-finite loss, or a worker failed more often than allowed."""


class SamplingError(PipelineError):
    """Images that were drawn twice are not the same."""


class TrackingError(PipelineError):
    """MLflow does not answer or does not accept what it is sent."""


@contextmanager
def disk_errors(output: str | Path) -> Iterator[None]:
    """A disk that is full, or a folder that may not be written to, is no fault of the program: PipelineError."""
    try:
        yield
    except OSError as error:
        raise PipelineError(f"{error} (output is {output}); mend it, and the same command goes on") from error
