"""What this machine does with a run's own network: a few training steps and calls of it, in as many processes as the
run would have, which exchange gradients as its workers do. No Ray, no images, nothing is kept.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from evaluation import Classifier, train_classifier
from model import ClassifierGuidance, Denoising, Precision, TrainedModel, evaluation_flops, training_flops, trajectory

from ..errors import ClusterError
from ..models.drawing import device_name, images_counted
from ..runfile.config import Config
from ..training.speed import StepTimer, matmul_flop_per_s, mean_of_workers
from ..training.train_step import Batch, Recipe, TrainStep

_CALL_S = 2.0
"""At the rate of matrix products, which no network reaches, one step or call is as large as this allows."""
_TIMED_S = 5.0
_TIMEOUT_S = 600.0
_CLASSIFIER_IMAGES = 1_280


@dataclass(frozen=True)
class Trial:
    """What was measured of one process among all that ran at once."""

    processes: int
    device: str
    precision: Precision
    """Of training; auto is decided by now."""
    start_s: float
    """Until a process had imported what it needs to train."""
    train_s: float
    """Seconds of training for each image of this process's share, other workers waited for."""
    evaluation_s: float
    """Seconds for each image that the network is given while it draws, the sampler's own work included."""
    classifier_s: float
    """Seconds of the scoring classifier's training for each image, one thread; 0 where it is none."""


def measure(config: Config, processes: int, on_gpu: bool) -> Trial:
    """Runs the trial, about half a minute; much longer where a single image takes long, or the network is compiled.

    ClusterError where its processes do not come to an end.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{Path(folder) / 'meeting'}"
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            began = time.time()
            made = [pool.submit(_take_part, config, on_gpu, rank, processes, meeting) for rank in range(processes)]
            try:
                found = [each.result(_TIMEOUT_S) for each in made]
            except (TimeoutError, RuntimeError) as error:
                raise ClusterError(
                    f"the {processes} processes of the trial on this machine did not end well "
                    f"({type(error).__name__}: {error}); name a device by --device to plan without one"
                ) from error
    return Trial(
        processes,
        found[0].device,
        found[0].precision,
        start_s=max(each.began for each in found) - began,
        train_s=sum(each.train_s for each in found) / processes,
        evaluation_s=sum(each.evaluation_s for each in found) / processes,
        classifier_s=found[0].classifier_s,
    )


@dataclass(frozen=True)
class _Found:
    device: str
    precision: Precision
    began: float
    train_s: float
    evaluation_s: float
    classifier_s: float


def _take_part(config: Config, on_gpu: bool, rank: int, processes: int, meeting: str) -> _Found:
    """Runs as one of the processes."""
    began = time.time()
    warnings.filterwarnings("ignore", "Grad strides do not match")  # DDP's, of 1x1 convolutions; a run's logs have it
    torch.set_num_threads(config.cluster.cpus_per_worker)
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if processes > 1:
        limit = timedelta(seconds=_TIMEOUT_S)
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=processes, timeout=limit)
    try:
        step = _new_step(config, device, processes)
        train_s = _train_s(step, config, device, processes)
        evaluation_s = _evaluation_s(config, step, device)
    finally:
        if processes > 1:
            dist.destroy_process_group()
    classifier_s = _classifier_s(config) if rank == 0 else 0.0
    return _Found(device_name(device), step.precision, began, train_s, evaluation_s, classifier_s)


def _new_step(config: Config, device: torch.device, processes: int) -> TrainStep:
    """Of a batch as large as the run's, or as there is time for."""
    objective = Denoising(config.spec, config.train.weighting)
    flops = sum(training_flops(objective, config.conditioning, config.train.augmentation).values())
    share = _affordable(-(-config.train.batch_size // processes), flops, device)
    train = config.train.model_copy(update={"batch_size": processes * share, "num_workers": processes})
    return TrainStep(Recipe(objective, train, config.conditioning), device, processes)


def _affordable(most: int, flops: int, device: torch.device) -> int:
    """The same on all workers."""
    (rate,) = mean_of_workers([matmul_flop_per_s(device, "fp32")], device)
    return max(1, min(most, int(_CALL_S * rate / flops)))


def _train_s(step: TrainStep, config: Config, device: torch.device, processes: int) -> float:
    share = step.config.batch_size // processes
    images = torch.randint(256, (share, *_image_shape(config)), dtype=torch.uint8)
    labels = (
        torch.arange(share) % config.conditioning.classes if config.conditioning.classes else torch.full((share,), -1)
    )

    def take() -> None:
        step(Batch(step.state.images_seen, images, labels))

    return _seconds(take, device) / share


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """Of one call, after two that do not count; on all workers as many."""
    timer = StepTimer(device, torch.nn.Identity())

    def timed(calls: int) -> float:
        with timer.step():
            for _ in range(calls):
                work()
        (seconds,) = mean_of_workers([timer.take()[0] / calls], device)
        return seconds

    timed(1)
    return timed(max(1, int(_TIMED_S / timed(1))))


def _evaluation_s(config: Config, step: TrainStep, device: torch.device) -> float:
    """The network is that which was trained a little."""
    sample, guidance, spec = config.sample, config.sample.guidance, config.spec
    classifier = None
    if isinstance(guidance, ClassifierGuidance):
        classifier = guidance.classifier.build(spec.image_size, spec.channels).to(device).eval()
    model = TrainedModel(spec, sample.execution.of(step.state.network), classifier)
    flops = sum(evaluation_flops(step.recipe.objective, config.conditioning).values())
    seeds = torch.arange(_affordable(sample.chunk_images, flops * guidance.evaluations, device), device=device)
    timer = StepTimer(device, torch.nn.Identity())
    with images_counted(model.network) as count:
        states = _states(config, model, seeds)
        next(states)
        before, seconds = count(), 0.0
        while seconds < _TIMED_S:
            with timer.step():
                next(states)
            seconds += timer.take()[0]
        return seconds / (count() - before)


def _states(config: Config, model: TrainedModel, seeds: Tensor) -> Iterator[Tensor]:
    """The images after each step of sampling, again and again."""
    while True:
        for state in trajectory(model, config.sample.sampler, seeds, guidance=config.sample.guidance):
            yield state.x


def _classifier_s(config: Config) -> float:
    spec = config.evaluate.extractor
    if not isinstance(spec, Classifier):
        return 0.0
    random, classes = np.random.default_rng(0), config.conditioning.classes or 10
    images = random.integers(0, 256, (_CLASSIFIER_IMAGES, *_image_shape(config)), dtype=np.uint8)
    few = spec.model_copy(update={"images": _CLASSIFIER_IMAGES})
    began = time.perf_counter()
    train_classifier(few, images, np.arange(_CLASSIFIER_IMAGES) % classes, classes)
    return (time.perf_counter() - began) / _CLASSIFIER_IMAGES


def _image_shape(config: Config) -> tuple[int, int, int]:
    return config.data.image_size, config.data.image_size, config.data.channels
