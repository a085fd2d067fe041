"""Steady training speed of the whole pipeline, against a bare PyTorch loop over tensors in memory.

    python tests/benchmarks/training.py [--images N] [--rounds N] [--output FILE]

Both train the network of `digits.yaml` with its batch and the same number of threads; they take turns, so that what
else the machine does falls on all. The bare loop has no averaged weights, no clipping, no reader, no curve, no
checkpoints and no Ray. Ratios are of medians over the rounds; an idle machine is assumed.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from torch.nn.functional import mse_loss

from model import VPCosine, to_unit_range
from pipeline.config import Config
from pipeline.configfile import load
from pipeline.flow import run_flow
from pipeline.prepare import Prepare
from pipeline.reader import ShardReader
from pipeline.stage import Run
from pipeline.terminal import Terminal

RUN_FILE = Path(__file__).parents[2] / "pipeline/runs/digits.yaml"


def bare_loop(config: Config, images: torch.Tensor, seconds: float) -> float:
    """Images per second of the shortest honest DDPM training loop. images: uint8 [N, H, W, C]."""
    torch.set_num_threads(2)
    network = config.spec.build()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.train.learning_rate)
    assert isinstance(config.path, VPCosine)
    alpha_bar = config.path.alpha_bar(torch.arange(config.path.T)).float()
    data, batch = to_unit_range(images), config.train.batch_size

    def step() -> None:
        x0 = data[torch.randint(len(data), (batch,))]
        t = torch.randint(config.path.T, (batch,))
        eps, a = torch.randn_like(x0), alpha_bar[t].view(-1, 1, 1, 1)
        loss = mse_loss(network(a.sqrt() * x0 + (1 - a).sqrt() * eps, t), eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(20):
        step()
    steps, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        step()
        steps += 1
    return steps * batch / elapsed


def pipeline_speed(workers: int, images: int, output: str, round_: int) -> float:
    """Images per second that the train stage reports, with two CPU cores shared by its workers."""
    overrides = [
        f"train.images={images}",
        f"train.num_workers={workers}",
        f"cluster.cpus_per_worker={2 // workers}",
        f"train.seed={1000 * workers + round_}",  # another result each time, so that nothing is found again
        f"train.log_images={images // 10}",
        f"output={output}",
    ]
    run = run_flow(load(RUN_FILE, overrides, Config), Terminal(Console(quiet=True)), until="train")
    speed: float = run.results["train"].facts["images_per_s"]
    return speed


def measure(images: int, rounds: int) -> dict[str, list[float]]:
    """Images per second of each contestant in each round."""
    with tempfile.TemporaryDirectory() as output:
        config = load(RUN_FILE, [f"output={output}"], Config)
        run = Run(config, Terminal(Console(quiet=True)))
        run.results["prepare"] = Prepare().finish(run)
        reader = ShardReader(run.index, "train", "host")
        data = torch.from_numpy(reader.read(torch.arange(len(reader)).numpy()))
        contestants: dict[str, Callable[[int], float]] = {
            "bare loop, 1 process of 2 threads": lambda _: bare_loop(config, data, 20.0),
            "pipeline, 1 worker of 2 threads": lambda number: pipeline_speed(1, images, output, number),
            "pipeline, 2 workers of 1 thread": lambda number: pipeline_speed(2, images, output, number),
        }
        speeds: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(rounds):
            for name, contestant in contestants.items():
                speeds[name].append(contestant(number))
                print(f"round {number + 1} of {rounds}: {name}: {speeds[name][-1]:,.0f} images/s", flush=True)
    return speeds


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    speeds = measure(options.images, options.rounds)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    base = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"{name:<36} {median:8,.0f} images/s   {median / base:.2f} of the bare loop")
    record = {
        "command": f"python tests/benchmarks/training.py --images {options.images} --rounds {options.rounds}",
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{torch.get_num_threads()} threads of {platform.processor() or platform.machine()}",
        "torch": torch.__version__,
        "images_per_s": speeds,
        "ratio_to_bare_loop": {name: round(median / base, 3) for name, median in medians.items()},
    }
    if options.output:
        options.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
