"""Pictures while training: a grid of images from the same seeds for every checkpoint, drawn off the training's path.

Once its first checkpoint is written, rank 0 starts an actor on its own node, of the lowest priority, and tells it of
each checkpoint by a message that nobody waits for; the actor reads the averaged weights from the disk and draws. What
goes wrong there, its death included, does not reach the training, and the terminal hears of it once.

At its end training waits for what is still being drawn, `_END_S` at most. A training with no checkpoint but its last
starts no actor: the sample stage draws from the same weights at once.
"""

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from evaluation.pictures import image_grid
from model import ClassifierGuidance, Execution, Guidance, ModelSpec, NoGuidance, Sampler, generate

from ..errors import ConfigError
from ..models.stored_model import assembled
from ..runfile.config import Config
from .checkpoint import AVERAGE, images_of

PREVIEWS = "previews"  # folder of a training's pictures, named as its checkpoints
_NICENESS = 19  # the lowest priority
_END_S = 10.0  # longest wait at the end of the training
_GONE = "newer checkpoints have taken its place"
_REASON_CHARACTERS = 200


@dataclass(frozen=True)
class Preview:
    """What is drawn of each checkpoint."""

    spec: ModelSpec
    sampler: Sampler
    guidance: Guidance
    execution: Execution
    seeds: range
    """One for each image."""
    threads: int
    """Of the process that draws."""

    @classmethod
    def of(cls, config: Config) -> "Preview | None":
        """The first images of the run's sample set, as far as they can be drawn yet: a classifier that guides is
        trained later. None where no pictures are wanted.
        """
        images, sample = config.train.preview_images, config.sample
        if not images:
            return None
        guidance = NoGuidance() if isinstance(sample.guidance, ClassifierGuidance) else sample.guidance
        seeds = range(sample.seed, sample.seed + images)
        execution = Execution(precision=sample.precision)  # compiling takes longer than so few images
        return cls(config.spec, sample.sampler, guidance, execution, seeds, config.cluster.cpus_per_worker)

    def draw(self, checkpoint: Path, device: torch.device) -> None:
        """Makes the picture of this checkpoint, whole or absent.

        FileNotFoundError where the checkpoint has been removed; FloatingPointError where an image is not finite.
        """
        if not checkpoint.is_dir():
            raise FileNotFoundError(_GONE)
        torch.set_num_threads(self.threads)
        try:
            model = assembled(self.spec, self.guidance, checkpoint / AVERAGE, None, device, self.execution)
        except ConfigError:
            if checkpoint.is_dir():
                raise
            raise FileNotFoundError(_GONE) from None
        seeds = torch.tensor(self.seeds, device=device)
        images = generate(model, self.sampler, seeds, guidance=self.guidance).cpu().numpy()
        image_grid(images, math.ceil(math.sqrt(len(images))), picture_of(checkpoint))


def picture_of(checkpoint: Path) -> Path:
    """Where the picture of a checkpoint is, or is to be."""
    return checkpoint.parents[1] / PREVIEWS / f"{checkpoint.name}.png"


def visible_gpu(device: torch.device, environment: Mapping[str, str]) -> str | None:
    """What CUDA_VISIBLE_DEVICES must be for another process to see the GPU `device` of this one; None: it is no GPU.

    environment: of this process.
    """
    if device.type != "cuda":
        return None
    index, shown = device.index or 0, environment.get("CUDA_VISIBLE_DEVICES")
    return shown.split(",")[index] if shown else str(index)


class _Complaint:
    """Tells of the first of several problems, none of which ends the training, and keeps silent on the others."""

    def __init__(self, say: Callable[[str], Any]) -> None:
        self._say: Callable[[str], Any] | None = say

    def __call__(self, what: str, error: Exception) -> None:
        """what: the words after `preview`. Of the error, no more than the beginning of its first line is told."""
        say, self._say = self._say, None
        if say is not None:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            say(f"preview {what}: {reason[:_REASON_CHARACTERS]}; training goes on")


class Previewer:
    """Draws, as an actor. While it is at one checkpoint, only the newest of those that it is told of waits."""

    def __init__(self, preview: Preview, gpu: str | None, curve: Any) -> None:
        os.nice(_NICENESS)
        if gpu is not None:  # Ray shows no GPU to an actor that asks for none
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            torch.cuda.init()
            free, total = torch.cuda.mem_get_info()
            torch.cuda.set_per_process_memory_fraction(free / total / 2)  # the rest is the training's
        self._preview, self._device = preview, torch.device("cuda" if gpu is not None else "cpu")
        self._complain = _Complaint(curve.say.remote)
        self._newest: Path | None = None
        self._done: Path | None = None
        self._changed = Condition()
        Thread(target=self._follow, name="preview", daemon=True).start()

    def show(self, checkpoint: Path) -> None:
        """Called by rank 0; returns at once. A checkpoint that has waited until now is not drawn."""
        with self._changed:
            self._newest = checkpoint
            self._changed.notify_all()

    def finish(self) -> None:
        """Returns once the newest checkpoint has been drawn or left out."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest == self._done)

    def _follow(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest != self._done)
                checkpoint = self._newest
            assert checkpoint is not None
            self._draw(checkpoint)
            with self._changed:
                self._done = checkpoint
                self._changed.notify_all()

    def _draw(self, checkpoint: Path) -> None:
        try:
            self._preview.draw(checkpoint, self._device)
        except Exception as error:  # also where memory runs out: the next checkpoint may find enough
            self._complain(f"of {images_of(checkpoint):,} images left out", error)
        finally:
            with suppress(RuntimeError):  # a GPU that has failed fails here, too
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()  # the memory is the training's


class PreviewClient:
    """Rank 0's side: starts the Previewer and tells it of checkpoints. Nothing here raises; only `close` waits."""

    def __init__(
        self, preview: Preview, device: torch.device, final_images: int, curve: Any, say: Callable[[str], Any]
    ) -> None:
        """final_images: images seen at the last checkpoint. say: takes a line for the terminal, and waits for nobody;
        curve: the actor by which the Previewer sends its own.
        """
        self._start_with = preview, visible_gpu(device, os.environ), curve
        self._final_images = final_images
        self._complain = _Complaint(say)
        self._actor: Any = None
        self._answer: Any = None  # Ray's reference to the answer to the last message

    def show(self, checkpoint: Path) -> None:
        """Has the picture of this checkpoint drawn, unless it is there or would be the only one."""
        try:
            self._forget_if_dead()
            only = self._actor is None and images_of(checkpoint) == self._final_images
            if not only and not picture_of(checkpoint).exists():
                self._actor = self._actor or self._started()
                self._answer = self._actor.show.remote(checkpoint)
        except Exception as error:  # pictures are no reason to end a training
            self._complain(f"of {images_of(checkpoint):,} images left out", error)

    def close(self) -> None:
        """Waits until all is drawn, `_END_S` at most, and ends the process."""
        if self._actor is None:
            return
        self._answer = self._actor.finish.remote()
        ray.wait([self._answer], timeout=_END_S)
        self._forget_if_dead()
        if self._actor is not None:
            ray.kill(self._actor)

    def _started(self) -> Any:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: Any = {"num_cpus": 0, "num_gpus": 0, "scheduling_strategy": here}  # Ray types fewer strategies
        remote: Any = ray.remote(**options)(Previewer)
        return remote.remote(*self._start_with)

    def _forget_if_dead(self) -> None:
        """After which the next checkpoint starts another one."""
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return
        try:
            ray.get(self._answer)
        except ray.exceptions.RayError as error:
            self._actor = self._answer = None
            self._complain("process has died", error)
