"""The section `train` of a run file."""

from typing import Annotated, Literal

from pydantic import Field

from model import (
    Augmentation,
    EMAProfile,
    ExponentialEMA,
    Precision,
    Record,
    Simple,
    TimeSampling,
    UniformTimes,
    Weighting,
)

from ..training.parallel import Parallel
from .keyroles import Resource

Workers = Annotated[int, Field(ge=1)]


class TrainConfig(Record):
    """How the network is trained. Lengths are in images, so that they mean the same at every batch size."""

    images: int = Field(ge=0)
    """Training length, images (with repetition), rounded up to whole batches; 0: none, the model of warm_start is
    sampled and scored as it is."""
    batch_size: int = Field(128, ge=1)
    """Global batch, images: all workers together."""
    num_workers: Annotated[Workers | tuple[Workers, Workers], Resource] = 1
    """Ray Train workers, one process each, one GPU each where there are GPUs; [least, most]: as many as there is room
    for, more or fewer as nodes come and go. They share each batch evenly, to within one image."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of initial weights, data order, flips, augmentation, times, noise, withheld classes and dropout."""
    learning_rate: float = Field(2e-4, gt=0)
    """Adam's step size after warm-up."""
    warmup_images: int = Field(0, ge=0)
    """Images over which the learning rate rises linearly from 0."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Gradients are scaled down to this global L2 norm; null: not clipped."""
    hflip: bool = False
    """Mirror each image left to right with probability 1/2; not for digits or text."""
    weighting: Weighting = Simple()
    """How much the error at each time counts in the loss."""
    times: TimeSampling = UniformTimes()
    """At which times the network is trained."""
    augmentation: Augmentation | None = None
    """Random changes of the training images, of which the network is told (ncsnpp, augment_labels: 9); null: none."""
    ema: EMAProfile = ExponentialEMA()
    """Average of the weights, from which images are sampled."""
    also_averaged: tuple[EMAProfile, ...] = ()
    """Further averages, kept in every checkpoint; those by power functions outlive it, for sample.sigma_rel."""
    precision: Literal["auto", Precision] = "auto"
    """Arithmetic of the network; weights, loss and optimizer stay float32, and norms and softmax add up in it. tf32:
    fp32, but GPUs round the factors of matrix products to 10 bits; auto: bf16 where the device has matrix units for it
    (GPUs from Ampere on, CPUs with AMX), else fp32."""
    compile: Annotated[bool, Resource] = False
    """Compile the network and its noise with torch.compile, to run as CUDA graphs where one GPU trains alone; takes a
    minute or more at the start, and on CPUs a C++ compiler."""
    parallel: Annotated[Parallel, Resource] = "ddp"
    """ddp: each worker holds the network; fsdp: a shard of it (FSDP2), for networks that do not fit, at the cost of
    more traffic."""
    microbatch_images: Annotated[int | None, Resource] = Field(None, ge=1)
    """Each worker computes its share of the batch in equal parts of at most so many images and adds up the gradients,
    for a batch that does not fit; null: all at once."""
    checkpoint_images: Annotated[int, Resource] = Field(1_000_000, ge=1)
    """A checkpoint every so many images, written while training goes on."""
    keep_checkpoints: Annotated[int, Resource] = Field(2, ge=1)
    """So many of the newest checkpoints are kept, and the one whose training loss was the lowest."""
    preview_images: Annotated[int, Resource] = Field(16, ge=0)
    """At each checkpoint so many images are drawn, from the first seeds of `sample`, and shown as one picture; training
    goes on meanwhile. 0: none."""
    max_skipped_steps: Annotated[int, Resource] = Field(10, ge=1)
    """Training ends after so many steps in a row that were not finite; fewer are left out and counted."""
    log_images: Annotated[int, Resource] = Field(100_000, ge=1)
    """A point of the training curve every so many images."""
    warm_start: Annotated[str | None, Resource] = Field(None, min_length=1)
    """Begin with the weights of this model in place of random ones: a run's folder, models:/NAME@ALIAS,
    models:/NAME/VERSION or a .safetensors file. What the weights are decides the result, where they are does not. An
    alias is looked up once, when the command starts; once it names another version, the same command is another run. To
    finish an interrupted one then, name here the version that it began with, or start.safetensors, the copy of the
    weights in its training's folder."""

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most workers."""
        return (self.num_workers, self.num_workers) if isinstance(self.num_workers, int) else self.num_workers

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return -(-self.images // self.batch_size)
