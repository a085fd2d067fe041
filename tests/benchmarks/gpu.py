"""What a GPU does with Ho et al.'s 35.7M U-Net: is it right, how fast, what share of the device, and why not more.

    PYTHONPATH=. python tests/benchmarks/gpu.py [--parts NAME ...] [--limit-s S] [--cifar10 FILE.npy] [--output FILE]

Needs torch, numpy and pydantic alone; diffusers is compared with where it is installed. FILE.npy holds CIFAR-10's
training images, uint8 [N, 32, 32, 3]; without it the loss curves are left out. Parts that fail say so in the record and
the next ones go on; the limit is of wall-clock time, and what it cuts short keeps the figures it has.
`--device cpu --quick` goes through all parts with a tiny network, for a look at whether the script works.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contestants import (
    DDPM,
    TINY,
    Steps,
    Timed,
    best_settings,
    counted_flops,
    diffusers_steps,
    image_size,
    new_step,
    noise_images,
    our_steps,
    parameter_count,
    spec_of,
    take_step,
    training_flops,
)
from model import (
    DDIM,
    DDPMUNet,
    Execution,
    Stream,
    TrainedModel,
    float32_products,
    generate,
    normal,
    to_unit_range,
)
from records import OutOfTime, Record, Speeds, ratio, take_turns, time_limit
from roofline import Roofline, matmul_rate, memory_rate, seconds_of

FLOAT32, BF16 = {"precision": "fp32"}, {"precision": "bf16"}
EAGER_BF16, BEST = "ours, bf16 eager", "ours, best settings"
CHANNELS_LAST = "ours, bf16 eager, channels_last"
DIFFUSERS_BF16 = "diffusers, bf16 eager"

Figures = Iterator[tuple[str, Any]]
"""Names and values, as they are measured."""


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    network: DDPMUNet
    batch_size: int
    batch_sizes: tuple[int, ...]
    sampling_batch: int
    sampling_steps: int
    matrices: tuple[int, ...]
    memory_bytes: int
    turn_s: float
    rounds: int
    equal_steps: int
    """So many losses of two arithmetics are compared one by one."""
    quiet_steps: int
    """Without a wait for the device."""
    curve_steps: int


FULL = Sizes(DDPM, 128, (32, 256, 1024), 512, 10, (4096, 8192), 2**30, 3.0, 3, 20, 1000, 2000)
QUICK = Sizes(TINY, 2, (1,), 2, 2, (64,), 2**16, 0.01, 1, 2, 2, 2)


@dataclass
class Bench:
    """What the parts share."""

    device: torch.device
    sizes: Sizes
    best: dict[str, Any]
    record: Record
    cifar10: Tensor | None
    rate: float = float("nan")
    """FLOP/s of bf16 matrix products, as measured."""
    memory: float = float("nan")
    """Bytes/s."""

    def share(self, images_per_s: float, flops_per_image: int) -> float:
        """Of the measured matmul rate."""
        return images_per_s * flops_per_image / self.rate


def correctness(bench: Bench) -> Figures:
    """Loss and gradient of one batch in each arithmetic beside float64; then the losses of the first steps."""
    sizes, device = bench.sizes, bench.device
    step = new_step(sizes.network, sizes.batch_size, device, learning_rate=1e-3, **FLOAT32)
    images = noise_images(sizes.network, sizes.batch_size)
    for _ in range(sizes.equal_steps):  # at first the network says nothing
        take_step(step, images)
    network, objective, spec = step.state.network, step.recipe.objective, step.spec
    t = torch.linspace(spec.path.t_min, spec.path.t_max, len(images), dtype=torch.float64, device=device).round()
    eps = normal(0, Stream.NOISE, torch.arange(len(images), device=device), spec.latent_shape)

    def loss_and_gradient(dtype: torch.dtype, bf16: bool = False) -> tuple[float, Tensor]:
        network.to(dtype).zero_grad()
        x0 = to_unit_range(images.to(device)).to(dtype)
        with float32_products("fp32"):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = objective.losses(network, x0, t, eps.to(dtype), None, None).double().mean()
            loss.backward()
        gradient = torch.cat([parameter.grad.double().flatten() for parameter in network.parameters()])
        return loss.item(), gradient

    exact, exact_gradient = loss_and_gradient(torch.float64)
    for name, bf16 in (("float32", False), ("bf16", True)):
        loss, gradient = loss_and_gradient(torch.float32, bf16)
        yield f"{name}, relative error of the loss", abs(loss - exact) / exact
        error = (gradient - exact_gradient).norm() / exact_gradient.norm()
        yield f"{name}, relative error of the gradient", error.item()
    expected = losses(bench, FLOAT32, images.split(sizes.batch_size) * sizes.equal_steps)
    compared = {"bf16 eager": BF16, "best settings": bench.best}
    for name, settings in compared.items():
        found = losses(bench, settings, images.split(sizes.batch_size) * sizes.equal_steps)
        largest = ((found - expected).abs() / expected).max().item()
        yield f"{name}, largest relative difference from float32 eager in {sizes.equal_steps} steps", largest


def losses(bench: Bench, settings: dict[str, Any], batches: tuple[Tensor, ...]) -> Tensor:
    """The loss of each step of a new training, on these batches. -> float64 [steps]."""
    step = new_step(bench.sizes.network, len(batches[0]), bench.device, **settings)
    return torch.stack([take_step(step, batch) for batch in batches]).double().cpu()


def rates(bench: Bench) -> Figures:
    """What the device can do, measured."""
    bench.rate = matmul_rate(bench.device, torch.bfloat16, bench.sizes.matrices)
    yield "bf16 matmul, FLOP/s", bench.rate
    yield "float32 matmul, FLOP/s", matmul_rate(bench.device, torch.float32, bench.sizes.matrices)
    bench.memory = memory_rate(bench.device, bench.sizes.memory_bytes)
    yield "memory, bytes/s", bench.memory


def training(bench: Bench) -> Figures:
    """Images per second at one batch size, contestants in turns; goal: 2.5 times diffusers as its users run it."""
    sizes = bench.sizes
    flops = training_flops(sizes.network)
    yield "FLOP per image", flops
    made: dict[str, Callable[..., Steps]] = {
        EAGER_BF16: partial(our_steps, **BF16),
        CHANNELS_LAST: partial(our_steps, channels_last=True, **BF16),
        "ours, float32 eager": partial(our_steps, **FLOAT32),
        BEST: partial(our_steps, **bench.best),
    }
    if find_spec("diffusers"):
        made[DIFFUSERS_BF16] = partial(diffusers_steps, bf16=True)
        made["diffusers, float32 eager"] = diffusers_steps
    else:
        yield "diffusers", "left out: not installed"
    contestants = {name: timed(bench, make, sizes.batch_size).images_per_s for name, make in made.items()}
    speeds: Speeds = {}
    try:
        take_turns(contestants, sizes.rounds, bench.record, speeds)
    finally:  # also of the rounds before the limit passed, or a contestant failed
        for name, found in speeds.items():
            yield f"{name}, images/s", statistics.median(found)
            yield f"{name}, share of the bf16 matmul rate", bench.share(statistics.median(found), flops)
            if DIFFUSERS_BF16 in speeds:
                yield f"{name}, times {DIFFUSERS_BF16}", ratio(speeds, name, DIFFUSERS_BF16)


def batch_sizes(bench: Bench) -> Figures:
    """Images per second by batch size, of our best settings and of bf16 eager."""
    flops = training_flops(bench.sizes.network)
    for batch_size in bench.sizes.batch_sizes:  # the largest last: it may not fit
        for name, settings in ((EAGER_BF16, BF16), (BEST, bench.best)):
            torch.compiler.reset()
            speed = timed(bench, partial(our_steps, **settings), batch_size).images_per_s()
            yield f"{name}, batch {batch_size}", {"images_per_s": speed, "share": bench.share(speed, flops)}


def timed(bench: Bench, make: Callable[..., Steps], batch_size: int) -> Timed:
    """The contestant, at this batch size."""
    make = partial(make, bench.sizes.network, batch_size, bench.device)
    return Timed(make, batch_size, bench.device, bench.sizes.turn_s)


def roofline(bench: Bench) -> Figures:
    """What the measured rates allow one bf16 eager step, and where the device's time goes in one."""
    sizes = bench.sizes
    run = our_steps(sizes.network, sizes.batch_size, bench.device, **BF16)
    run(2)
    with Roofline(bench.rate, bench.memory) as bound:
        run(1)
    yield (
        "operations one by one, largest share of the matmul rate",
        bound.flops / bench.rate / (bound.product_s + bound.rest_s),
    )
    yield "all but products fused away, largest share of the matmul rate", bound.flops / bench.rate / bound.product_s
    yield (
        "share of the bound that is memory traffic of all but products",
        bound.rest_s / (bound.product_s + bound.rest_s),
    )
    for name, settings in ((EAGER_BF16, BF16), (BEST, bench.best)):
        yield f"{name}, share of the device's time by kernel", kernel_shares(bench, settings)


def kernel_shares(bench: Bench, settings: dict[str, Any], most: int = 12) -> dict[str, float]:
    """Of the kernels, or on a CPU operations, that take the most time in training, the largest first."""
    run = our_steps(bench.sizes.network, bench.sizes.batch_size, bench.device, **settings)
    run(2)
    cuda = bench.device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        run(1)
        if cuda:
            torch.cuda.synchronize(bench.device)
    times = {
        event.key: event.self_device_time_total if cuda else event.self_cpu_time_total
        for event in profile.key_averages()
    }
    largest = sorted(times, key=lambda name: times[name], reverse=True)[:most]
    return {name[:120]: times[name] / sum(times.values()) for name in largest}


def sampling(bench: Bench) -> Figures:
    """DDIM as the pipeline draws, so in the best settings by CUDA graphs; goal: 50 % of the matmul rate."""
    sizes, spec = bench.sizes, spec_of(bench.sizes.network)
    side, steps = image_size(sizes.network), sizes.sampling_steps
    network = spec.build()
    with torch.inference_mode():
        flops = steps * counted_flops(lambda: network(torch.zeros(1, 3, side, side), torch.zeros(1)))
    yield "FLOP per image", flops
    network.to(bench.device).eval().requires_grad_(False)
    seeds = torch.arange(sizes.sampling_batch, device=bench.device)
    for name, settings in (("bf16 eager", BF16), ("best settings", bench.best)):
        model = TrainedModel(spec, Execution.model_validate(settings).of(network))
        seconds = seconds_of(partial(generate, model, DDIM(steps=steps), seeds), bench.device, 3)
        speed = sizes.sampling_batch / seconds
        yield f"{name}, {steps} steps, images/s", speed
        yield f"{name}, share of the bf16 matmul rate", bench.share(speed, flops)


