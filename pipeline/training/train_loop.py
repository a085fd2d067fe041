"""What each training worker runs: a share of every global batch, from the last checkpoint to the last image.

Between two points of the curve nothing here waits for the device. Nothing ever waits for MLflow or the terminal, and
for pictures only the end does, a few seconds.
"""

import resource
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train as ray_train
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device

from model import training_flops

from ..clusters.gauges import Gauges
from ..data.feed import Feed, IndexedFeed
from ..data.image_cache import Cache
from ..data.order import OrderConfig
from ..data.shard_cache import ShardCacheConfig
from ..data.shard_index import ShardIndex
from ..data.stream import StreamFeed, StreamPlan
from ..errors import DataError, TrainingError
from ..models.warm_start import read_start
from .averages import AVERAGES, clear_after
from .checkpoint import CHECKPOINTS, CheckpointWriter, Snapshot, clear_unfinished, images_of, newest_checkpoint, restore
from .preview import Preview, PreviewClient
from .speed import Meter, StepTimer
from .train_step import Batch, Recipe, TrainStep, share_of

_FIRST_LOOK_STEPS = 20
_LOOK_S = 2.0  # between two looks whether a node is about to go; each is a small broadcast


@dataclass(frozen=True)
class TrainJob:
    """What the driver hands to every worker. Folders are absolute: Ray changes the working directory of its workers."""

    recipe: Recipe
    cache: Cache
    order: OrderConfig
    shard_cache: ShardCacheConfig
    threads: int
    timeout_s: float
    """Longest wait, seconds: for the next images, for the curve's actor, and for a checkpoint to be written."""
    index_folder: str
    folder: str
    """Of the training; its checkpoints lie below."""
    identity: Mapping[str, Any]
    """All that decides the result, as JSON."""
    curve: Any  # handle of the actor that collects the training curve, if any; Ray gives handles no public type
    preview: Preview | None = None
    """What is drawn of each checkpoint; None: nothing."""
    stream: StreamPlan | None = None
    """What is streamed in place of the indexed images; None: training goes by the index, in this order."""


def train_loop(options: dict[str, TrainJob]) -> None:
    """Ray Train's entry point on a worker."""
    job = options["job"]
    torch.set_num_threads(job.threads)
    context = ray_train.get_context()
    ranks = context.get_world_rank(), context.get_local_rank(), context.get_world_size()
    worker = Worker(job, get_device(), *ranks, _is_leaving)
    worker.resume(broadcast_from_rank_zero(worker.newest_checkpoint()))
    worker.run()


def _is_leaving() -> bool:
    """Whether a node with one of the workers is about to go; all workers ask at the same step and agree."""
    return ray_train.get_preemption_info() is not None


