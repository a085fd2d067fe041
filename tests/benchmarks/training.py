"""Steady training speed of the whole pipeline, against a bare PyTorch loop over tensors in memory.

    python tests/benchmarks/training.py [--images N] [--rounds N] [--output FILE]

All train the network of `digits.yaml` with its batch, in float32, not compiled, by Adam's fused kernel, on two threads;
they take turns, so that what else the machine does falls on all. What the bare loop lacks: averaged weights, clipping,
steps left out where they are not finite, noise as a function of an image's position, the reader and its order, the
curve, MLflow, checkpoints, Ray. The step alone has the first four of these and is taken in the same process as the bare
loop's: what the pipeline loses beyond it is not the step's. Ratios are medians over the rounds; an idle machine is
assumed. Of the time of two workers it is told, too, which share goes into what, as the training curve has it.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch.nn.functional import mse_loss

from model import VPCosine, to_unit_range
from pipeline.data.prepare import Prepare
from pipeline.data.reader import ShardReader
from pipeline.flow import run_flow
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load
from pipeline.stage import Run
from pipeline.terminal import Terminal
from pipeline.training.curve import read_curve
from pipeline.training.train import recipe_of
from pipeline.training.train_step import Batch, TrainStep
from records import Record, Speeds, ratio, take_turns

RUN_FILE = Path(__file__).parents[2] / "pipeline/runs/digits.yaml"
BARE = "bare loop, 1 process of 2 threads"
STEP = "our step alone, the same process"
ONE, TWO = "pipeline, 1 worker of 2 threads", "pipeline, 2 workers of 1 thread"
GOAL = 0.97

Shares = dict[str, float]
"""Of the time of a training, by what it went into."""


def bare_loop(config: Config, images: torch.Tensor, seconds: float) -> float:
    """Images per second of the shortest honest DDPM training loop. images: uint8 [N, H, W, C]."""
    torch.set_num_threads(2)
    network = config.spec.build()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.train.learning_rate, fused=True)
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

    return batch * steps_per_s(step, seconds)


def steps_per_s(step: Callable[[], None], seconds: float) -> float:
    """Once it has warmed up."""
    for _ in range(20):
        step()
    steps, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        step()
        steps += 1
    return steps / elapsed


def step_alone(config: Config, images: torch.Tensor, seconds: float) -> float:
    """Images per second of the pipeline's training step on images that lie in memory. images: uint8 [N, H, W, C]."""
    torch.set_num_threads(2)
    step, batch = TrainStep(recipe_of(config), torch.device("cpu")), config.train.batch_size
    labels = torch.full((batch,), -1)

    def take() -> None:
        chosen = images[torch.randint(len(images), (batch,))]
        step(Batch(step.state.images_seen, chosen, labels))

    return batch * steps_per_s(take, seconds)


def pipeline_speed(workers: int, images: int, output: str, shares: dict[int, Shares], round_: int) -> float:
    """Images per second of a training, with two CPU cores shared by its workers, once it has warmed up, as the others.

    What their time went into is put into `shares`, by their number.
    """
    overrides = [
        f"train.images={images}",
        f"train.num_workers={workers}",
        f"cluster.cpus_per_worker={2 // workers}",
        "train.precision=fp32",
        f"train.seed={1000 * workers + round_}",  # another result each time, so that nothing is found again
        f"train.log_images={images // 10}",
        f"output={output}",
    ]
    run = run_flow(load(RUN_FILE, overrides, Config), Terminal(Console(quiet=True)), until="train")
    points = read_curve(run.results["train"].folder)[1:]  # in what comes before the first, libraries choose kernels
    shares[workers] = time_shares(points)
    seconds = sum(point["seconds"] for point in points)
    return sum(point["images_per_s"] * point["seconds"] for point in points) / seconds


def time_shares(points: Sequence[Mapping[str, float]]) -> Shares:
    """Means over some points of a curve, by the time between them."""
    names = [name.removesuffix("_share") for name in points[0] if name.endswith("_share")]
    seconds = sum(point["seconds"] for point in points)
    return {name: sum(point[f"{name}_share"] * point["seconds"] for point in points) / seconds for name in names}


def measure(images: int, rounds: int, record: Record) -> tuple[Speeds, dict[int, Shares]]:
    """Images per second of each contestant in each round; shares of the last round by number of workers."""
    speeds: Speeds = {}
    shares: dict[int, Shares] = {}
    with tempfile.TemporaryDirectory() as output:
        config = load(RUN_FILE, [f"output={output}", "train.precision=fp32"], Config)
        run = Run(config, Terminal(Console(quiet=True)))
        run.results["prepare"] = Prepare().finish(run)
        reader = ShardReader(run.index, "train", "host")
        data = torch.from_numpy(reader.read(torch.arange(len(reader)).numpy()))
        contestants: dict[str, Callable[[int], float]] = {
            BARE: lambda _: bare_loop(config, data, 20.0),
            STEP: lambda _: step_alone(config, data, 20.0),
            ONE: partial(pipeline_speed, 1, images, output, shares),
            TWO: partial(pipeline_speed, 2, images, output, shares),
        }
        take_turns(contestants, rounds, record, speeds)
    return speeds, shares


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    record = Record(options.output, torch.device("cpu"))
    speeds, shares = measure(options.images, options.rounds, record)
    ratios = {name: ratio(speeds, name, BARE) for name in (STEP, ONE, TWO)}
    record["ratio_to_bare_loop"] = ratios
    record["shares_of_time_by_workers"] = shares
    print(f"\n{'':<36}{'ratio to the bare loop':>24}{'goal':>7}")
    for name, value in ratios.items():
        print(f"{name:<36}{value:>24.2f}{GOAL:>7.2f}")
    two_to_one = ratio(speeds, TWO, ONE)
    record["two_workers_to_one"] = two_to_one
    print(f"two workers to one: {two_to_one:.2f}; {explanation(two_to_one, shares[2])}")


def explanation(two_to_one: float, shares: Shares) -> str:
    """Where the time of two workers goes, and what the ratio would be if they did not have to wait for each other."""
    parts = ", ".join(f"{share:.1%} {name}" for name, share in shares.items())
    if "communication" not in shares:
        return f"of their time {parts}"
    alone = two_to_one / (1 - shares["communication"])
    return (
        f"of their time {parts}. Without waiting for each other's gradients it would be {alone:.2f}: the rest is the "
        "difference between one network on two threads and two networks on a thread each"
    )


if __name__ == "__main__":
    main()
