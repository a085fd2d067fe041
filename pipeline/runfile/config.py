"""The schema of a run file: these records are the YAML, its checks, its help text and the objects that do the work."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from evaluation import Extractor, Likelihood
from model import (
    WIDEST_SIGMA_REL,
    ClassLabels,
    Codec,
    Conditioning,
    Eps,
    Execution,
    FixedVariance,
    Guidance,
    IdentityCodec,
    ModelSpec,
    Network,
    NoGuidance,
    Precision,
    Record,
    Sampler,
    Target,
    Unconditional,
    Variance,
)
from model import Path as GaussianPath  # not a file's

from ..data.shard_index import MANIFEST
from ..files import sha256_of
from ..registration.gate import Gate
from ..tracking.mlflow_store import ANSWER_S
from .consistency import mistakes_in
from .data_config import DataConfig
from .keyroles import Resource
from .train_config import TrainConfig, Workers


class SampleConfig(Record):
    """Which images are drawn from the trained model."""

    images: int = Field(ge=2)
    """Number of images to draw and score."""
    seed: int = Field(0, ge=0, lt=2**62)
    """Seed of the first image; image i has this seed + i."""
    chunk_images: int = Field(250, ge=1)
    """Images drawn as one batch and written as one file; part of the protocol, since rounding depends on the batch."""
    sampler: Sampler
    """How noise becomes an image."""
    guidance: Guidance = NoGuidance()
    """How strongly the class of an image is followed."""
    precision: Precision = "fp32"
    """Arithmetic of the network; x_t and all that the sampler computes stay float32. fp32: on every device; tf32: on
    GPUs, factors of products rounded to 10 bits; bf16: autocast. Part of the protocol."""
    compile: bool = False
    """Compile the network with torch.compile, for chunks of this size, on GPUs as CUDA graphs; needs a C++ compiler.
    Part of the protocol, since it rounds in another order."""
    sigma_rel: float | None = Field(None, gt=0, le=WIDEST_SIGMA_REL)
    """Draw from the power-function average of this relative width; null: from the average of train.ema. It is made
    after the training, of the power-function averages among train.ema and train.also_averaged as they were at each
    checkpoint; keep two, of widths 0.05 and 0.1 (Karras et al. 2024, section 3.2)."""

    shards: Annotated[bool, Resource] = False
    """Write the drawn images as webdataset tars, too: PNG, class and seed, a tar for each chunk, with an index."""

    @property
    def execution(self) -> Execution:
        """How the network is executed."""
        return Execution(precision=self.precision, compile=self.compile)


class EvaluateConfig(Record):
    """How the drawn images are scored."""

    extractor: Extractor
    """Network whose features are compared."""
    keep_features: bool = True
    """Keep the features of all images in memory while they are scored, 4 bytes for each number, to score by the very
    arithmetic of torch-fidelity; false: fold them into moments chunk by chunk, which is the same to rounding, for sets
    that memory does not hold."""
    reference: Annotated[Path | None, Resource] = None
    """What to compare with in place of the training images. An .npz of mu and sigma that this program, pytorch-fid,
    clean-fid, EDM or ADM has written, by the same extractor; scores that compare images one by one are null then. Or
    the folder of a stage `prepare`: its images, and those that it holds out, also where data have grown since. null:
    the training images."""
    likelihoods: tuple[Likelihood, ...] = ()
    """Likelihoods of real images to measure beside, bits/dim; each kind at most once."""
    curve_images: Annotated[int, Resource] = Field(0, ge=0)
    """Images to draw and score from each power-function average that the training has kept at its checkpoints, 20 at
    most, for a curve of the score over the training; 0: no curve. So few score higher than sample.images."""

    def reference_digest(self) -> str | None:
        """sha256 of the file of `reference`, or of its folder's index; empty where there is none, None where none is
        named.
        """
        if self.reference is None:
            return None
        file = self.frozen / MANIFEST if self.frozen else self.reference.expanduser()
        return sha256_of(file) if file.is_file() else ""

    @property
    def statistics(self) -> Path | None:
        """`reference` where it is a file."""
        return None if self.reference is None or self.frozen else self.reference.expanduser()

    @property
    def frozen(self) -> Path | None:
        """`reference` where it is a folder."""
        folder = self.reference and self.reference.expanduser().absolute()
        return folder if folder and folder.is_dir() else None


class RegisterConfig(Record):
    """Where the model goes in the MLflow registry."""

    model_name: str = Field(min_length=1, max_length=200, pattern=r"""^[^/:.%@"']+$""")
    """Name of the registered model; no / : . % @ and no quotes, which MLflow or its URIs do not take."""
    gate: Annotated[Gate, Resource] = Gate()
    """What a new version must reach to become champion."""


class NightlyConfig(Record):
    """What `nightly` does beside a run."""

    start: Literal["champion", "scratch"] = "champion"
    """champion: training starts from the champion's weights where there is one; scratch: as train.warm_start says."""
    command: tuple[str, ...] = ()
    """Program and arguments to start at the end of a night, with its verdict as JSON on standard input; empty: none."""


