"""Speed of the fast Frechet distance: against torch-fidelity's, from the same statistics, once the reference is there.

    python tests/benchmarks/frechet.py [--features D] [--images N] [--rounds N] [--limit-s S] [--output FILE]

They take turns, and the ratio is the median over the rounds; an idle machine is assumed. The features are normal with a
spectrum that falls like a power, as those of images do. The reference's eigendecomposition, which is taken once and
kept, is timed by itself. `--quick` only shows that the script works.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from evaluation import fidelity
from evaluation.frechet import fast_frechet_distance
from evaluation.moments import Moments, Statistics
from records import OutOfTime, Record, Speeds, ratio, time_limit

OURS, THEIRS, GOAL = "ours", "torch-fidelity", 1.5


def statistics(images: int, features: int, seed: int) -> Statistics:
    """Of so many images, float64."""
    random = np.random.default_rng(seed)
    deviations = np.arange(1, features + 1) ** -0.5
    mix, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(features, features)))
    total = None
    for _ in range(-(-images // 1000)):
        part = Moments.of((random.normal(size=(1000, features)) * deviations + 0.1 * seed) @ mix)
        total = part if total is None else total.merged(part)
    assert total is not None
    return total.statistics


def timed(distance: Callable[[], float]) -> tuple[float, float]:
    """The distance, and seconds that it took."""
    began = time.perf_counter()
    return distance(), time.perf_counter() - began


def measure(options: argparse.Namespace, record: Record, speeds: Speeds) -> None:
    """Both in all rounds. OutOfTime on the way."""
    generated, reference = (statistics(options.images, options.features, seed) for seed in (1, 2))
    record["features"], record["images"] = options.features, options.images
    record["seconds of the reference's eigendecomposition"] = round(timed(lambda: float(reference.root[0, 0]))[1], 3)
    contestants: dict[str, Callable[[], float]] = {
        OURS: lambda: fast_frechet_distance(generated, reference),
        THEIRS: lambda: fidelity.frechet_distance(generated.mu, generated.sigma, reference.mu, reference.sigma),
    }
    ours, theirs = (timed(distance)[0] for distance in contestants.values())  # their times do not count
    record["relative difference"] = abs(ours - theirs) / theirs
    for number in range(options.rounds):
        for name, distance in contestants.items():
            seconds = timed(distance)[1]
            speeds.setdefault(name, []).append(1 / seconds)
            record["distances_per_s"] = speeds
            print(f"round {number + 1} of {options.rounds}: {name}: {seconds:.3f} s", flush=True)


def main() -> None:
    """Measures, prints the ratio, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit-s", type=float, default=600.0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.features, options.images, options.rounds = 64, 1000, 2
    record = Record(options.output, torch.device("cpu"))
    speeds: Speeds = {}
    try:
        with time_limit(options.limit_s):
            measure(options, record, speeds)
    except OutOfTime as stop:
        print(stop)
    if speeds.get(OURS) and speeds.get(THEIRS):
        found = round(ratio(speeds, OURS, THEIRS), 3)
        record["ratios"] = {f"{OURS} / {THEIRS}": {"ratio": found, "goal": GOAL}}
        print(f"{OURS} / {THEIRS}: {found:.2f}   goal {GOAL:g}")


if __name__ == "__main__":
    main()
