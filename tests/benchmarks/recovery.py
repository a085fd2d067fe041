"""What starting, a killed worker and a checkpoint cost a training, beside what Ray Train alone costs.

    python tests/benchmarks/recovery.py [--rounds N] [--output FILE]

First, in this process: how long a step waits for a checkpoint of the CIFAR-10 network, and how long its writing takes.

Then two contestants take turns, each a fresh process: `python -m pipeline train` on the digits, and the shortest script
that has Ray Train take DDP steps of the same network by as many workers. Of each: seconds from the start of the process
to the first step, and from the SIGKILL of a worker to the next new step. The pipeline reads shards, joins MLflow, makes
a checkpoint every ten steps and averages weights; the script does none of that, and begins anew after the kill.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load
from pipeline.training.checkpoint import CheckpointWriter, Snapshot
from pipeline.training.curve import read_curve
from pipeline.training.train import recipe_of
from pipeline.training.train_step import TrainStep
from records import Record

RUNS = Path(__file__).parents[2] / "pipeline/runs"
WORKERS = 2
DEADLINE_S = 180
DYING_S = 1.0  # steps that end so soon after a kill were under way before it

BARE = """
import os, pathlib, sys, time
import ray, torch
from ray import train
from ray.train import RunConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from ray.train.v2.api.config import FailureConfig, ScalingConfig

def loop(config):
    from pipeline.runfile.config import Config
    from pipeline.runfile.configfile import load
    torch.set_num_threads(1)
    network = prepare_model(load(pathlib.Path(config["file"]), [], Config).spec.build())
    optimizer = torch.optim.Adam(network.parameters())
    while True:
        network(torch.randn(32, 1, 8, 8), torch.zeros(32, dtype=torch.long)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if train.get_context().get_world_rank() == 0:
            with open(config["times"], "a") as file:
                file.write(f"{time.time()}\\n")

file, folder, workers = sys.argv[1:]
ray.init("local", include_dashboard=False, log_to_driver=False, object_store_memory=256 * 1024**2)
TorchTrainer(
    loop,
    train_loop_config={"file": file, "times": f"{folder}/times"},
    torch_config=TorchConfig(backend="gloo"),
    scaling_config=ScalingConfig(num_workers=int(workers), resources_per_worker={"CPU": 1}),
    run_config=RunConfig(name="bare", storage_path=folder, failure_config=FailureConfig(max_failures=3)),
).fit()
"""


def bare_times(folder: Path) -> list[float]:
    """When each step of the script ended, Unix time."""
    path = folder / "times"
    return [float(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def pipeline_times(folder: Path) -> list[float]:
    """When each step of the pipeline ended, Unix time; those repeated after a kill are not among them."""
    trainings = list(folder.glob("outputs/stages/train-*"))
    return [point["time_ms"] / 1000 for point in read_curve(trainings[0])] if trainings else []


def started_and_killed(command: list[str], times: Callable[[Path], list[float]], folder: Path) -> tuple[float, float]:
    """-> seconds from the start to the first step, and from the kill of a worker to the next step."""
    began = time.time()
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as driver:
        try:
            wait_until(lambda: len(times(folder)) > 40)
            first = times(folder)[0] - began
            killed = time.time()
            kill_a_worker()
            wait_until(lambda: times(folder)[-1] > killed + DYING_S)
            return first, next(moment for moment in times(folder) if moment > killed + DYING_S) - killed
        finally:
            driver.send_signal(signal.SIGINT)
            try:
                driver.wait(60)
            except subprocess.TimeoutExpired:
                driver.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns once it holds. AssertionError after DEADLINE_S."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"nothing for {DEADLINE_S} s"
        time.sleep(0.05)


def kill_a_worker() -> None:
    """The first one that Ray Train runs on this machine, where nothing else should be running."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if path.read_bytes().startswith(b"ray::RayTrainWorker"):
            os.kill(int(path.parent.name), signal.SIGKILL)
            return
    raise AssertionError("no worker is alive")


def measure_ray(rounds: int, record: Record) -> dict[str, list[tuple[float, float]]]:
    """By contestant, the two figures of each round, as of `started_and_killed`."""
    file = str(RUNS / "digits.yaml")
    ours = [sys.executable, "-m", "pipeline", "train", file, f"train.num_workers={WORKERS}", "train.batch_size=64"]
    ours += ["train.images=10_000_000", "train.log_images=64", "train.checkpoint_images=640", "output=outputs"]
    found: dict[str, list[tuple[float, float]]] = {"ray train alone": [], "pipeline": []}
    for number in range(rounds):
        for name, times in (("ray train alone", bare_times), ("pipeline", pipeline_times)):
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                bare = [sys.executable, "-c", BARE, file, folder, str(WORKERS)]
                command = ours if name == "pipeline" else bare
                found[name].append(started_and_killed(command, times, Path(folder)))
            record["first_step_s_and_after_a_kill_s"] = found
            first, again = found[name][-1]
            print(
                f"round {number + 1} of {rounds}: {name}: first step {first:.1f} s, after a kill {again:.1f} s",
                flush=True,
            )
    return found


def measure_checkpoint() -> dict[str, float]:
    """Of the CIFAR-10 network on the CPU: bytes, seconds that a step waits, seconds until the checkpoint is written."""
    recipe = recipe_of(load(RUNS / "cifar10.yaml", [], Config))
    state = TrainStep(recipe, torch.device("cpu")).state
    for parameter in state.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()  # makes its moments
    waits, wholes, size = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), keep=1, timeout_s=60, tell=print)
        for number in range(3):
            state.images_seen = number + 1
            began = time.perf_counter()
            writer.save(Snapshot.of(state, {}))
            waits.append(time.perf_counter() - began)
            writer.wait()
            wholes.append(time.perf_counter() - began)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {"bytes": size, "step_waits_s": statistics.median(waits), "written_after_s": statistics.median(wholes)}


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    record = Record(options.output, torch.device("cpu"))
    checkpoint = measure_checkpoint()
    record["checkpoint"] = checkpoint
    found = measure_ray(options.rounds, record)
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    print(f"{'':<18}{'first step':>12}{'after a kill':>14}")
    for name, (first, again) in medians.items():
        print(f"{name:<18}{first:>10.1f} s{again:>12.1f} s")
    print(
        f"a checkpoint of {checkpoint['bytes'] / 1e6:,.0f} MB: a step waits {checkpoint['step_waits_s']:.2f} s, "
        f"written after {checkpoint['written_after_s']:.2f} s"
    )


if __name__ == "__main__":
    main()
