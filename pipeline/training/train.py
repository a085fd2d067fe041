"""Second stage: Ray Train workers learn to denoise the shards' images."""

import math
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.train import RunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import FailureConfig, ScalingConfig  # ray.train types them as those of Train V1
from safetensors.torch import load_file, save

from evaluation.atomic import whole_file
from model import Denoising

from ..clusters.cluster import Cluster
from ..data.stream import StreamPlan, order_identity
from ..errors import PipelineError, TrainingError
from ..figures import flop_rate, rate
from ..files import read_json, write_bytes, write_text
from ..models.warm_start import WarmStart
from ..models.weights import weights_digest
from ..runfile.config import ClusterConfig, Config
from ..runfile.keyroles import identity
from ..stage import Facts, Run, Stage
from .averages import AVERAGES, clear_posthoc, kept
from .checkpoint import AVERAGE, MANIFEST, SPEC, WEIGHTS, newest_checkpoint
from .curve import read_curve, recorded, restore_curve
from .curve_buffer import Point
from .preview import Preview
from .speed import speed_in_words, steady, steady_images_per_s, time_spent
from .start_limit import StartLimit
from .train_loop import TrainJob, train_loop
from .train_step import Recipe

_RAY = "ray-train"  # folder of Ray Train's own marks in a training's folder
_TIMEOUTS = ("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S")
"""Ray Train's own time-outs. It reads them from the driver's environment, for its controller and the workers too."""
_ROOM = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_ROOM_S = 60.0
"""Of one attempt to find room for as many workers as there seemed to be room for; then Ray Train looks anew."""


class Train(Stage):
    """Trains by DDP, from the last checkpoint where there is one, and keeps the averaged weights."""

    name = "train"
    format = 4

    def identity(self, run: Run) -> Any:
        return {
            "spec": identity(run.config.spec),
            "train": identity(run.config.train),
            "conditioning": identity(run.config.conditioning),
            "data": run.results["prepare"].facts["data_digest"],
            "order": order_identity(run.config.data),
            **({"warm_start": run.warm_start.digest} if run.warm_start else {}),
        }

    def compute(self, run: Run, folder: Path) -> Facts:
        config = run.config
        write_text(folder / SPEC, config.spec.model_dump_json(indent=2))
        if run.warm_start:
            run.warm_start.write(folder)
            if config.train.images == 0:
                return _keep_start(run.warm_start, folder)
        return train_network(run, folder, recipe_of(config), self.identity(run), Preview.of(config))

    def figure(self, facts: Facts) -> str:
        if not facts["images"]:
            return "no training; the model of train.warm_start as it is"
        return f"loss {facts['loss']:.4f}, {rate(facts['images_per_s'], 'images')}"


def recipe_of(config: Config) -> Recipe:
    """The diffusion model's training."""
    return Recipe(Denoising(config.spec, config.train.weighting), config.train, config.conditioning)


def train_network(
    run: Run, folder: Path, recipe: Recipe, identity: Mapping[str, Any], preview: Preview | None = None
) -> Facts:
    """Trains to the end, from the last checkpoint in `folder` where there is one, and keeps the averaged weights.

    identity: all that decides the result, as JSON. preview: what is drawn of each checkpoint.
    """
    final_images = recipe.train.steps * recipe.train.batch_size
    start = newest_checkpoint(folder)  # the workers say what is wrong with damaged ones
    restore_curve(folder, read_json(start / MANIFEST)["curve"] if start else [])
    with run.terminal.progress(final_images, "images") as progress:

        def show(point: Point) -> None:
            losses = {name: point[name] for name in ("loss",) if name in point}
            progress.update(point["images"], flop_rate(point["flop_per_s"]), **losses)

        with recorded(folder, run.config.cluster.timeout_s, show, run.terminal.line) as curve:
            job = job_of(run, folder, recipe, identity, curve, preview)
            _fit(job, run.config.cluster, run.joined, folder)
    _check_finite(folder)
    facts = _keep_weights(folder, final_images)
    if "flop_per_s" in facts:
        run.terminal.line(speed_in_words(facts))
    return facts


def job_of(
    run: Run,
    folder: Path,
    recipe: Recipe,
    identity: Mapping[str, Any],
    curve: Any,  # an actor's handle, as in TrainJob
    preview: Preview | None = None,
) -> TrainJob:
    """What every worker is told. curve: the actor that takes its points; the rest as in `train_network`."""
    return TrainJob(
        recipe=recipe,
        cache=run.config.data.cache,
        order=run.config.data.order,
        stream=StreamPlan.of(run.config.data.source),
        shard_cache=run.config.data.shard_cache,
        threads=run.threads,
        timeout_s=run.config.cluster.timeout_s,
        index_folder=str(run.results["prepare"].folder),
        folder=str(folder),
        identity=identity,
        curve=curve,
        preview=preview,
    )


def _fit(job: TrainJob, config: ClusterConfig, cluster: Cluster, folder: Path) -> None:
    """Runs the workers to the end. Checkpoints are our own, so Ray Train's folder is empty but for its marks."""
    os.environ.update(dict.fromkeys(_TIMEOUTS, str(config.timeout_s)))
    os.environ[_ROOM] = str(min(_ROOM_S, config.timeout_s / 4))
    shutil.rmtree(folder / _RAY, ignore_errors=True)  # it would go on by its own snapshot of an earlier attempt
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if cluster.use_gpu else "gloo", timeout_s=math.ceil(config.timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=job.recipe.train.num_workers,
            elastic_resize_monitor_interval_s=config.resize_s,
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker},
        ),
        run_config=RunConfig(
            name=_RAY,
            storage_path=str(folder),
            failure_config=FailureConfig(
                max_failures=config.max_failures,
                controller_failure_limit=-1,  # of attempts to find room, which StartLimit ends
            ),
            callbacks=[StartLimit(min(job.recipe.train.worker_range), config.timeout_s)],  # type: ignore[list-item]  # V1's
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
            f"train: too many steps in a row were not finite (train.max_skipped_steps), the last ones before "
            f"{points[-1]['images']:,} images; the checkpoints before that "
            f"are kept; lower train.learning_rate, lengthen train.warmup_images, or set train.precision=fp32"
        )


def _keep_weights(folder: Path, final_images: int) -> Facts:
    """Copies the averaged weights out of the last checkpoint and says how the training went, and what it has kept."""
    checkpoint = newest_checkpoint(folder)
    images = read_json(checkpoint / MANIFEST)["images_seen"] if checkpoint else 0
    if checkpoint is None or images != final_images:
        raise TrainingError(
            f"{folder}: training ended with a checkpoint of {images:,} images, expected {final_images:,}; "
            f"run the same command again, it goes on from there"
        )
    with whole_file(folder / WEIGHTS) as temporary:
        shutil.copyfile(checkpoint / AVERAGE, temporary)
    points = read_curve(folder)
    weights = load_file(folder / WEIGHTS)
    clear_posthoc(folder / AVERAGES)
    return {
        "images": images,
        "loss": next((point["loss"] for point in reversed(points) if "loss" in point), math.nan),
        "images_per_s": steady_images_per_s(points),
        **{name: round(value, 4) for name, value in time_spent(steady(points)).items()},
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "weights_digest": weights_digest(weights),
        "averages": kept(folder / AVERAGES),
    }


def _keep_start(start: WarmStart, folder: Path) -> Facts:
    """The weights as they were, in the place of trained ones."""
    write_bytes(folder / WEIGHTS, save(dict(start.weights)))
    return {
        "images": 0,
        "loss": None,
        "images_per_s": None,
        "parameters": sum(tensor.numel() for tensor in start.weights.values()),
        "weights_digest": start.digest,
        "averages": {},
    }


def _explained(error: BaseException) -> PipelineError:
    """What was raised on purpose, or else the last line of what Ray says, with the rank that failed where one did."""
    failures = getattr(error, "worker_failures", None) or {}
    # all workers' failures: where one refuses, the others only miss it; then StartLimit's
    for failure in [*failures.values(), getattr(error, "controller_failure", None)]:
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
