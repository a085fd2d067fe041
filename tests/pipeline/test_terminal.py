import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.terminal import QUIET_ENVIRONMENT, Progress, StageReport, Terminal, print_error, quiet_libraries

ROOT = Path(__file__).parents[2]
SHOW = """
from itertools import count
from pipeline.terminal import Terminal, print_error
terminal = Terminal(clock=count(0, 2).__next__)
with terminal.stage("train", "two [workers]") as report:
    with terminal.progress(50_000_000, "images") as progress:
        for done in range(0, 50_000_001, 5_000_000):
            progress.update(done, loss=0.034217)
    report.figure = "1,234 images/s"
terminal.closing_table([report])
terminal.facts({"pictures": "/a/" + "long/" * 30})
print_error("run.yaml: [bold]x")
"""


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Log:
    """A terminal that writes to memory like to a log file, on its own clock."""

    def __init__(self) -> None:
        self.stream, self.clock = io.StringIO(), Clock()
        self.terminal = Terminal(Console(file=self.stream, width=100), self.clock)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


def test_a_remark_comes_last_where_a_narrow_terminal_cuts() -> None:
    log = Log()
    with log.terminal.progress(1_000, "images") as progress:
        for second in range(11):
            log.clock.now_s = second
            progress.update(second * 20, "41.2 GFLOP/s", loss=0.034217)
    assert log.lines == ["  200 of 1,000 images, loss 0.03422, 20 images/s, 40 s left, 41.2 GFLOP/s"]


def test_a_stage_has_a_heading_and_ends_with_its_seconds_and_figure() -> None:
    log = Log()
    with log.terminal.stage("train", "two workers [cpu]") as report:
        log.clock.now_s = 83
        report.figure = "1,234 images/s"
    assert log.lines == ["train  two workers [cpu]", "  1 min 23 s: 1,234 images/s"]
    assert report.seconds == 83


def test_a_skipped_stage_says_so_and_why() -> None:
    log = Log()
    with log.terminal.stage("prepare") as report:
        report.skip("outputs/data-1a2b")
    assert log.lines == ["prepare", "  skipped: same inputs (outputs/data-1a2b)"]


def test_a_failed_stage_says_after_how_long_and_lets_the_error_through() -> None:
    log = Log()

    def fail() -> None:
        with log.terminal.stage("train"):
            log.clock.now_s = 5
            raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        fail()
    assert log.lines == ["train", "  failed after 5.0 s"]


def test_progress_in_a_log_is_a_line_every_ten_seconds_with_all_facts() -> None:
    log = Log()
    with log.terminal.progress(1_000, "images") as progress:
        for second in range(26):
            log.clock.now_s = second
            progress.update(second * 20, loss=0.034217)
    assert log.lines == [
        "  200 of 1,000 images, loss 0.03422, 20 images/s, 40 s left",
        "  400 of 1,000 images, loss 0.03422, 20 images/s, 30 s left",
        "  500 of 1,000 images, loss 0.03422, 20 images/s, 25 s left",
    ]


def test_progress_of_a_long_run_is_a_line_every_minute_in_a_log() -> None:
    log = Log()
    with log.terminal.progress(10_000_000, "images") as progress:
        for second in range(0, 181, 2):
            log.clock.now_s = second
            progress.update(second * 10)
    assert len(log.lines) == 3


def test_progress_that_fails_shows_how_far_it_came() -> None:
    log = Log()

    def fail() -> None:
        with log.terminal.progress(1_000, "images") as progress:
            progress.update(10)
            raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        fail()
    assert log.lines == ["  10 of 1,000 images"]


def test_the_rate_leaves_out_what_an_earlier_run_did_and_follows_the_last_half_minute() -> None:
    clock = Clock()
    progress = Progress(100_000, "images", clock, show=lambda _: None)
    progress.update(50_000)
    assert progress.per_second == 0
    clock.now_s = 10
    progress.update(51_000)
    assert progress.per_second == 100
    for clock.now_s in range(11, 100):
        progress.update(51_000 + 10 * (int(clock.now_s) - 10))
    assert progress.per_second == pytest.approx(10)


def test_what_a_resumed_run_tells_again_at_once_is_no_speed() -> None:
    clock = Clock()
    progress = Progress(100_000, "images", clock, show=lambda _: None)
    for clock.now_s, done in [(0, 10_000), (0.1, 20_000), (0.2, 30_000), (10.2, 31_000)]:
        progress.update(done)
    assert str(progress) == "31,000 of 100,000 images, 100 images/s, 11 min 30 s left"


def test_a_figure_keeps_its_width_where_its_last_digit_is_a_nought() -> None:
    progress = Progress(1_000, "images", Clock(), show=lambda _: None)
    progress.update(10, loss=0.189)
    assert str(progress) == "10 of 1,000 images, loss 0.1890"


def test_a_total_may_become_known_later() -> None:
    log = Log()
    with log.terminal.progress(0, "images") as progress:
        progress.update(10)
        assert str(progress) == "10 images"
        progress.total = 40
        progress.update(20)
    assert log.lines == ["  20 of 40 images"]


