"""Second stage: Ray Train workers learn to denoise the shards' images."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.train import CheckpointConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import FailureConfig  # ray.train types it as the one of Train V1
from safetensors.torch import load_file

from evaluation.atomic import whole_file

from .checkpoint import (
    AVERAGE,
    CHECKPOINTS,
    SPEC,
    WEIGHTS,
    newest_checkpoint,
    set_aside,
    verified_manifest,
    weights_digest,
)
from .cluster import Cluster
from .config import Config
from .curve import Point, read_curve, recorded, restore_curve
from .errors import PipelineError, TrainingError
from .files import digest, write_text
from .keyroles import identity
from .stage import Facts, Run, Stage
from .train_loop import TrainJob, train_loop


class Train(Stage):
    """Trains by DDP, from the last checkpoint where there is one, and keeps the averaged weights."""

    name = "train"
    format = 2

    def identity(self, run: Run) -> Any:
        return {
            "spec": identity(run.config.spec),
            "train": identity(run.config.train),
            "conditioning": identity(run.config.conditioning),
            "data": run.results["prepare"].facts["data_digest"],
            "order": identity(run.config.data.order),
        }

    def compute(self, run: Run, folder: Path) -> Facts:
        config = run.config
        final_images = config.train.steps * config.train.batch_size
        write_text(folder / SPEC, config.spec.model_dump_json(indent=2))
        start = set_aside(folder)
        restore_curve(folder, verified_manifest(start)["curve"] if start else [])
        with run.terminal.progress(final_images, "images") as progress:

            def show(point: Point) -> None:
                progress.update(point["images"], **{name: point[name] for name in ("loss",) if name in point})

            with recorded(folder, show) as curve:
                job = TrainJob(
                    spec=config.spec,
                    train=config.train,
                    conditioning=config.conditioning,
                    cache=config.data.cache,
                    order=config.data.order,
                    shard_cache=config.data.shard_cache,
                    threads=run.threads,
                    index_folder=str(run.results["prepare"].folder),
                    identity=digest(self.identity(run)),
                    start=str(start) if start else None,
                    curve=curve,
                )
                _fit(job, config, run.joined, folder)
        _check_finite(folder)
        return _keep_weights(folder, final_images)

    def figure(self, facts: Facts) -> str:
        return f"loss {facts['loss']:.4f}, {facts['images_per_s']:,.0f} images/s"


def _fit(job: TrainJob, config: Config, cluster: Cluster, folder: Path) -> None:
    """Runs the workers to the end."""
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(config.cluster.timeout_s))
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        torch_config=TorchConfig(
            backend="nccl" if cluster.use_gpu else "gloo", timeout_s=int(config.cluster.timeout_s)
        ),
        scaling_config=ScalingConfig(
            num_workers=config.train.num_workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": config.cluster.cpus_per_worker},
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=str(folder),
            failure_config=FailureConfig(
                max_failures=config.cluster.max_failures, controller_failure_limit=config.cluster.max_failures
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        with _interruptible():
            trainer.fit()
    except Exception as error:  # Ray wraps what its workers raise in several layers of its own
        raise _explained(error) from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C stays what it is: Ray Train's own handler ends the process by SystemExit and outlives the training."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)


def _check_finite(folder: Path) -> None:
    points = read_curve(folder)
    if points and "not_finite" in points[-1]:
        raise TrainingError(
            f"train: the loss was no longer finite after {points[-1]['images']:,} images; the checkpoints before that "
            f"are kept; lower train.learning_rate, lengthen train.warmup_images, or set train.precision=fp32"
        )


def _keep_weights(folder: Path, final_images: int) -> Facts:
    """Copies the averaged weights out of the last checkpoint and says how the training went."""
    checkpoint = newest_checkpoint(folder)
    images = verified_manifest(checkpoint)["images_seen"] if checkpoint else 0
    if checkpoint is None or images != final_images:
        raise TrainingError(
            f"{folder}: training ended with a checkpoint of {images:,} images, expected {final_images:,}; "
            f"run the same command again, it goes on from there"
        )
    with whole_file(folder / WEIGHTS) as temporary:
        shutil.copyfile(checkpoint / AVERAGE, temporary)
    points = read_curve(folder)
    weights = load_file(folder / WEIGHTS)
    return {
        "images": images,
        "loss": points[-1]["loss"],
        "images_per_s": steady_images_per_s(points),
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "weights_digest": weights_digest(weights),
    }


def steady_images_per_s(points: list[Point]) -> float:
    """Global training speed without the first point, which holds the warming up of processes and libraries."""
    steady = points[1:] or points
    images: float = sum(point["images_per_s"] * point["seconds"] for point in steady)
    seconds: float = sum(point["seconds"] for point in steady)
    return round(images / seconds, 1)


def _explained(error: BaseException) -> PipelineError:
    """What a worker raised on purpose, or else the first line of what Ray says, with the rank that failed."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():  # all of them: where one worker refuses, the others only miss it
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, PipelineError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    for rank, failure in failures.items():
        return TrainingError(f"train: worker {rank} failed: {_last_line(failure)}; use --traceback to see more")
    return TrainingError(f"train: {_last_line(error)}; use --traceback to see more")


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
