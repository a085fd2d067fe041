"""One optimizer step, whatever is being learned: its draws, its loss, its update. No Ray, no files.

Everything random is keyed by the position of an image in the stream, so a batch is the same whoever builds it. Calling
a step never waits for the device; `take_figures` does.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model import (
    AUGMENT_NUMBERS,
    Conditioning,
    EMAs,
    LossHistory,
    Objective,
    Precision,
    Stream,
    autocast,
    fast_precision,
    float32_products,
    normal,
    to_unit_range,
    uniforms,
    words,
)

from ..models.compiler import check_compiler
from ..runfile.train_config import TrainConfig
from .parallel import gathered, replicate, shard, without_exchange
from .train_state import TrainState

_FIGURES = ("loss", "gradient_norm", "loss_q0", "loss_q1", "loss_q2", "loss_q3")
"""Names of the means in each point of the curve, over the steps since the point before."""


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how: all that decides the result beside the images."""

    objective: Objective
    train: TrainConfig
    conditioning: Conditioning


class Batch(NamedTuple):
    """A worker's share of one step."""

    position: int
    """Of its first image in the stream."""
    images: Tensor
    """uint8 [local_batch, H, W, C]."""
    labels: Tensor
    """int64 [local_batch]; -1 where the data have none."""


def share_of(batch_size: int, rank: int, world_size: int) -> range:
    """A worker's positions within each global batch: as many for each worker, to within one."""
    return range(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)


