"""What each training worker runs: DDP over a share of every global batch, from the last checkpoint to the last image.

Everything random is keyed by the position of an image in the stream, so a batch is the same whoever builds it.
Between two points of the curve nothing here waits for the device; nothing ever waits for MLflow or the terminal.
"""

import hashlib
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray import train as ray_train
from ray.train.torch import get_device
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import (
    AUGMENT_NUMBERS,
    EMA,
    Conditioning,
    ModelSpec,
    Stream,
    denoising_loss,
    normal,
    to_unit_range,
    uniforms,
    words,
)

from .checkpoint import TrainState
from .config import TrainConfig
from .errors import TrainingError
from .order import OrderConfig
from .reader import Cache, ShardReader
from .shard_cache import ShardCacheConfig
from .shard_index import ShardIndex

if TYPE_CHECKING:
    from torchmetrics.aggregation import MeanMetric


@dataclass(frozen=True)
class TrainJob:
    """What the driver hands to every worker. Folders are absolute: Ray changes the working directory of its workers."""

    spec: ModelSpec
    train: TrainConfig
    conditioning: Conditioning
    cache: Cache
    order: OrderConfig
    shard_cache: ShardCacheConfig
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


def _mean(device: torch.device) -> "MeanMetric":
    """A mean over steps and workers. The other strategies for NaN would read the device at every step."""
    from torchmetrics.aggregation import MeanMetric  # seconds to import, which only the workers should wait for

    return MeanMetric(nan_strategy="disable").to(device)


def _world_size() -> int:
    return int(ray_train.get_context().get_world_size())


class Batch(NamedTuple):
    """A worker's share of one step."""

    position: int
    """Of its first image in the stream."""
    images: Tensor
    """uint8 [local_batch, H, W, C]."""
    labels: Tensor
    """int64 [local_batch]; -1 where the data have none."""


class Worker:
    """One of the processes that train together."""

    def __init__(self, job: TrainJob, device: torch.device, rank: int, world_size: int) -> None:
        self.job, self.config, self.device = job, job.train, device
        self.rank, self.world_size = rank, world_size
        self.local_batch_size = job.train.batch_size // world_size
        self.reader = ShardReader(ShardIndex.load(Path(job.index_folder)), "train", job.cache, job.shard_cache)
        self.order = job.order.open(self.reader.shard_sizes, job.train.seed)

        torch.manual_seed(job.train.seed)  # initial weights are alike on every rank
        network = job.spec.build().to(device)
        self.parameters = list(network.parameters())  # to walk the modules at every step costs a millisecond
        optimizer = torch.optim.Adam(self.parameters, lr=0.0, fused=True)
        history = job.train.times.new_history()
        self.state = TrainState(network, optimizer, EMA(network), history=history.to(device) if history else None)
        self.step_network = self._parallel(network)
        self.loss, self.gradient_norm = _mean(device), _mean(device)

    def _parallel(self, network: nn.Module) -> nn.Module:
        if self.config.compile:
            check_compiler()
            network = torch.compile(network)  # type: ignore[assignment]  # typed as a callable, is a module
        if self.world_size == 1:
            return network
        return DistributedDataParallel(
            network,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            static_graph=True,
        )

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
            self._step(batch)
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
        self.reader.prefetch(self.order.shards_ahead(position))
        samples: NDArray[np.int64] = self.order.samples(position, position + self.local_batch_size)
        images, labels = torch.from_numpy(self.reader.read(samples)), torch.from_numpy(self.reader.labels[samples])
        if self.device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
        return Batch(position, images, labels)

    def _step(self, batch: Batch) -> None:
        """One optimizer step on the global batch, of which `batch` is this worker's share."""
        config, state, spec = self.config, self.state, self.job.spec
        position, images = batch.position, batch.images
        self._seed_dropout(position)
        positions = torch.arange(position, position + len(images), device=self.device)
        x0 = to_unit_range(images.to(self.device, non_blocking=True))
        if config.hflip:
            x0 = flip(x0, config.seed, positions)
        augmented: Tensor | None = None
        if config.augmentation is not None:
            numbers = uniforms(config.seed, Stream.AUGMENTATION, positions, AUGMENT_NUMBERS)
            x0, augmented = config.augmentation.augment(x0, numbers)
        shares = config.times.shares(config.seed, positions, config.batch_size)
        times = config.times.times(spec.path, shares, state.history)
        eps = normal(config.seed, Stream.NOISE, positions, spec.image_shape)
        labels = batch.labels.to(self.device, non_blocking=True)
        label = self.job.conditioning.training_label(labels, config.seed, positions)

        with self._autocast():
            losses = denoising_loss(
                self.step_network, spec.path, spec.target, config.weighting, x0, times.t, eps, label, augmented
            )
        loss = (losses * times.importance).mean()
        state.optimizer.zero_grad()
        loss.backward()
        limit = math.inf if config.clip_norm is None else config.clip_norm
        norm = nn.utils.clip_grad_norm_(self.parameters, limit, foreach=True)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config, state.images_seen)
        state.optimizer.step()
        state.images_seen += config.batch_size
        state.ema.update(self.parameters, config.ema.decay(state.images_seen, config.batch_size))
        self.loss.update(loss.detach())
        self.gradient_norm.update(norm)
        if state.history is not None and times.interval is not None:
            state.history.add(self._of_all_workers(times.interval), self._of_all_workers(losses.detach()))

    def _of_all_workers(self, values: Tensor) -> Tensor:
        """The values of the global batch, in its order. [local_batch] -> [batch]."""
        if self.world_size == 1:
            return values
        gathered = [torch.empty_like(values) for _ in range(self.world_size)]
        torch.distributed.all_gather(gathered, values)
        return torch.cat(gathered)

    def _autocast(self) -> AbstractContextManager[Any]:
        precision = self.config.precision
        bf16 = precision == "bf16" or (precision == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def _seed_dropout(self, position: int) -> None:
        """Dropout draws from torch's own generator: exact again for the same number of workers, not for another."""
        text = f"dropout {self.config.seed} {position}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big"))

    def _log(self, meter: "Meter") -> bool:
        """Sends off the loss, averaged over steps and workers. False, on every rank alike, if it is not finite."""
        loss = float(self.loss.compute())
        gradient_norm = float(self.gradient_norm.compute())
        self.loss.reset()
        self.gradient_norm.reset()
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


def check_compiler() -> None:
    """TrainingError where torch.compile would look for a C++ compiler in vain, which it says at great length."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++"]
    if not any(shutil.which(name) for name in names):
        raise TrainingError(
            f"train.compile: no C++ compiler on {socket.gethostname()} ({', '.join(names)}); install g++ on every "
            f"worker, or set train.compile=false"
        )


def flip(x0: Tensor, seed: int, positions: Tensor) -> Tensor:
    """Mirrors half of the images, chosen by their positions. x0: [B, C, H, W]; positions: int64 [B] -> like x0."""
    heads = (words(seed, Stream.FLIP, positions, 1) & 1).bool()[:, :, None, None]
    return torch.where(heads, x0.flip(-1), x0)


def learning_rate(config: TrainConfig, images_seen: int) -> float:
    """Rises linearly from 0 at the first step to its full value after the warm-up, then stays."""
    if images_seen >= config.warmup_images:
        return config.learning_rate
    return config.learning_rate * images_seen / config.warmup_images


def _passes(images_seen: int, batch: int, every: int) -> bool:
    """Whether the batch that led to `images_seen` reached or passed a multiple of `every`."""
    return images_seen // every > (images_seen - batch) // every
