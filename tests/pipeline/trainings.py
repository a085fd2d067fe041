"""Trainings for tests: prepared runs of a tiny model, their one worker in this process alone, and what it left."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch

from pipeline.clusters.cluster import Cluster
from pipeline.data.prepare import Prepare
from pipeline.files import write_text
from pipeline.runfile.config import Config
from pipeline.stage import Result, Run
from pipeline.terminal import Terminal
from pipeline.training.checkpoint import CHECKPOINTS, OPTIMIZER, SPEC, newest_checkpoint
from pipeline.training.curve import read_curve, recorded, restore_curve
from pipeline.training.preview import Preview
from pipeline.training.train import Train, _keep_weights, job_of, recipe_of
from pipeline.training.train_loop import Worker

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": {"kind": "digits"}, "image_size": 8, "channels": 1, "heldout_fraction": 0.2},
    "network": {
        "kind": "ddpm_unet",
        "base_channels": 8,
        "channel_multipliers": [1],
        "blocks_per_level": 1,
        "attention_sizes": [],
    },
    "path": {"kind": "vp_cosine"},
    "evaluate": {"extractor": {"kind": "classifier"}},
    "register": {"model_name": "tiny"},
}
"""Of a run file, what is left are `train` and `sample`."""
POINT = {
    "seconds": 2.0,
    "images_per_s": 100.0,
    "flop_per_s": 41.23e9,
    "matmul_fraction": 0.321,
    "compute_share": 0.91,
    "communication_share": 0.06,
    "data_share": 0.0,
    "other_share": 0.03,
}
"""What a point of the curve says of the time."""


def prepared(settings: dict[str, Any], output: Path, cluster: Cluster | None, **train: Any) -> Run:
    """A run of these settings whose shards are packed."""
    whole = settings | {"output": str(output), "train": settings["train"] | train}
    run = Run(Config.model_validate(whole), Terminal(), cluster)
    run.results["prepare"] = Prepare().finish(run)
    return run


def train_here(run: Run) -> Result:
    """The train stage by one worker that is this process; Ray only collects its curve. Seconds earlier than by Ray."""
    folder = Train().folder(run)
    train_in(folder, run)
    write_text(folder / SPEC, run.config.spec.model_dump_json())
    return Result(
        folder, _keep_weights(folder, run.config.train.steps * run.config.train.batch_size), 0.0, reused=False
    )


def train_in(folder: Path, run: Run, preview: Preview | None = None) -> None:
    """The training alone, to its end, which may be an early one. preview: what is drawn of its checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    restore_curve(folder, [])
    with recorded(folder, 60, lambda _: None) as curve:
        worker = worker_of(run, folder, curve, preview=preview)
        worker.resume(worker.newest_checkpoint())
        worker.run()


def worker_of(
    run: Run, folder: Path, curve: Any = None, timeout_s: float = 60, preview: Preview | None = None
) -> Worker:
    """The one worker of this run's training, as it is before it looks for a checkpoint.

    folder: where it trains. curve: the actor that takes its points; None: it has none to give.
    """
    job = job_of(run, folder, recipe_of(run.config), Train().identity(run), curve, preview)
    return Worker(replace(job, threads=1, timeout_s=timeout_s), torch.device("cpu"))


def losses(folder: Path) -> list[tuple[int, float]]:
    """Of the curve, with the images seen by then."""
    return [(point["images"], point["loss"]) for point in read_curve(folder)]


def assert_same_state(found: Path, expected: Path) -> None:
    """Weights, averages, optimizer and whatever else the newest checkpoints of two trainings hold, to the last bit."""
    newest = [newest_checkpoint(folder) for folder in (found, expected)]
    assert newest[0] is not None
    assert newest[1] is not None
    assert newest[0].name == newest[1].name
    names = sorted(path.name for path in newest[1].glob("*.safetensors"))
    assert len(names) >= 2
    for name in names:
        assert (newest[0] / name).read_bytes() == (newest[1] / name).read_bytes(), name
    moments = [torch.load(path / OPTIMIZER, weights_only=True)["state"] for path in newest]
    assert moments[0].keys() == moments[1].keys() != set()
    for number, state in moments[1].items():
        for name, value in state.items():
            assert torch.equal(moments[0][number][name], value), f"{number}.{name}"


def drafts(folder: Path) -> list[Path]:
    """Checkpoints of this training that are being written."""
    return list((folder / CHECKPOINTS).glob(".writing-*"))


def processes_of(name: str) -> list[int]:
    """Those below this one that Ray says run `name`."""
    me, found = os.getpid(), []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(f"ray::{name}".encode()) and me in _ancestors(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:  # it has just ended
            continue
    return found


def kill(name: str, count: int = 1) -> None:
    """SIGKILL to the first processes below this one that run `name`."""
    pids = processes_of(name)
    assert pids, f"no {name} is alive"
    for pid in pids[:count]:
        os.kill(pid, signal.SIGKILL)


@contextmanager
def paced(name: str, over: Event) -> Iterator[None]:
    """Lets processes that run `name` go on for a tenth of each second until it is over: so a training that must hand
    them its points takes a second for one or two, however fast the machine.
    """

    def pace() -> None:
        while not over.is_set():
            signal_all(signal.SIGSTOP)
            over.wait(0.9)
            signal_all(signal.SIGCONT)
            over.wait(0.1)

    def signal_all(what: signal.Signals) -> None:
        for pid in processes_of(name):
            with suppress(ProcessLookupError):
                os.kill(pid, what)

    pacing = Thread(target=pace)
    pacing.start()
    try:
        yield
    finally:
        over.set()
        pacing.join()


def _ancestors(pid: int) -> Iterator[int]:
    """The process that started this one, the one that started that, and so on."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid
