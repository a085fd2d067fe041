"""What a worker does with its time, and how near that is to what its device can do. Nothing here waits for the device
but `Meter` when it begins and when it is read.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from model import Precision, float32_products

from ..figures import flop_rate

SHARES = ("compute", "communication", "data", "other")
"""Parts of the wall clock. compute: in steps; communication: in steps, waiting for the gradients of other workers once
one's own are there; data: waiting for images while the device has nothing left to do; other: the rest."""

_SMALLEST, _LARGEST, _PRODUCTS, _PRODUCTS_S = 128, 8192, 5, 0.1

Mark = float | torch.cuda.Event
"""A moment of the device: its own, where it works behind the host's back."""


class StepTimer:
    """Times steps, and their wait for other workers. Communication is seen of DDP, whose averaging it takes over."""

    def __init__(self, device: torch.device, network: nn.Module) -> None:
        """network: as it is called to train."""
        self.device = device
        self._steps: list[tuple[Mark, Mark]] = []
        self._waits: list[tuple[Mark, Mark]] = []
        for module in network.modules():
            if isinstance(module, DistributedDataParallel):
                module.register_comm_hook(self, _all_reduce)

    def mark(self) -> Mark:
        """This moment of the device's current stream."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def step(self) -> Iterator[None]:
        """Times the step that is the block."""
        began = self.mark()
        yield
        self._steps.append((began, self.mark()))

    def waits(self, since: Mark) -> None:
        """The gradients of other workers have been waited for since then."""
        self._waits.append((since, self.mark()))

    def take(self) -> tuple[float, float]:
        """Seconds of all steps since the last call, and those of them that waited for other workers.

        Waits for the last step to be done.
        """
        taken = _total_s(self._steps), _total_s(self._waits)
        self._steps, self._waits = [], []
        return taken


def _all_reduce(
    timer: StepTimer,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # torch's types lack it
) -> Future[Tensor]:
    """DDP's own average over all workers; of the last gradients of a step, it is timed how long that takes."""
    assert dist.group.WORLD is not None
    averaged: Future[Tensor] = allreduce_hook(dist.group.WORLD, bucket)
    if not bucket.is_last():
        return averaged
    sent = timer.mark()

    def arrived(future: Future[Tensor]) -> Tensor:
        timer.waits(sent)
        return future.value()

    return averaged.then(arrived)


def _total_s(spans: list[tuple[Mark, Mark]]) -> float:
    return sum(_span_s(*span) for span in spans)


def _span_s(began: Mark, ended: Mark) -> float:
    """Seconds between two marks; waits for the second."""
    if isinstance(began, float):
        assert isinstance(ended, float)
        return ended - began
    assert isinstance(ended, torch.cuda.Event)
    ended.synchronize()
    milliseconds: float = began.elapsed_time(ended)
    return milliseconds / 1000


class Meter:
    """What the wall clock of the whole training loop went into, between two points of the curve."""

    def __init__(self, images_seen: int, timer: StepTimer, flops_per_image: int, precision: Precision) -> None:
        """Measures the device first, in this arithmetic. flops_per_image: of training; other ranks than 0 need none."""
        self.images_seen, self.timer, self.flops_per_image = images_seen, timer, flops_per_image
        self.matmul_flop_per_s = matmul_flop_per_s(timer.device, precision)
        self.since = time.perf_counter()

    def seconds(self) -> float:
        """Since the last call of `take`."""
        return time.perf_counter() - self.since

    def take(self, images_seen: int, waited_s: float) -> dict[str, float]:
        """Figures of the time since the last call. waited_s: of it, for images.

        They are of all workers, each of which must ask: seconds; images_per_s and flop_per_s; matmul_fraction, which
        the latter is of what matrix products alone reach on their devices; and SHARES as compute_share and so on, whose
        sum is 1.
        """
        step_s, exposed_s = self.timer.take()
        now = time.perf_counter()
        spent = split(now - self.since, step_s, exposed_s, waited_s)
        images, self.images_seen, self.since = images_seen - self.images_seen, images_seen, now
        matmul, *means = mean_of_workers([self.matmul_flop_per_s, *spent.values()], self.timer.device)
        seconds, workers = sum(means), dist.get_world_size() if dist.is_initialized() else 1
        flop_per_s = images * self.flops_per_image / seconds
        return {
            "seconds": seconds,
            "images_per_s": images / seconds,
            "flop_per_s": flop_per_s,
            "matmul_fraction": flop_per_s / workers / matmul,
            **{f"{name}_share": mean / seconds for name, mean in zip(spent, means, strict=True)},
        }


