"""What each training worker runs: DDP over a share of every global batch, from the last checkpoint to the last image.

Between two points of the curve nothing here waits for the device; nothing ever waits for MLflow or the terminal.
"""

import math
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray import train as ray_train
from ray.train.torch import get_device

from .order import SampleOrder
from .reader import Cache, ShardReader
from .shard_index import ShardIndex
from .train_step import Batch, Recipe, TrainStep


@dataclass(frozen=True)
class TrainJob:
    """What the driver hands to every worker. Folders are absolute: Ray changes the working directory of its workers."""

    recipe: Recipe
    cache: Cache
    threads: int
    index_folder: str
    identity: str
    start: str | None
    """Folder of the checkpoint of an earlier run to go on from."""
    curve: Any  # handle of the actor that collects the training curve; Ray gives handles no public type


def train_loop(options: dict[str, TrainJob]) -> None:
    """Ray Train's entry point on a worker."""
    job = options["job"]
    torch.set_num_threads(job.threads)
    worker = Worker(job, get_device(), ray_train.get_context().get_world_rank(), _world_size())
    worker.resume()
    worker.run()


def _world_size() -> int:
    return int(ray_train.get_context().get_world_size())


class Worker:
    """One of the processes that train together."""

    def __init__(self, job: TrainJob, device: torch.device, rank: int, world_size: int) -> None:
        self.job, self.config, self.device, self.rank = job, job.recipe.train, device, rank
        self.local_batch_size = self.config.batch_size // world_size
        self.reader = ShardReader(ShardIndex.load(Path(job.index_folder)), "train", job.cache)
        self.order = SampleOrder(len(self.reader), self.config.seed)
        self.step = TrainStep(job.recipe, device, world_size)
        self.state = self.step.state

    def resume(self) -> None:
        """Goes back to the newest checkpoint: this run's, where a worker failed, or else an earlier run's."""
        checkpoint = ray_train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                self.state.load(Path(folder), self.job.identity)
        elif self.job.start is not None:
            self.state.load(Path(self.job.start), self.job.identity)

    def run(self) -> None:
        """Trains to the end, with checkpoints and points of the curve on the way; a loss that is not finite ends it."""
        meter = Meter(self.state.images_seen)
        final_images = self.config.steps * self.config.batch_size
        for batch in self._batches(final_images):
            self.step(batch)
            seen = self.state.images_seen
            last = seen >= final_images
            checkpoint_due = last or _passes(seen, self.config.batch_size, self.config.checkpoint_images)
            point_due = checkpoint_due or _passes(seen, self.config.batch_size, self.config.log_images)
            if point_due and not self._log(meter):
                return
            if checkpoint_due:
                self._save()

    def _batches(self, final_images: int) -> Iterator[Batch]:
        """This worker's share of each step. One is read ahead, by a thread."""
        starts = range(self.state.images_seen, final_images, self.config.batch_size)
        offsets = [start + self.rank * self.local_batch_size for start in starts]
        with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
            ahead = pool.submit(self._read, offsets[0]) if offsets else None
            for following in [*offsets[1:], None]:
                if ahead is None:
                    return
                batch = ahead.result()
                ahead = pool.submit(self._read, following) if following is not None else None
                yield batch

    def _read(self, position: int) -> Batch:
        samples: NDArray[np.int64] = self.order.samples(position, position + self.local_batch_size)
        images, labels = torch.from_numpy(self.reader.read(samples)), torch.from_numpy(self.reader.labels[samples])
        if self.device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
        return Batch(position, images, labels)

    def _log(self, meter: "Meter") -> bool:
        """Sends off the loss, averaged over steps and workers. False, on every rank alike, if it is not finite."""
        loss = float(self.step.loss.compute())
        gradient_norm = float(self.step.gradient_norm.compute())
        self.step.loss.reset()
        self.step.gradient_norm.reset()
        finite = math.isfinite(loss) and math.isfinite(gradient_norm)
        if self.rank == 0:
            point = {
                "images": self.state.images_seen,
                "time_ms": time.time_ns() // 1_000_000,
                **({"loss": loss, "gradient_norm": gradient_norm} if finite else {"not_finite": True}),
                "learning_rate": self.state.optimizer.param_groups[0]["lr"],
                **meter.take(self.state.images_seen),
            }
            self.state.curve.append(point)
            ray.get(self.job.curve.add.remote(point))
        return finite

    def _save(self) -> None:
        """Rank 0 hands a checkpoint to Ray Train, which stores it in the background; all ranks meet here."""
        metrics = {"images": self.state.images_seen}
        if self.rank != 0:
            ray_train.report(metrics)
            return
        folder = tempfile.mkdtemp(prefix="checkpoint-")
        self.state.save(Path(folder), self.job.identity)
        ray_train.report(
            metrics,
            checkpoint=ray_train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"images-{self.state.images_seen:012d}",
            checkpoint_upload_mode=ray_train.CheckpointUploadMode.ASYNC,
        )


class Meter:
    """Wall clock of the whole loop between two points of the curve."""

    def __init__(self, images_seen: int) -> None:
        self.images_seen = images_seen
        self.since = time.perf_counter()

    def take(self, images_seen: int) -> dict[str, float]:
        """Seconds since the last call, and images per second of all workers together in that time."""
        now = time.perf_counter()
        seconds, images = now - self.since, images_seen - self.images_seen
        self.images_seen, self.since = images_seen, now
        return {"seconds": seconds, "images_per_s": images / seconds}


def _passes(images_seen: int, batch: int, every: int) -> bool:
    """Whether the batch that led to `images_seen` reached or passed a multiple of `every`."""
    return images_seen // every > (images_seen - batch) // every
