"""From noise to a score: ours on Ray against diffusers, PNG files and pytorch-fid; and what a second actor gains.

    python tests/benchmarks/scoring.py [--images N] [--steps N] [--rounds N] [--limit-s S] [--output FILE]

Both draw as many 16x16 images in as many steps of DDIM, by one U-Net of diffusers with random weights, take the same
small classifier's features of them and compare these with the same statistics of real images, which are there already.
Ours is `python -m pipeline evaluate` on two actors of one thread; beside the distance it gives all other scores. Theirs
is a script as their users write it: DDIMPipeline in batches as large as our chunks, a PNG file for each image, then
pytorch-fid's functions by its defaults, with the classifier where it has Inception, which on a CPU would take nearly
all of the time of both.

Each turn is a fresh process. Its work is what is compared first: the stages `sample`, with the start of its actors, and
`evaluate`; theirs from the first image to the distance. Then whole processes, with their imports and the start of Ray.
One actor draws a fifth of the images, and its rate is compared with that of the two, each after its start. An idle
machine is assumed. What is not installed, or not reached within the limit, is named as left out. `--quick` only shows
that the script works.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.classifier import ClassifierNetwork, load_classifier
from records import OutOfTime, Record, Speeds, ratio, time_limit

RUN_FILE = Path(__file__).parents[2] / "pipeline/runs/digits.yaml"
OURS, THEIRS = "ours", "diffusers, PNG, pytorch-fid"
OURS_WHOLE, THEIRS_WHOLE = f"{OURS}, whole process", f"{THEIRS}, whole process"
ONE, TWO = "one actor", "two actors"
GOALS = [(OURS, THEIRS, 1.5), (OURS_WHOLE, THEIRS_WHOLE, 1.5), (TWO, ONE, 1.7)]
SIZE, REAL_IMAGES, CLASSES = 16, 2000, 10
CHUNK_IMAGES = 250
ACTORS = 2
SHARE_OF_ONE = 5  # one actor draws one in so many images
LOADED_AT_ONCE = 50  # pytorch-fid's default


class InPlaceOfInception(nn.Module):
    """A classifier as pytorch-fid calls its network. images: float [B, 3, H, W] in [0, 1] -> [[B, D, 1, 1]]."""

    def __init__(self, network: ClassifierNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        features, _ = self.network(255 * images)
        return [features[..., None, None]]


@dataclass(frozen=True)
class Setting:
    """What both sides find in a folder: the model as either has it, the classifier, the statistics of real images."""

    folder: Path
    images: int
    steps: int

    @property
    def outputs(self) -> Path:
        """Of our pipeline."""
        return self.folder / "outputs"

    def made(self, widths: tuple[int, ...]) -> "Setting":
        """Writes what is drawn from and compared with. widths: of the levels of the U-Net, channels."""
        from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (REAL_IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
        np.savez(self.folder / "real.npz", images=pixels, labels=np.arange(REAL_IMAGES) % CLASSES)
        torch.manual_seed(0)
        levels = len(widths)
        network: Any = UNet2DModel(
            sample_size=SIZE,
            block_out_channels=widths,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        )
        DDIMPipeline(network, DDIMScheduler()).save_pretrained(self.folder / "theirs")
        command = ["import", str(self.folder / "theirs"), "--into", str(self.folder / "ours")]
        (self.folder / "import.txt").write_text(pipeline(command))
        self.run("reference")
        return self

    def run(self, stage: str, *overrides: str) -> float:
        """Our pipeline up to this stage. -> seconds of the whole process."""
        real = f"{self.folder}/real.npz"
        (score,) = [line for line in (self.folder / "import.txt").read_text().splitlines() if line.startswith("score")]
        settings = [
            *shlex.split(score.partition(" FILE ")[2]),
            f"data.source={{kind: arrays, images: {real}, labels: {real}}}",
            "evaluate.extractor={kind: classifier, images: 6_400}",
            f"sample.images={self.images}",
            f"sample.chunk_images={min(CHUNK_IMAGES, self.images)}",
            f"sample.sampler.steps={self.steps}",
            f"cluster.num_samplers={ACTORS}",
            "cluster.device=cpu",
            f"output={self.outputs}",
        ]
        began = time.perf_counter()
        pipeline([stage, str(RUN_FILE), *settings, *overrides])
        return time.perf_counter() - began

    def done(self, stage: str) -> dict[str, Any]:
        """What the stage that ended last has left: seconds and facts."""
        ended = self.outputs.glob(f"stages/{stage}-*/done.json")
        found: dict[str, Any] = json.loads(max(ended, key=lambda path: path.stat().st_mtime_ns).read_text())
        return found

    def one(self, name: str) -> Path:
        """The file of this name that the stage `reference` has left."""
        (found,) = self.outputs.glob(f"stages/reference-*/{name}")
        return found


def pipeline(arguments: list[str]) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def our_turn(setting: Setting, record: Record) -> Callable[[int], Mapping[str, float]]:
    """Images per second, by what they are of."""

    def turn(number: int) -> Mapping[str, float]:
        seconds = setting.run("evaluate", f"sample.seed={number * setting.images}")
        sampled, scored = setting.done("sample"), setting.done("evaluate")
        parts = {"sample": sampled["seconds"], "evaluate": scored["seconds"], "whole process": round(seconds, 2)}
        record[f"{OURS}, round {number + 1}"] = parts | {"distance": scored["facts"]["scores"]["fid_classifier"]}
        return {
            OURS: setting.images / (parts["sample"] + parts["evaluate"]),
            OURS_WHOLE: setting.images / seconds,
            TWO: sampled["facts"]["images_per_s"],
        }

    return turn


def one_actors_turn(setting: Setting) -> Callable[[int], Mapping[str, float]]:
    """Images per second of one actor."""
    images = setting.images // SHARE_OF_ONE

    def turn(number: int) -> Mapping[str, float]:
        setting.run("sample", f"sample.images={images}", f"sample.seed={number * images}", "cluster.num_samplers=1")
        return {ONE: setting.done("sample")["facts"]["images_per_s"]}

    return turn


def their_turn(setting: Setting, record: Record) -> Callable[[int], Mapping[str, float]]:
    """Images per second, by what they are of."""

    def turn(number: int) -> Mapping[str, float]:
        options = ["--images", str(setting.images), "--steps", str(setting.steps), "--theirs", str(setting.folder)]
        began = time.perf_counter()
        printed = subprocess.check_output([sys.executable, __file__, *options, "--seed", str(number)], text=True)
        seconds = time.perf_counter() - began
        found = json.loads(printed.splitlines()[-1])
        record[f"{THEIRS}, round {number + 1}"] = found | {"whole process": round(seconds, 2)}
        return {THEIRS: setting.images / (found["draw"] + found["score"]), THEIRS_WHOLE: setting.images / seconds}

    return turn


def their_script(setting: Setting, seed: int) -> dict[str, float]:
    """What their users run, in this process. -> seconds of drawing and of scoring, and the distance."""
    from diffusers import DDIMPipeline
    from pytorch_fid import fid_score

    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as drawn:
        began = time.perf_counter()
        theirs = DDIMPipeline.from_pretrained(setting.folder / "theirs")
        theirs.set_progress_bar_config(disable=True)
        for start in range(0, setting.images, CHUNK_IMAGES):
            count = min(CHUNK_IMAGES, setting.images - start)
            for number, image in enumerate(theirs(count, num_inference_steps=setting.steps).images, start):
                image.save(Path(drawn) / f"{number:06d}.png")
        drawn_after = time.perf_counter() - began
        network = load_classifier(setting.one("classifier.safetensors"))
        batch, features, workers = LOADED_AT_ONCE, network.architecture.features, min(8, len(os.sched_getaffinity(0)))
        generated, real = (
            fid_score.compute_statistics_of_path(
                str(path), InPlaceOfInception(network), batch, features, "cpu", workers
            )
            for path in (drawn, setting.one("statistics.npz"))
        )
        distance = fid_score.calculate_frechet_distance(*generated, *real)
        ended = time.perf_counter() - began
    return {"draw": round(drawn_after, 2), "score": round(ended - drawn_after, 2), "distance": float(distance)}


def measure(
    options: argparse.Namespace, folder: Path, missing: Mapping[str, str], record: Record, speeds: Speeds
) -> None:
    """All contestants in all rounds. OutOfTime on the way."""
    setting = Setting(folder, options.images, options.steps).made((32,) if options.quick else (32, 64))
    turns = {OURS: our_turn(setting, record), ONE: one_actors_turn(setting), THEIRS: their_turn(setting, record)}
    for number in range(options.rounds):
        for contestant, turn in turns.items():
            if contestant in missing:
                continue
            for name, speed in turn(number).items():
                speeds.setdefault(name, []).append(speed)
                record["images_per_s"] = speeds
                print(f"round {number + 1} of {options.rounds}: {name}: {speed:,.1f} images/s", flush=True)


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=1200.0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--quick", action="store_true", help="few images of a tiny network")
    parser.add_argument("--theirs", type=Path, help=argparse.SUPPRESS)  # in whose folder this process is to do it
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.theirs:
        print(json.dumps(their_script(Setting(options.theirs, options.images, options.steps), options.seed)))
        return
    if options.quick:
        options.images, options.steps = 100, 2
    record = Record(options.output, torch.device("cpu"))
    record["images"], record["steps"] = options.images, options.steps
    missing = {} if find_spec("pytorch_fid") else {THEIRS: "pytorch_fid is not installed"}
    speeds: Speeds = {}
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, time_limit(options.limit_s):
            measure(options, Path(folder), missing, record, speeds)
    except OutOfTime as stop:
        print(stop)
    report(speeds, missing, record)


def report(speeds: Speeds, missing: Mapping[str, str], record: Record) -> None:
    """The ratios, and what there is none of: printed, and into the record."""
    unreached = {name: "not reached within the limit" for name in (OURS, THEIRS, ONE) if not speeds.get(name)}
    record["left_out"] = unreached | dict(missing)
    record["ratios"] = {
        f"{ours} / {theirs}": {"ratio": round(ratio(speeds, ours, theirs), 3), "goal": goal}
        for ours, theirs, goal in GOALS
        if speeds.get(ours) and speeds.get(theirs)
    }
    for name, why in record.content["left_out"].items():
        print(f"left out: {name}: {why}")
    for name, found in record.content["ratios"].items():
        print(f"{name:<70} {found['ratio']:6.2f}   goal {found['goal']:g}")


if __name__ == "__main__":
    main()