class ClusterConfig(Record):
    """Which Ray cluster does the work, and how much of it each process gets."""

    address: str = "local"
    """local: one on this machine, for this run; auto: the one this process is part of, as in a Ray job; or the
    address of another, host:port or ray://host:port."""
    shared: tuple[Path, ...] = ()
    """Folders that all nodes of the cluster have under the same name, such as an NFS mount; where there are several
    nodes, `submit` takes paths below these only."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where workers compute; auto: on GPUs when the cluster has any."""
    cpus_per_worker: int = Field(1, ge=1)
    """CPU cores, and threads, of each training, sampling and scoring process."""
    num_samplers: Workers | tuple[Workers, Workers] | None = None
    """Sampling and scoring processes; [least, most]: as many as there is room for, more when there is more; null: as
    many as training has workers."""
    resize_s: float = Field(60, gt=0)
    """How often elastic training looks whether there is room for more workers, seconds; each change costs a restart
    from the last checkpoint."""
    max_failures: int = Field(3, ge=0)
    """How often training starts again from its last checkpoint when a worker fails, before the run fails."""
    timeout_s: float = Field(600, gt=0)
    """Longest wait, seconds, of the run's processes for one another, after which the run fails instead of hanging: for
    the cluster to answer, for workers to start or to catch up, for the next images, for a checkpoint to be written."""
    task_timeout_s: float = Field(86_400, gt=0)
    """Longest time, seconds, in which no task ends while images are drawn and scored; also the longest wait for another
    run that is making the same features or likelihoods. A task is a chunk of images, and takes hours where a large
    network draws in many steps on CPUs: set this to a few times what a chunk takes."""


class TrackingConfig(Record):
    """Where MLflow records the run."""

    uri: str | None = None
    """MLflow tracking address; null: MLFLOW_TRACKING_URI where set, else one SQLite file under output."""
    experiment: str = Field("diffusion", min_length=1)
    """MLflow experiment that the run belongs to."""
    timeout_s: float = Field(ANSWER_S, gt=0)
    """Longest wait for MLflow, seconds: for each answer of a server, which is asked up to three times (in place of
    MLFLOW_HTTP_REQUEST_TIMEOUT), and at the end for the next of the last points and pictures to arrive."""


class Config(Record):
    """One run: data, model, training, sampling, scoring, registration, and where all that happens."""

    version: Literal[1] = 1
    """Version of this file's format."""
    name: Annotated[str, Resource] = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=60)
    """Short name of the run: folders and MLflow runs begin with it."""
    data: DataConfig
    """The images to learn from."""
    network: Network
    """The network."""
    path: GaussianPath
    """How images become noise."""
    target: Target = Eps()
    """What the network predicts."""
    variance: Variance = FixedVariance()
    """Whether the network also predicts the variance of each step."""
    codec: Codec = IdentityCodec()
    """What stands between images and what the path acts on; identity: nothing, diffusion on pixels."""
    conditioning: Conditioning = Unconditional()
    """What the network is told of an image. Images are sampled of each class in turn: class = seed modulo classes."""
    train: TrainConfig
    """How long and how the network is trained; lengths are in images."""
    sample: SampleConfig
    """Which images are drawn from the trained network, and how."""
    evaluate: EvaluateConfig
    """How the drawn images are scored."""
    register_: RegisterConfig = Field(alias="register")  # pydantic's records have a method of that name
    """Where the model goes in the MLflow registry."""
    nightly: Annotated[NightlyConfig, Resource] = NightlyConfig()
    """What `nightly` does beside a run."""
    cluster: Annotated[ClusterConfig, Resource] = ClusterConfig()
    """Which Ray cluster does the work, and what each process gets of it."""
    tracking: Annotated[TrackingConfig, Resource] = TrackingConfig()
    """Where MLflow records the run."""
    output: Annotated[str, Resource] = "outputs/"
    """Folder for everything the run writes; on a cluster, one that all nodes share."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "Config":
        if mistakes := list(mistakes_in(self)):
            raise ValueError("\n".join(mistakes))
        return self

    @property
    def sampler_range(self) -> tuple[int, int]:
        """The fewest and the most sampling and scoring processes."""
        samplers = self.cluster.num_samplers
        if samplers is None:
            return self.train.worker_range
        return (samplers, samplers) if isinstance(samplers, int) else samplers

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the path acts on."""
        return self.codec.latent_shape((self.data.channels, self.data.image_size, self.data.image_size))

    @property
    def labels_withheld(self) -> bool:
        """Whether the network learns to do without a class."""
        return isinstance(self.conditioning, ClassLabels) and self.conditioning.dropout > 0

    @property
    def spec(self) -> ModelSpec:
        """The model without its weights."""
        return ModelSpec(
            image_size=self.data.image_size,
            channels=self.data.channels,
            network=self.network,
            path=self.path,
            target=self.target,
            variance=self.variance,
            codec=self.codec,
            classes=self.conditioning.classes,
        )
