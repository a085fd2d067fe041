"""Our training step against a plain loop with diffusers' U-Net, and against denoising-diffusion-pytorch's trainer.

    python tests/benchmarks/step.py [--device cpu|cuda] [--batch-size N] [--rounds N] [--limit-s S] [--output FILE]

`contestants.py` says what the first two do and leave out. The third is the trainer that its users run, FID off: its
network of dim 64 on as large images, its averages, clipping, PNG files and loader processes. Its network is another
one, so what is compared is the rate of counted floating-point operations, forward and backward.

Contestants take turns, each ratio is a median over the rounds, and an idle machine is assumed. What is not installed,
or not reached within the limit, is named as left out. `--quick` only shows that the script works: a tiny network, and
nothing is compiled.
"""

import argparse
import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image

from contestants import (
    DDPM,
    TINY,
    Steps,
    Timed,
    best_settings,
    counted_flops,
    diffusers_steps,
    image_size,
    noise_images,
    our_steps,
    parameter_count,
    spec_of,
    training_flops,
)
from model import DDPMUNet, fast_precision
from records import OutOfTime, Record, Speeds, ratio, take_turns, time_limit

OURS, COMPILED, BF16, BEST = "ours, float32", "ours, float32 compiled", "ours, bf16", "ours, best settings"
CHANNELS_LAST = "ours, float32 channels_last"
THEIRS, THEIRS_COMPILED, THEIRS_BF16 = "diffusers, float32", "diffusers, float32 compiled", "diffusers, bf16"
TRAINER = "denoising-diffusion-pytorch"
GOALS = [
    (OURS, THEIRS, 1.0),
    (COMPILED, THEIRS_COMPILED, 1.1),
    (BEST, THEIRS_BF16, 2.5),
    (BEST, THEIRS, 3.0),
    (CHANNELS_LAST, OURS, 1.0),  # above it the step should be so without compilation, too: Inductor chooses by itself
]
TRAINER_GOAL = 1.5
TRAINER_LEAST_BATCH = 16  # it refuses smaller ones
TRAINER_IMAGES = 2000


def trainer_parts(network: DDPMUNet) -> tuple[torch.nn.Module, type]:
    """denoising-diffusion-pytorch's model, as its README makes it, and its trainer."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

    unet = Unet(dim=64, dim_mults=(1, 2, 4, 8)) if network == DDPM else Unet(dim=16, dim_mults=(1, 2))
    return GaussianDiffusion(unet, image_size=image_size(network)), Trainer


def trainer_flops(network: DDPMUNet) -> int:
    """Of forward and backward, for one image."""
    diffusion, _ = trainer_parts(network)
    side = image_size(network)
    return counted_flops(lambda: diffusion(torch.zeros(1, 3, side, side)).backward())


def trainer_steps(network: DDPMUNet, batch_size: int, device: torch.device, folder: Path) -> Steps:
    """Its trainer, on PNG files that are written to `folder`."""
    os.environ["ACCELERATE_USE_CPU"] = str(device.type == "cpu").lower()
    for number, image in enumerate(noise_images(network, TRAINER_IMAGES)):
        Image.fromarray(image.numpy()).save(folder / f"{number}.png")
    diffusion, trainer_type = trainer_parts(network)
    trainer = trainer_type(
        diffusion,
        str(folder),
        train_batch_size=batch_size,
        train_num_steps=0,
        save_and_sample_every=10**9,
        results_folder=str(folder / "results"),
        calculate_fid=False,
    )

    def run(steps: int) -> None:
        trainer.train_num_steps += steps
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trainer.train()

    return run


def contestants(
    network: DDPMUNet, batch_size: int, device: torch.device, turn_s: float, folder: Path
) -> dict[str, Timed]:
    """The ones that are ready soonest first, since the limit may pass while others compile."""

    def timed(make: Callable[..., Steps], size: int = batch_size, **settings: object) -> Timed:
        return Timed(partial(make, network, size, device, **settings), size, device, turn_s)

    made = {
        OURS: timed(our_steps, precision="fp32"),
        THEIRS: timed(diffusers_steps),
        CHANNELS_LAST: timed(our_steps, precision="fp32", channels_last=True),
    }
    if fast_precision(device) == "bf16":
        made[BF16] = timed(our_steps, precision="bf16")
        made[THEIRS_BF16] = timed(diffusers_steps, bf16=True)
    made[TRAINER] = timed(trainer_steps, max(batch_size, TRAINER_LEAST_BATCH), folder=folder)
    made[BEST] = timed(our_steps, **best_settings(device))
    if fast_precision(device) == "bf16":
        made[COMPILED] = timed(our_steps, precision="fp32", compile=True)
    made[THEIRS_COMPILED] = timed(diffusers_steps, compiled=True)
    return made


def report(speeds: Speeds, flops: dict[str, int], record: Record) -> None:
    """The ratios: a table, and into the record."""
    if COMPILED not in speeds and BEST in speeds:  # where bf16 gains nothing they are the same
        speeds = {**speeds, COMPILED: speeds[BEST]}
    ratios = {}
    for ours, theirs, goal in GOALS:
        if speeds.get(ours) and speeds.get(theirs):
            ratios[f"{ours} / {theirs}"] = {"ratio": ratio(speeds, ours, theirs), "goal": goal}
    for ours in (OURS, BEST):
        if speeds.get(ours) and speeds.get(TRAINER):
            per_flop = ratio(speeds, ours, TRAINER) * flops["ours"] / flops[TRAINER]
            ratios[f"{ours} / {TRAINER}, per FLOP"] = {"ratio": per_flop, "goal": TRAINER_GOAL}
    record["ratios"] = ratios
    print(f"\n{'':<62}{'ratio':>7}{'goal':>7}")
    for name, figures in ratios.items():
        print(f"{name:<62}{figures['ratio']:>7.2f}{figures['goal']:>7.1f}")


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit-s", type=float, default=900.0)
    parser.add_argument("--quick", action="store_true", help="a tiny network, nothing compiled")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device, network = torch.device(options.device), TINY if options.quick else DDPM
    record = Record(options.output, device)
    record["parameters"] = parameter_count(spec_of(network).build())
    record["batch_size"] = options.batch_size
    packages = dict.fromkeys((THEIRS, THEIRS_BF16, THEIRS_COMPILED), "diffusers")
    packages[TRAINER] = "denoising_diffusion_pytorch"
    missing = {name: f"{package} is not installed" for name, package in packages.items() if not find_spec(package)}
    flops = {"ours": training_flops(network)}
    if TRAINER not in missing:
        flops[TRAINER] = trainer_flops(network)
    record["flops_per_image"] = flops
    speeds: Speeds = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        turn_s = 0.5 if options.quick else 4.0
        runs = contestants(network, options.batch_size, device, turn_s, Path(folder))
        compiled = {BEST, COMPILED, THEIRS_COMPILED} if options.quick else set()
        present = {name: run.images_per_s for name, run in runs.items() if name not in missing.keys() | compiled}
        try:
            with time_limit(options.limit_s):
                take_turns(present, options.rounds, record, speeds)
        except OutOfTime as error:
            print(error)
    unreached = {name: "not reached within the limit" for name in present if not speeds.get(name)}
    record["left_out"] = missing | dict.fromkeys(compiled, "compiled, which --quick does not do") | unreached
    for name, why in record.content["left_out"].items():
        print(f"left out: {name}: {why}")
    report(speeds, flops, record)


if __name__ == "__main__":
    main()