def synchronisation(bench: Bench) -> Figures:
    """Steps as between two points of the curve, in which torch refuses whatever waits for the device."""
    if bench.device.type != "cuda":
        yield "left out", "a CPU has nothing to wait for"
        return
    for name, settings in ((EAGER_BF16, BF16), (BEST, bench.best)):
        run = our_steps(bench.sizes.network, bench.sizes.batch_size, bench.device, **settings)
        run(3)
        with refusing_waits():
            run(bench.sizes.quiet_steps)
        yield f"{name}, steps without a wait for the device", bench.sizes.quiet_steps


@contextmanager
def refusing_waits() -> Iterator[None]:
    """RuntimeError where anything in the block waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def curves(bench: Bench) -> Figures:
    """The loss of two trainings on CIFAR-10 that differ in arithmetic alone, in means of a twentieth of all steps."""
    if bench.cifar10 is None:
        yield "left out", "no --cifar10"
        return
    sizes = bench.sizes
    random = np.random.default_rng(0)
    rows = torch.from_numpy(random.integers(0, len(bench.cifar10), sizes.curve_steps * sizes.batch_size))
    batches = bench.cifar10[rows].split(sizes.batch_size)
    found = {}
    for name, settings in (("best settings", bench.best), ("float32 eager", FLOAT32)):
        chunks = losses(bench, settings, batches).split(max(1, sizes.curve_steps // 20))
        found[name] = [chunk.mean().item() for chunk in chunks]
        yield name, found[name]
    last_of_best, last_of_float32 = (found[name][-1] for name in ("best settings", "float32 eager"))
    yield "relative difference at the end", last_of_best / last_of_float32 - 1


PARTS: dict[str, Callable[[Bench], Figures]] = {
    "correctness": correctness,
    "rates": rates,
    "training": training,
    "sampling": sampling,
    "synchronisation": synchronisation,
    "roofline": roofline,
    "batch_sizes": batch_sizes,
    "curves": curves,
}


def go_through(bench: Bench, parts: list[str], limit_s: float) -> None:
    """All of these parts, each figure into the record as it comes."""
    passed = ""
    with time_limit(limit_s):
        for name in parts:
            print(f"\n{name}", flush=True)
            figures: dict[str, Any] = {}
            began = time.perf_counter()
            torch.compiler.reset()  # or networks of other batches would be taken for one of any batch
            try:
                for figure, value in iter([("left out", passed)]) if passed else PARTS[name](bench):
                    figures[figure] = value
                    bench.record[name] = figures
                    print(f"  {figure}: {value}", flush=True)
            except OutOfTime as error:
                figures["cut short"] = passed = f"{error}"
            except Exception as error:  # the next parts may work
                figures["failed"] = f"{type(error).__name__}: {error}"[:1000]
                print(f"  failed: {figures['failed']}", flush=True)
            figures["seconds"] = time.perf_counter() - began
            bench.record[name] = figures


def main() -> None:
    """Goes through all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="rates come before shares")
    parser.add_argument("--cifar10", type=Path, metavar="FILE.npy")
    parser.add_argument("--limit-s", type=float, default=540.0)
    parser.add_argument("--quick", action="store_true", help="a tiny network, nothing compiled")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device, sizes = torch.device(options.device), QUICK if options.quick else FULL
    cifar10 = torch.from_numpy(np.load(options.cifar10)) if options.cifar10 else None
    best = BF16 if options.quick else best_settings(device)
    record = Record(options.output, device)
    record["parameters"] = parameter_count(spec_of(sizes.network).build())
    go_through(Bench(device, sizes, best, record, cifar10), options.parts, options.limit_s)


if __name__ == "__main__":
    main()