def test_the_closing_table_lines_up_and_sums() -> None:
    log = Log()
    reports = [StageReport("prepare", seconds=1.5), StageReport("train", "1,234 images/s", seconds=83)]
    reports[0].skip("outputs/[data]")
    log.terminal.closing_table(reports)
    assert log.lines == [
        "",
        "stage           time   result",
        "prepare        1.5 s   skipped: same inputs (outputs/[data])",
        "train     1 min 23 s   1,234 images/s",
        "total     1 min 24 s",
    ]


def test_a_table_lines_up_by_the_longest_cell_and_ends_no_line_in_blanks() -> None:
    log = Log()
    log.terminal.table([["sampler", "fid"], ["[ddim]", "1,234"], ["unipc", ""]], "<>")
    assert log.lines == ["", "sampler     fid", "[ddim]    1,234", "unipc"]


def test_brief_progress_leaves_no_line_unless_it_takes_long() -> None:
    log = Log()
    brief = Terminal(log.terminal.console, log.clock, brief=True)
    for seconds in (3, 12):
        with brief.progress(100, "images") as progress:
            progress.update(0)
            log.clock.now_s += seconds
            progress.update(50)
            progress.update(100)
    brief.line("1 of 1: [done]")
    assert log.lines == ["  50 of 100 images, 4.17 images/s, 12 s left", "  1 of 1: [done]"]


def test_a_long_path_stays_on_one_line() -> None:
    log = Log()
    path = "/a/" + "long/" * 50
    log.terminal.facts({"model": "digits version 3", "pictures": path})
    assert log.lines == ["", "model      digits version 3", f"pictures   {path}"]


def test_an_error_keeps_its_lines_and_brackets_and_prints_no_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_error("run.yaml: 1 mistake\n  name: found '[bold]\x1b[31m'\n")
    answer = capsys.readouterr()
    assert answer.out == ""
    assert answer.err == "error: run.yaml: 1 mistake\n  name: found '[bold]\\x1b[31m'\n\n"


def run_shown(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command, sys.executable, SHOW],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"COLUMNS": "20"}])
def test_a_log_file_has_no_control_characters_at_any_width(environment: dict[str, str]) -> None:
    done = run_shown('"$0" -c "$1" | cat', **environment)
    assert not re.search(r"[^\x20-\x7e\n]", done.stdout + done.stderr)
    assert "train  two [workers]\n" in done.stdout
    assert re.search(r"^  50,000,000 of 50,000,000 images, loss 0.03422, [\d,]+ images/s$", done.stdout, re.M)
    assert f"pictures   /a/{'long/' * 30}\n" in done.stdout
    assert done.stderr == "error: run.yaml: [bold]x\n"


@pytest.mark.parametrize("command", ['"$0" -c "$1" | head -1', '"$0" -c "$1" | true', '"$0" -c "$1" >&-'])
def test_a_reader_that_has_gone_does_not_stop_the_run(command: str) -> None:
    done = run_shown(f"set -o pipefail; {command}")
    assert done.returncode == 0
    assert done.stderr == "error: run.yaml: [bold]x\n"


def test_on_a_terminal_of_100_columns_progress_is_one_live_line_that_fits() -> None:
    written = on_a_terminal()
    assert "\x1b[?25l" in written  # the cursor is hidden while the line lives
    assert "\x1b[?25h" in written
    frames = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame) for frame in re.split(r"[\r\n]", written)]
    assert max(map(len, (frame for frame in frames if "images/s" in frame))) <= 100
    assert any(re.search(r"50,000,000 of 50,000,000 images, loss 0.03422", frame) for frame in frames)
    assert next(frame for frame in frames if "━" in frame).endswith("━ starting")
    assert "\x1b[31m" not in on_a_terminal(NO_COLOR="1").replace("\x1b[1m", "")


def on_a_terminal(**environment: str) -> str:
    """What a person's terminal of 100 columns is sent."""
    ours, theirs = pty.openpty()
    settings = {
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm-256color",
        "COLUMNS": "100",
        "LINES": "30",
        **environment,
    }
    child = subprocess.Popen(
        [sys.executable, "-c", SHOW],
        env={name: value for name, value in os.environ.items() if name != "NO_COLOR"} | settings,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    while chunk := read_terminal(ours):
        written += chunk
    os.close(ours)
    assert child.wait(timeout=60) == 0
    return written.decode()


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux says so when the other side has closed
        return b""


def test_a_user_who_asks_for_noise_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "DEBUG")
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    quiet_libraries()
    assert os.environ["MLFLOW_LOGGING_LEVEL"] == "DEBUG"
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"


def test_the_variables_that_silence_mlflow_are_ones_it_knows() -> None:
    from mlflow import environment_variables

    names = [name for name in QUIET_ENVIRONMENT if name.startswith("MLFLOW_")]
    assert names
    assert [name for name in names if not hasattr(environment_variables, name)] == []