def split(seconds: float, step_s: float, exposed_s: float, waited_s: float) -> dict[str, float]:
    """The seconds by SHARES. Waiting for images counts while no step is being computed: a GPU may have some left."""
    step_s = min(step_s, seconds)
    communication_s, data_s = min(exposed_s, step_s), min(waited_s, seconds - step_s)
    parts = step_s - communication_s, communication_s, data_s, seconds - step_s - data_s
    return dict(zip(SHARES, parts, strict=True))


def mean_of_workers(values: list[float], device: torch.device) -> list[float]:
    """Each value's mean over all workers, of which each must ask."""
    if not dist.is_initialized():
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    means: list[float] = (total / dist.get_world_size()).tolist()
    return means


def matmul_flop_per_s(device: torch.device, precision: Precision) -> float:
    """The most floating-point operations per second that products of square matrices reach, a tenth of a second long.

    Sizes double until there is no time for more. Of one size the fastest product counts: the others were disturbed.
    precision: of their factors, as the network has it.
    """
    timer, size, fastest = StepTimer(device, nn.Identity()), _SMALLEST, 0.0
    while True:
        # not constant: a GPU is faster on numbers that are all alike
        numbers = torch.arange(size * size, dtype=torch.float32, device=device).sin()
        matrix = numbers.to(torch.bfloat16 if precision == "bf16" else torch.float32).view(size, size)
        seconds = []
        with float32_products(precision):
            product = matrix @ matrix  # the first one chooses its kernels
            for _ in range(_PRODUCTS):
                with timer.step():
                    torch.mm(matrix, matrix, out=product)
                seconds.append(timer.take()[0])
        fastest = max(fastest, 2 * size**3 / min(seconds))
        if size == _LARGEST or 8 * sum(seconds) > _PRODUCTS_S:
            break
        size *= 2
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # of training it is asked how much it holds
    return fastest


def steady(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the first point, where there are others."""
    return points[1:] or points


def steady_images_per_s(points: list[dict[str, Any]]) -> float:
    """Global training speed without the first point, which holds the warming up of processes and libraries."""
    images: float = sum(point["images_per_s"] * point["seconds"] for point in steady(points))
    seconds: float = sum(point["seconds"] for point in steady(points))
    return round(images / seconds, 1)


def time_spent(points: list[dict[str, Any]]) -> dict[str, float]:
    """Means over these points of the curve, weighed by their time: flop_per_s, matmul_fraction and the shares.

    Points of earlier code, which had no such figures, do not count; {} where there are no others.
    """
    names = "flop_per_s", "matmul_fraction", *(f"{name}_share" for name in SHARES)
    points = [point for point in points if "flop_per_s" in point]
    seconds: float = sum(point["seconds"] for point in points)
    return {name: sum(point[name] * point["seconds"] for point in points) / seconds for name in names if points}


def speed_in_words(figures: Mapping[str, float]) -> str:
    """`91 % compute, 6 % communication, 0 % data, 3 % other; 41.2 GFLOP/s, 32 % of the matmul rate`."""
    return f"{shares_in_words(figures)}; {rate_in_words(figures)}"


def shares_in_words(figures: Mapping[str, float]) -> str:
    """What the time went into."""
    return ", ".join(f"{100 * figures[f'{name}_share']:.0f} % {name}" for name in SHARES)


def rate_in_words(figures: Mapping[str, float]) -> str:
    """What was reached of what the device can."""
    return f"{flop_rate(figures['flop_per_s'])}, {100 * figures['matmul_fraction']:.0f} % of the matmul rate"