class Worker:
    """One of the processes that train together."""

    def __init__(
        self,
        job: TrainJob,
        device: torch.device,
        rank: int = 0,
        local_rank: int = 0,
        world_size: int = 1,
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self.job, self.config, self.device, self.rank = job, job.recipe.train, device, rank
        self.is_leaving = is_leaving
        self.share = share_of(self.config.batch_size, rank, world_size)
        self.feed = self._open_feed(ShardIndex.load(Path(job.index_folder)))
        if local_rank == 0:
            for shortage in self.feed.shortages:
                self._say(f"{socket.gethostname()}: {shortage}")
        self.step = TrainStep(job.recipe, device, world_size)
        self.state = self.step.state
        self.final_images = self.config.steps * self.config.batch_size
        self.previews = None
        if job.preview is not None and rank == 0:
            self.previews = PreviewClient(job.preview, device, self.final_images, job.curve, job.curve.say.remote)
        self.writer = CheckpointWriter(
            Path(job.folder, CHECKPOINTS),
            self.config.keep_checkpoints,
            job.timeout_s,
            self._say,
            on_written=self._show,
        )
        self.gauges = Gauges("train", run=Path(job.folder).name)
        self.waited_s = 0.0

    def _open_feed(self, index: ShardIndex) -> Feed:
        job, seed = self.job, self.config.seed
        if job.stream is not None:
            return StreamFeed(job.stream, index, job.shard_cache, seed, self.device)
        return IndexedFeed(index, job.cache, job.order, job.shard_cache, seed, self.device)

    def newest_checkpoint(self) -> str | None:
        """Where to go on from, as rank 0 finds it; what writes that were interrupted have left is cleared away."""
        if self.rank != 0:
            return None
        clear_unfinished(self.writer.folder)
        newest = newest_checkpoint(Path(self.job.folder), self._say)
        clear_after(Path(self.job.folder, AVERAGES), images_of(newest) if newest else 0)
        return str(newest) if newest else None

    def resume(self, checkpoint: str | None) -> None:
        """Goes back to this checkpoint, or begins: with random weights, or with those in the training's folder."""
        if checkpoint is not None:
            restore(self.state, Path(checkpoint), self.job.identity)
            if self.previews is not None:
                self.previews.show(Path(checkpoint))  # a kill may have kept its picture from being drawn
        elif "warm_start" in self.job.identity:
            self.state.begin_with(read_start(Path(self.job.folder), self.job.identity["warm_start"]))
        if self.rank == 0 and self.state.sums:
            self.step.take_up(self.state.sums)

    def run(self) -> None:
        """Trains to the end, with checkpoints and points of the curve on the way.

        A loss that is not finite for too many steps in a row ends it.
        """
        meter, every, saved_early = self.meter(), _FIRST_LOOK_STEPS, False
        for number in self.steps(meter):
            seen = self.state.images_seen
            last = seen >= self.final_images
            checkpoint_due = last or _passes(seen, self.config.batch_size, self.config.checkpoint_images)
            point_due = checkpoint_due or _passes(seen, self.config.batch_size, self.config.log_images)
            if point_due:
                step_s, goes_on = self._log(meter)
                every = max(1, round(_LOOK_S / step_s))
                if not goes_on:
                    break
            leaves = not saved_early and number % every == 0 and self.is_leaving()
            if checkpoint_due or leaves:
                self.state.sums = [] if point_due else self.step.sums()
                self._save()
            if leaves:
                saved_early = True
                self.writer.wait()
        self.writer.close()
        if self.previews is not None:
            self.previews.close()

    def meter(self) -> Meter:
        """Begins to measure what the time goes into."""
        recipe = self.job.recipe
        flops = 0
        if self.rank == 0:  # which writes the curve
            by_operator = training_flops(recipe.objective, recipe.conditioning, self.config.augmentation)
            flops = sum(by_operator.values())
        return Meter(self.state.images_seen, StepTimer(self.device, self.step.network), flops, self.step.precision)

    def measured(self, meter: Meter) -> dict[str, float]:
        """What the time went into since this was last asked, by each worker."""
        waited_s, self.waited_s = self.waited_s, 0.0
        return meter.take(self.state.images_seen, waited_s)

    def steps(self, meter: Meter) -> Iterator[int]:
        """Trains to the end. Yields after each step how many there have been, which the meter times."""
        for number, batch in enumerate(self._batches(), start=1):
            with meter.timer.step():
                self.step(batch)
            yield number

    def _batches(self) -> Iterator[Batch]:
        """This worker's share of each step. One is read ahead, by a thread."""
        starts = range(self.state.images_seen, self.final_images, self.config.batch_size)
        pool = ThreadPoolExecutor(1, thread_name_prefix="reader")
        try:
            ahead = pool.submit(self._read, starts[0]) if starts else None
            for following in [*starts[1:], None]:
                if ahead is None:
                    return
                batch = self._arrived(ahead)
                ahead = pool.submit(self._read, following) if following is not None else None
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _arrived(self, ahead: "Future[Batch]") -> Batch:
        """The batch, once it has been read. DataError where that takes too long."""
        began = time.perf_counter()
        try:
            return ahead.result(timeout=self.job.timeout_s)
        except TimeoutError:
            raise DataError(
                f"worker {self.rank} on {socket.gethostname()}: no images for {self.job.timeout_s:g} s "
                f"(cluster.timeout_s), after {self.state.images_seen:,} images; is the storage of "
                f"{self.job.index_folder} alive?"
            ) from None
        finally:
            self.waited_s += time.perf_counter() - began

    def _read(self, start: int) -> Batch:
        """The share of the global batch that begins at this position of the stream."""
        position = start + self.share.start
        return Batch(position, *self.feed.read(position, start + self.share.stop))

    def _log(self, meter: Meter) -> tuple[float, bool]:
        """Sends off a point of the curve, averaged over steps and workers.

        -> seconds of a step, and whether to go on, both alike on every rank.
        """
        # counted, not computed from the rate: all ranks must come to the same number
        steps = max(1, (self.state.images_seen - meter.images_seen) // self.config.batch_size)
        taken = self.measured(meter)
        figures = self.step.take_figures()
        skipped, _, most_in_a_row = self.state.skipped.tolist()
        self.state.skipped[2] = self.state.skipped[1]  # a row that ended before this point has been judged
        goes_on = most_in_a_row < self.config.max_skipped_steps
        if self.rank == 0:
            point = {
                "images": self.state.images_seen,
                "time_ms": time.time_ns() // 1_000_000,
                **figures,
                "learning_rate": self.state.optimizer.param_groups[0]["lr"],
                "skipped_steps": skipped,
                **taken,
                "worker_memory_bytes": peak_memory_bytes(self.device),
                **({} if goes_on else {"not_finite": True}),
            }
            self.state.curve.append(point)
            self.gauges.set(point)
            self._wait_until_taken(self.job.curve.add.remote(point))
        return taken["seconds"] / steps, goes_on

    def _save(self) -> None:
        """Rank 0 begins to write a checkpoint; the others go on at once, and so does it."""
        if self.rank == 0 or self.step.sharded:
            snapshot = Snapshot.of(self.state, self.job.identity)
            if self.rank == 0:
                self.writer.save(snapshot)

    def _show(self, checkpoint: Path) -> None:
        """Has a checkpoint drawn; called by the thread that has written it."""
        if self.previews is not None:
            self.previews.show(checkpoint)

    def _say(self, text: str) -> None:
        """A line for the person at the terminal, where there is one."""
        if self.job.curve is not None:
            self._wait_until_taken(self.job.curve.say.remote(text))

    def _wait_until_taken(self, reference: Any) -> None:
        """Returns once the curve's actor has what was sent. TrainingError where that takes too long."""
        try:
            ray.get(reference, timeout=self.job.timeout_s)
        except ray.exceptions.GetTimeoutError:
            raise TrainingError(
                f"worker {self.rank} on {socket.gethostname()}: nobody has taken the points of the curve for "
                f"{self.job.timeout_s:g} s (cluster.timeout_s), after {self.state.images_seen:,} images; is the "
                "cluster's network alive? The same command goes on from the last checkpoint"
            ) from None


def peak_memory_bytes(device: torch.device) -> int:
    """The most that this process has held so far: on its GPU, or in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _passes(images_seen: int, batch: int, every: int) -> bool:
    """Whether the batch that led to `images_seen` reached or passed a multiple of `every`."""
    return images_seen // every > (images_seen - batch) // every
