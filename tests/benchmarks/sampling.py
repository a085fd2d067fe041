"""Speed of DDIM: ours against diffusers' DDIMPipeline, with the weights of one network.

    python tests/benchmarks/sampling.py [--device cpu|cuda] [--batch-size N] [--steps N] [--rounds N] [--limit-s S]
        [--output FILE]

Both draw as many images at a time in as many steps of eta 0 with Ho et al.'s 35.7M U-Net, from noise to uint8 images;
theirs without its progress bar. Ours takes turns with theirs, first as it is by default, then in its best settings, and
each ratio is a median over the rounds; an idle machine is assumed. Before its rounds ours draws once, to compile what
has to be, and what it draws is compared. What is not reached within the limit is named as left out. `--quick` only
shows that the script works: a tiny network, and nothing is compiled.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contestants import DDPM, TINY, diffusers_unet, spec_of
from diffusers_weights import copy_weights
from model import DDIM, DDPMUNet, Execution, TrainedModel, fast_precision, generate
from records import OutOfTime, Record, Speeds, ratio, take_turns, time_limit

OURS, BEST = "ours, float32", "ours, best settings"
THEIRS, THEIRS_AGAIN = "diffusers, float32", "diffusers, float32, again"
GOALS = [(OURS, THEIRS, 1.1), (BEST, THEIRS_AGAIN, 3.0)]

Draw = Callable[[], Any]
"""A batch of images."""


def best_execution(device: torch.device) -> Execution:
    """With which ours is the fastest there."""
    return Execution(precision=fast_precision(device), compile=True)


def our_draw(theirs: Any, network: DDPMUNet, batch_size: int, steps: int, execution: Execution) -> Draw:
    """-> uint8 [B, H, W, 3] on the device."""
    spec = spec_of(network)
    ours = spec.build().eval().requires_grad_(False)
    copy_weights(theirs, ours, network.blocks_per_level)
    model = TrainedModel(spec, execution.of(ours.to(theirs.device)))
    sampler = DDIM(steps=steps, grid="leading", clip="x0")
    seeds = torch.arange(batch_size, device=theirs.device)
    return lambda: generate(model, sampler, seeds)


def their_draw(theirs: Any, batch_size: int, steps: int) -> Draw:
    """-> float32 [B, H, W, 3] in [0, 1], as their pipeline gives arrays."""
    from diffusers import DDIMPipeline, DDIMScheduler

    pipeline = DDIMPipeline(theirs, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(batch_size, eta=0.0, num_inference_steps=steps, output_type="np").images


def images_per_s(draw: Draw, batch_size: int, device: torch.device) -> Callable[[int], float]:
    """Of one batch, until its images are there."""

    def timed(_round: int) -> float:
        began = time.perf_counter()
        draw()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return batch_size / (time.perf_counter() - began)

    return timed


def measure(options: argparse.Namespace, record: Record, speeds: Speeds) -> None:
    """All contestants in all rounds. OutOfTime on the way."""
    network, device = TINY if options.quick else DDPM, torch.device(options.device)
    batch_size, steps = options.batch_size, options.steps
    theirs = diffusers_unet(network).to(device).eval()
    their_turn = images_per_s(their_draw(theirs, batch_size, steps), batch_size, device)
    their_turn(0)  # which does not count
    pairs = [(OURS, THEIRS, Execution())]
    if not options.quick:
        pairs.append((BEST, THEIRS_AGAIN, best_execution(device)))
    drawn: dict[str, Tensor] = {}
    for name, other, execution in pairs:
        began = time.perf_counter()
        draw = our_draw(theirs, network, batch_size, steps, execution)
        drawn[name] = draw().int()
        record[f"{name}, execution"] = execution.model_dump()
        record[f"{name}, largest difference of a grey level"] = int((drawn[name] - drawn[OURS]).abs().max())
        print(f"{name}: first images after {time.perf_counter() - began:.0f} s", flush=True)
        take_turns({other: their_turn, name: images_per_s(draw, batch_size, device)}, options.rounds, record, speeds)


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit-s", type=float, default=600.0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    record = Record(options.output, torch.device(options.device))
    speeds: Speeds = {}
    try:
        with time_limit(options.limit_s):
            measure(options, record, speeds)
    except OutOfTime as stop:
        print(stop)
    ratios = {
        f"{ours} / {theirs}": {"ratio": round(ratio(speeds, ours, theirs), 3), "goal": goal}
        for ours, theirs, goal in GOALS
        if speeds.get(ours) and speeds.get(theirs)
    }
    record["ratios"] = ratios
    record["left_out"] = [name for name in (OURS, BEST) if not speeds.get(name)]
    for name, found in ratios.items():
        print(f"{name:<45} {found['ratio']:6.2f}   goal {found['goal']:g}")


if __name__ == "__main__":
    main()