def part_count(batch_size: int, world_size: int, microbatch_images: int | None) -> int:
    """Into how many parts each worker divides its share: as many on all, for sharded networks exchange in each of them.

    Parts hold microbatch_images at most; where that is 1 and shares are uneven, some hold 2, for none may be empty.
    """
    if microbatch_images is None:
        return 1
    fewest, most = batch_size // world_size, -(-batch_size // world_size)
    return min(-(-most // microbatch_images), fewest)


class _Losses(NamedTuple):
    """Of some images of a worker's share."""

    each: Tensor
    """Detached, float32 [n]."""
    mean: Tensor
    """Of those that the step goes by: weighed by the importance of their times."""
    shares: Tensor
    """Where in the path's time they lie, float64 [n] in [0, 1)."""
    interval: Tensor | None
    """int64 [n], for times that depend on the losses so far."""


class TrainStep:
    """The network with all that changes while it is trained; calling it with a batch trains it one step further."""

    def __init__(self, recipe: Recipe, device: torch.device, world_size: int = 1) -> None:
        self.recipe, self.config, self.device, self.world_size = recipe, recipe.train, device, world_size
        self.spec = recipe.objective.spec
        self.precision: Precision = fast_precision(device) if self.config.precision == "auto" else self.config.precision
        torch.manual_seed(self.config.seed)  # initial weights are alike on every rank
        network = recipe.objective.build().to(device)
        self.codec = self.spec.codec.build().to(device)
        self.sharded = world_size > 1 and self.config.parallel == "fsdp"
        if self.sharded:
            shard(network, device, world_size)
        self.parameters = list(network.parameters())  # to walk the modules at every step costs a millisecond
        optimizer = torch.optim.Adam(self.parameters, lr=0.0, fused=True)
        history = self.config.times.new_history()
        averages = EMAs(network, self.config.ema, *self.config.also_averaged)
        self.state = TrainState(network, optimizer, averages, history=history.to(device) if history else None)
        self.state.skipped = self.state.skipped.to(device)
        alone, adds_up = world_size == 1 or self.sharded, self.config.microbatch_images is not None
        self.workers_network = network if alone else replicate(network, device, adds_up)
        """With what the workers exchange."""
        self.network, self._normal = self.workers_network, normal
        if self.config.compile:
            self._compile()
        self.taken_up = torch.zeros(2, len(_FIGURES), dtype=torch.float64, device=device)
        """For each of _FIGURES, weighted sum and sum of weights over the steps since the last point, of this worker."""

    def __call__(self, batch: Batch) -> Tensor:
        """One optimizer step on the global batch, of which `batch` is this worker's share. -> its loss, detached."""
        state = self.state
        state.optimizer.zero_grad()
        parts = list(self._parts(batch))
        losses = []
        for part in parts:
            exchange = nullcontext() if part is parts[-1] else without_exchange(self.workers_network)
            with float32_products(self.precision), exchange:
                losses.append(self._backward(part))
        norm = self._update()
        each = torch.cat([some.each for some in losses])
        shares = [len(part.images) / len(batch.images) for part in parts]
        loss = torch.stack([some.mean * share for some, share in zip(losses, shares, strict=True)]).sum()
        self._record(norm, each, loss, torch.cat([some.shares for some in losses]))
        if state.history is not None:
            intervals = [some.interval for some in losses if some.interval is not None]
            self._remember(state.history, torch.cat(intervals), each)
        return loss

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """What is computed at once, one after the other: all, or so many images that memory holds them."""
        count = part_count(self.config.batch_size, self.world_size, self.config.microbatch_images)
        for number in range(count):
            part = share_of(len(batch.images), number, count)
            images, labels = batch.images[part.start : part.stop], batch.labels[part.start : part.stop]
            yield Batch(batch.position + part.start, images, labels)

    def _backward(self, part: Batch) -> _Losses:
        """Adds up what these images have to say to the gradients."""
        config = self.config
        self._seed_dropout(part.position)
        positions = torch.arange(part.position, part.position + len(part.images), device=self.device)
        x0, augmented = self._prepared(part.images, positions)
        shares = config.times.shares(config.seed, positions, config.batch_size)
        times = config.times.times(self.spec.path, shares, self.state.history)
        labels = part.labels.to(self.device, non_blocking=True)
        label = self.recipe.conditioning.training_label(labels, config.seed, positions)
        eps = self._normal(config.seed, Stream.NOISE, positions, self.spec.latent_shape)
        with autocast(self.device, self.precision):
            losses = self.recipe.objective.losses(self.network, x0, times.t, eps, label, augmented)
        mean = (losses * times.importance).mean()
        # DDP averages over workers, whose shares of the batch may differ by one image.
        (mean * (len(part.images) * self.world_size / config.batch_size)).backward()
        return _Losses(losses.detach(), mean.detach(), shares, times.interval)

    def _compile(self) -> None:
        """For fixed shapes; as CUDA graphs where nobody else has a part in the pass and its gradients begin anew."""
        check_compiler("train.compile")
        graphs = self.device.type == "cuda" and self.world_size == 1 and self.config.microbatch_images is None
        mode = "reduce-overhead" if graphs else "default"
        self.network = torch.compile(self.workers_network, dynamic=False, mode=mode)  # type: ignore[assignment]  # is a module
        self._normal = torch.compile(normal, dynamic=False)

    def _update(self) -> Tensor:
        """Takes the step that the gradients ask for, unless they are not finite. -> their norm before clipping.

        Gradients are those of all workers together, so all leave the same steps out; the optimizer is told so by a
        number on the device, for which nothing waits.
        """
        config, state = self.config, self.state
        limit = math.inf if config.clip_norm is None else config.clip_norm
        norm = gathered(nn.utils.clip_grad_norm_(self.parameters, limit, foreach=True))
        finite = norm.isfinite()
        state.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # as torch's GradScaler does
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config, state.images_seen)
        state.optimizer.step()
        state.images_seen += config.batch_size
        state.ema.update(self.parameters, state.images_seen, config.batch_size)
        in_a_row = torch.where(finite, 0, state.skipped[1] + 1)
        state.skipped.copy_(torch.stack((state.skipped[0] + ~finite, in_a_row, state.skipped[2].maximum(in_a_row))))
        return norm

    def _record(self, norm: Tensor, losses: Tensor, loss: Tensor, shares: Tensor) -> None:
        """Takes up the figures of a step for the next point of the curve; those that are not finite do not count."""
        quarter = (4 * shares).long().clamp(max=3)
        values = torch.cat((loss[None], norm[None], losses)).double()
        weights = torch.ones_like(values)
        weights[:2] = len(losses)  # of all workers together the batch, however many they are
        weights *= values.isfinite()
        columns = torch.cat((torch.arange(2, device=self.device), 2 + quarter))
        sums = torch.stack((torch.where(weights > 0, values * weights, 0.0), weights))
        self.taken_up.index_add_(1, columns, sums)

    def _remember(self, history: LossHistory, interval: Tensor, losses: Tensor) -> None:
        """Losses of this worker's share, for the times of later steps: the same on all workers."""
        interval, seen = self._of_all_workers(interval), self._of_all_workers(losses)
        usual = history.losses.mean(1)[interval]  # what is not finite tells nothing of its interval
        history.add(interval, torch.where(seen.isfinite(), seen, usual))

    def _prepared(self, images: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Latents of the images, mirrored or augmented where that is asked for, and what the network is told of it."""
        config = self.config
        x0, augmented = to_unit_range(images.to(self.device, non_blocking=True)), None
        if config.hflip:
            x0 = flip(x0, config.seed, positions)
        if config.augmentation is not None:
            numbers = uniforms(config.seed, Stream.AUGMENTATION, positions, AUGMENT_NUMBERS)
            x0, augmented = config.augmentation.augment(x0, numbers)
        with torch.no_grad():
            return self.codec.encode(x0), augmented

    def take_figures(self) -> dict[str, float]:
        """Means by name over the steps since the last call and all workers, each of which must ask.

        What is not finite is left out. loss_q0 is of the cleanest quarter of the drawn times.
        """
        sums, weights = self._total(self.taken_up).tolist()
        self.taken_up.zero_()
        return {name: sums[n] / weights[n] for n, name in enumerate(_FIGURES) if weights[n]}

    def sums(self) -> list[float]:
        """All that the next point of the curve has taken up so far, of all workers; each of them must ask."""
        total: list[float] = self._total(self.taken_up).flatten().tolist()
        return total

    def take_up(self, sums: list[float]) -> None:
        """Goes on from `sums` of a training that was interrupted; one worker does."""
        self.taken_up += self.taken_up.new_tensor(sums).view_as(self.taken_up)

    def _total(self, values: Tensor) -> Tensor:
        """The sum over all workers, of which each must ask."""
        values = values.clone()
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def _of_all_workers(self, values: Tensor) -> Tensor:
        """The values of the global batch, in its order. [local_batch] -> [batch]."""
        if self.world_size == 1:
            return values
        shares = [share_of(self.config.batch_size, rank, self.world_size) for rank in range(self.world_size)]
        longest = max(map(len, shares))
        gathered = [values.new_empty(longest) for _ in shares]
        torch.distributed.all_gather(gathered, nn.functional.pad(values, (0, longest - len(values))))
        return torch.cat([some[: len(share)] for some, share in zip(gathered, shares, strict=True)])

    def _seed_dropout(self, position: int) -> None:
        """Dropout draws from torch's own generator: exact again for the same number of workers, not for another."""
        text = f"dropout {self.config.seed} {position}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big"))


def flip(x0: Tensor, seed: int, positions: Tensor) -> Tensor:
    """Mirrors half of the images, chosen by their positions. x0: [B, C, H, W]; positions: int64 [B] -> like x0."""
    heads = (words(seed, Stream.FLIP, positions, 1) & 1).bool()[:, :, None, None]
    return torch.where(heads, x0.flip(-1), x0)


def learning_rate(config: TrainConfig, images_seen: int) -> float:
    """Rises linearly from 0 at the first step to its full value after the warm-up, then stays."""
    if images_seen >= config.warmup_images:
        return config.learning_rate
    return config.learning_rate * images_seen / config.warmup_images
