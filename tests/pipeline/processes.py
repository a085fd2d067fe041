"""Processes on this machine, for tests that kill some."""

from collections.abc import Iterator
from pathlib import Path


def ancestors(pid: int) -> Iterator[int]:
    """The process that started this one, the one that started that, and so on."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid
