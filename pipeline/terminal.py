"""What the person at the terminal sees: stages, progress, the closing table, errors, and no library's noise.

On a terminal progress is one live line; in a log file it is plain lines, few and complete.
"""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as LiveBar
from rich.text import Text

from .figures import count, duration, rate

LOG_WIDTH = 100
_LOG_LINE_S = 10.0
_LOG_LINE_AT_LATEST_S = 60.0
_LOG_LINE_SHARE = 0.01
_RATE_WINDOW_S = 30.0
_REPLAY_S = 0.5  # what is told in the first half second was done before, by the run that this one resumes
_BAR_WIDTH = 12

QUIET_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # its coming default; unset, each worker warns of the change
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # alembic's and its own
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",  # MLflow asks for git, which a container may lack
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # c10d's remarks on sockets and IPv6
    "KINETO_LOG_LEVEL": "99",  # torch's profiler, which says that there is no GPU
}
_QUIET_LOGGERS = ("alembic", "mlflow", "werkzeug", "httpx", "matplotlib", "PIL")


def quiet_libraries() -> None:
    """Raise the log levels of the libraries to warnings and errors. Call before they are imported.

    Ray workers inherit the environment. A variable that is already set wins, so that noise can be asked for.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


@dataclass
class StageReport:
    """One stage for the closing table. The stage sets `figure`; the seconds are the terminal's."""

    name: str
    figure: str = ""
    """Its result in one figure with a unit, such as `1,234 images/s`."""
    skipped: str = ""
    """Why it did not run; empty where it did."""
    seconds: float = 0.0

    def skip(self, figure: str) -> None:
        """Its result, whose figure is given, is there already, made from the same inputs."""
        self.skipped = f"skipped: same inputs ({figure})"


class Progress:
    """Counts `done` up to `total`, measures the rate over the last 30 s, and hands each state to `show`."""

    def __init__(self, total: int, unit: str, clock: Callable[[], float], show: "Show") -> None:
        self.total = total
        """May be set later, when it becomes known; 0 until then."""
        self.done = 0
        self._unit, self._clock, self._show = unit, clock, show
        self._measures: dict[str, float] = {}
        self._remark = ""
        self._recent: deque[tuple[float, int]] = deque()
        self._began_s: float | None = None

    def update(self, done: int, remark: str = "", **measures: float) -> None:
        """done: all so far, what an earlier run did included. measures: figures to show, such as the loss.

        remark: shown last, so that a narrow terminal cuts it first.
        """
        now_s = self._clock()
        self.done, self._measures, self._remark = done, measures, remark
        if self._began_s is None:
            self._began_s = now_s
        if now_s - self._began_s < _REPLAY_S:
            self._recent.clear()
        self._recent.append((now_s, done))
        while len(self._recent) > 2 and now_s - self._recent[1][0] > _RATE_WINDOW_S:
            self._recent.popleft()
        self._show(self)

    @property
    def per_second(self) -> float:
        """Units per second over the last 30 s; 0 while there is nothing to measure."""
        if len(self._recent) < 2:
            return 0.0
        (then_s, before), (now_s, done) = self._recent[0], self._recent[-1]
        return (done - before) / (now_s - then_s) if now_s > then_s else 0.0

    def __str__(self) -> str:
        facts = [f"{self.done:,} of {count(self.total, self._unit)}" if self.total else count(self.done, self._unit)]
        facts += [f"{name} {value:#.4g}" for name, value in self._measures.items()]
        if self.per_second > 0:
            facts.append(rate(self.per_second, self._unit))
            if self.done < self.total:
                facts.append(f"{duration((self.total - self.done) / self.per_second)} left")
        return ", ".join([*facts, self._remark] if self._remark else facts)


Show = Callable[[Progress], None]


