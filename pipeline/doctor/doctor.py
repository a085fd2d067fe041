"""The command `doctor`: looks at all that a run needs of its cluster, storage, shards and MLflow; trains nothing."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..runfile.config import Config
from ..terminal import Terminal
from .checks import CHECKS
from .examination import Examination, Finding

_STYLES = {"pass": "green", "fail": "bold red", "not checked": "yellow"}


def run_doctor(config: Config, all_shards: bool, terminal: Terminal) -> int:
    """Carries out every check and shows what each has found. -> the exit code: 0, or 1 where one has failed.

    all_shards: whether all are read, or a sample.
    """
    with Examination(config, all_shards) as examination:
        findings = [examination.perform(check) for check in CHECKS]
    show(findings, terminal.console)
    return int(any(finding.verdict == "fail" for finding in findings))


def show(findings: Sequence[Finding], console: Console) -> None:
    """A row for each check, below a failed one its cure, and the count of each verdict."""
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("what was seen, and the cure", overflow="fold")
    for finding in findings:
        table.add_row(finding.check, Text(finding.verdict, _STYLES[finding.verdict]), Text(finding.seen))
        if finding.cure:
            table.add_row("", "", Text(f"cure: {finding.cure}", "bold"))
    console.print(table)
    counts = (f"{sum(each.verdict == verdict for each in findings)} {verdict}" for verdict in _STYLES)
    console.print(f"\n{len(findings)} checks: {', '.join(counts)}")
