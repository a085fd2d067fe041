"""The command `profile`: some steps of a run's training under torch's profiler, and a page that says what they show.

One worker trains alone, in this process and without a cluster, so its communication with others is missing. Nothing is
kept of it but the page and the trace.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # torch's types lack it
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile

from model import training_flops

from ..data.prepare import Prepare, check_prepared
from ..files import exclusive, write_text
from ..runfile.config import Config
from ..stage import Run, advance
from ..terminal import Terminal
from .profile_page import Operator, Profile, page, reading
from .train import job_of, recipe_of
from .train_loop import Worker, peak_memory_bytes
from .train_step import Recipe, share_of

TRACE, PAGE = "trace.json", "profile.md"

_WARM_UP_STEPS = 5  # libraries choose kernels, torch.compile compiles
_FEWEST_STEPS, _MOST_STEPS, _STEPS_S = 5, 300, 3.0  # without the profiler, which slows what it sees
_PROFILED_STEPS = 5
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize")
"""Calls by which the host waits for a GPU."""
_READS = ("aten::_local_scalar_dense",)
"""What reads a number of a tensor, such as `item`; on a GPU that waits, too."""


def run_profile(config: Config, terminal: Terminal) -> Path:
    """Packs the images where that is still to be done, trains some steps and writes both files. -> their folder."""
    run = Run(config, terminal)
    folder = run.folder / "profile"
    with exclusive(folder, "profile"):
        advance(run, Prepare())
        check_prepared(run)
        with terminal.stage("profile") as report:
            found = _measure(_worker(run, folder), config, folder / TRACE)
            write_text(folder / PAGE, page(found))
            report.figure = f"{1000 * found.step_s:.3g} ms a step"
    for sentence in reading(found):
        terminal.line(sentence)
    terminal.facts({"page": str(folder / PAGE), "trace": f"{folder / TRACE}, for https://ui.perfetto.dev"})
    return folder


def _worker(run: Run, folder: Path) -> Worker:
    """One whose whole batch is the share of it that the first of all workers has."""
    config, recipe = run.config, recipe_of(run.config)
    on_gpu = config.cluster.device == "cuda" or (config.cluster.device == "auto" and torch.cuda.is_available())
    torch.set_num_threads(run.threads)
    share = len(share_of(recipe.train.batch_size, 0, min(recipe.train.worker_range)))
    steps = _WARM_UP_STEPS + _MOST_STEPS + _PROFILED_STEPS
    train = recipe.train.model_copy(update={"batch_size": share, "num_workers": 1, "images": steps * share})
    job = job_of(run, folder, Recipe(recipe.objective, train, recipe.conditioning), identity={}, curve=None)
    return Worker(job, torch.device("cuda" if on_gpu else "cpu"))


def _measure(worker: Worker, config: Config, trace: Path) -> Profile:
    """Warms up, times steps, then profiles some. trace: where the latter are written."""
    meter = worker.meter()
    steps = worker.steps(meter)
    _go(steps, _WARM_UP_STEPS)
    worker.measured(meter)
    done = _FEWEST_STEPS
    _go(steps, done)
    while done < _MOST_STEPS and meter.seconds() < _STEPS_S:
        _go(steps, 1)
        done += 1
    figures = worker.measured(meter)
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (worker.device.type == "cuda")]
    with profile(activities=activities, acc_events=True) as profiler:
        _go(steps, _PROFILED_STEPS)
        profiled = worker.measured(meter)
    profiler.export_chrome_trace(str(trace))
    recipe, events = worker.job.recipe, profiler.key_averages()
    return Profile(
        name=config.name,
        device=worker.device,
        threads=worker.job.threads,
        precision=worker.step.precision,
        compiled=recipe.train.compile,
        images=recipe.train.batch_size,
        batch_size=config.train.batch_size,
        parameters=sum(parameter.numel() for parameter in worker.step.parameters),
        flops=training_flops(recipe.objective, recipe.conditioning, recipe.train.augmentation),
        figures=figures,
        step_s=figures["seconds"] / done,
        profiled_step_s=profiled["seconds"] / _PROFILED_STEPS,
        matmul_flop_per_s=meter.matmul_flop_per_s,
        operators=_operators(events, worker.device),
        waits=_calls(events, _WAITS),
        reads=_calls(events, _READS),
        memory_bytes=peak_memory_bytes(worker.device),
    )


def _go(steps: Iterator[int], number: int) -> None:
    for _ in islice(steps, number):
        pass


def _calls(events: EventList, names: tuple[str, ...]) -> float:
    count: int = sum(event.count for event in events if event.key in names)
    return count / _PROFILED_STEPS


def _operators(events: EventList, device: torch.device) -> list[Operator]:
    """Those of a step, the longest first. Time is their own: without that of operators that they call."""
    on_gpu = device.type == "cuda"
    found = [
        Operator(
            name=event.key,
            calls=event.count / _PROFILED_STEPS,
            seconds=(event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6 / _PROFILED_STEPS,
        )
        for event in events
        if event.device_type == DeviceType.CPU  # kernels are counted with the operators that start them
    ]
    return sorted((operator for operator in found if operator.seconds > 0), key=lambda each: -each.seconds)