class Terminal:
    """Writes to standard output, or to `console`. clock: seconds, monotonic.

    brief: for many short stages; in a log, progress is lines while it goes on and none at its end.
    """

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic, brief: bool = False
    ) -> None:
        self.console = console or console_for(sys.stdout)
        self._clock = clock
        self._brief = brief

    @contextmanager
    def stage(self, name: str, note: str = "") -> Iterator[StageReport]:
        """A heading; at the end the seconds and the stage's figure, or why it was skipped."""
        self._line((name, "bold"), f"  {note}".rstrip())
        report, began_s = StageReport(name), self._clock()
        try:
            yield report
        except BaseException:
            self._line(f"  failed after {duration(self._clock() - began_s)}")
            raise
        report.seconds = self._clock() - began_s
        figure = f": {report.figure}" if report.figure else ""
        self._line(f"  {report.skipped or f'{duration(report.seconds)}{figure}'}")

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[Progress]:
        """A live bar, or a line in the log every 10 s (every minute in a long run) and at the end."""
        if self.console.is_interactive:
            columns = TextColumn(" "), BarColumn(_BAR_WIDTH), TextColumn("{task.description}", markup=False)
            with LiveBar(*columns, console=self.console) as bar:
                task = bar.add_task("starting", total=None)
                yield Progress(total, unit, self._clock, partial(_show_live, bar, task))
            return
        lines = _LogLines(self._line, self._clock)
        progress = Progress(total, unit, self._clock, lines)
        try:
            yield progress
        finally:
            if not self._brief:
                lines.last(progress)

    def line(self, text: str) -> None:
        """One line, indented like the figure of a stage."""
        self._line(f"  {text}")

    def text(self, text: str) -> None:
        """What another program has printed, as it is."""
        self.console.print(Text(text), end="", soft_wrap=True)

    def closing_table(self, reports: Sequence[StageReport]) -> None:
        """Every stage with its time and figure, and the time of all."""
        rows = [(report.name, report.seconds, report.skipped or report.figure) for report in reports]
        rows.append(("total", sum(report.seconds for report in reports), ""))
        cells = [
            ("stage", "time", "result"),
            *((name, duration(seconds), text) for name, seconds, text in rows),
        ]
        self.table(cells, "<><")

    def table(self, rows: Sequence[Sequence[str]], align: str) -> None:
        """Rows as columns that line up, the first row their headings. align: `<` or `>` for each column."""
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        self._line()
        for number, row in enumerate(rows):
            cells = (f"{text:{side}{width}}" for text, side, width in zip(row, align, widths, strict=True))
            self._line(("   ".join(cells).rstrip(), "bold" if number == 0 else ""))

    def facts(self, facts: Mapping[str, str]) -> None:
        """What to know at the end, a line each; long paths stay whole, to be copied."""
        width = max(map(len, facts), default=0) + 3
        self._line()
        for name, fact in facts.items():
            self._line((f"{name:<{width}}", "bold"), fact)

    def _line(self, *parts: str | tuple[str, str]) -> None:
        self.console.print(Text.assemble(*parts), soft_wrap=True)


def _show_live(bar: LiveBar, task: TaskID, progress: Progress) -> None:
    bar.update(task, completed=progress.done, total=progress.total or None, description=str(progress))


class _LogLines:
    """Shows a progress as lines of a log: one when it is due, and `last` for the state that it ends in."""

    def __init__(self, line: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._line, self._clock = line, clock
        self._shown_s, self._shown_done = clock(), 0

    def __call__(self, progress: Progress) -> None:
        waited_s = self._clock() - self._shown_s
        advanced = progress.done - self._shown_done >= _LOG_LINE_SHARE * progress.total
        if waited_s >= _LOG_LINE_AT_LATEST_S or (waited_s >= _LOG_LINE_S and advanced):
            self.last(progress)

    def last(self, progress: Progress) -> None:
        if progress.done != self._shown_done:
            self._line(f"  {progress}")
        self._shown_s, self._shown_done = self._clock(), progress.done


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """The reader has gone, as in `| head`: say nothing more, and let the run go on."""
        self.quiet = True
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), self.file.fileno())


def console_for(stream: TextIO | None) -> Console:
    """A console on standard output or error; a file gets 100 columns and no control characters."""
    person = stream is not None and stream.isatty()
    return _Output(
        stderr=stream is sys.stderr,
        force_interactive=None if person else False,
        force_terminal=None if person else False,
        width=None if person else LOG_WIDTH,
    )


def print_error(message: str) -> None:
    """One message on standard error, its lines kept, its brackets and control characters taken as text."""
    shown = "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in message)
    console_for(sys.stderr).print(Text.assemble(("error: ", "bold red"), shown), soft_wrap=True)
