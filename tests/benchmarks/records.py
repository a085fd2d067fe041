"""What the benchmarks share: taking turns, a limit of time, growth of memory, and a record of what was measured where.

The scripts of this folder import it by its bare name, since Python looks beside a script first.
"""

import json
import os
import platform
import shlex
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import torch

CPUINFO = Path("/proc/cpuinfo")

Speeds = dict[str, list[float]]
"""Of each contestant, one in each round."""


class OutOfTime(BaseException):
    """The limit of time has passed; no library takes this for an error of its own and goes on."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """OutOfTime in whatever the block does when so many seconds have passed; main thread only."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise OutOfTime(f"the limit of {seconds:g} s has passed")

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


class Record:
    """A JSON file with command, date and device, written anew with every figure: nothing measured is ever lost."""

    def __init__(self, output: Path | None, device: torch.device) -> None:
        self.output = output
        self.content: dict[str, Any] = {
            "command": command(),
            "date": datetime.now(UTC).date().isoformat(),
            "device": device_name(device),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }

    def __setitem__(self, name: str, value: Any) -> None:
        self.content[name] = value
        if self.output:
            self.output.write_text(json.dumps(self.content, indent=2) + "\n")


def command() -> str:
    """What was typed; folders of the machine are left out."""
    return shlex.join(["python", f"tests/benchmarks/{Path(sys.argv[0]).name}", *(Path(a).name for a in sys.argv[1:])])


def device_name(device: torch.device) -> str:
    """The GPU's name, or the number of cores, the processor's name and the widest instructions that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    named = [line.partition(":")[2].strip() for line in cpuinfo() if line.startswith("model name")]
    name = named[0] if named else platform.machine()
    return f"{os.cpu_count()} cores of {name}, {torch.backends.cpu.get_cpu_capability()}"


def cpuinfo() -> list[str]:
    """What Linux says of the processor; nothing elsewhere."""
    return CPUINFO.read_text().splitlines() if CPUINFO.exists() else []


def take_turns(contestants: Mapping[str, Callable[[int], float]], rounds: int, record: Record, speeds: Speeds) -> None:
    """Adds to `speeds`, and the record, the images per second of each contestant in each round, which it is told.

    They take turns so that what else the machine does falls on all of them.
    """
    for number in range(rounds):
        for name, run in contestants.items():
            speed = run(number)
            speeds.setdefault(name, []).append(speed)
            record["images_per_s"] = speeds
            print(f"round {number + 1} of {rounds}: {name}: {speed:,.1f} images/s", flush=True)


def ratio(speeds: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    """The median over the rounds of ours divided by theirs; a round that one of them did not finish does not count."""
    pairs = zip(speeds[ours], speeds[theirs], strict=False)
    return statistics.median(mine / other for mine, other in pairs)


def growth() -> Callable[[], float]:
    """By how much this process has grown at most since this was called, MB of resident set; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of what was imported, is not what is asked for
    before_kb = memory_kb("VmRSS")
    return lambda: round((memory_kb("VmHWM") - before_kb) / 1000, 1)


def memory_kb(name: str) -> int:
    """Of this process; VmRSS: resident now; VmHWM: at most so far."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1])
