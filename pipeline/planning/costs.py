"""What the stages of a run take: seconds, from counted operations and the speeds of devices, and what limits each."""

from collections.abc import Iterator
from dataclasses import dataclass

from evaluation import Classifier, DINOv2
from model import (
    ClassifierGuidance,
    Classifying,
    ClassLabels,
    Denoising,
    Precision,
    evaluation_flops,
    training_flops,
)

from ..figures import flop_rate, rate
from ..runfile.config import Config
from ..training.parallel import Parallel
from .devices import (
    CLASSIFIER_S,
    DECODED_BYTES_PER_S,
    STARTED_AT_S,
    STARTS_S,
    STARTS_SOURCE,
    Device,
    exchange_s,
    rate_of,
)
from .trial import Trial
from .volumes import all_reduce_bytes, gradient_bytes, images_of, network_of, sharded_bytes

_BACKWARD = 2 / 3
"""Of a step's arithmetic, the way back, behind which gradients travel."""
_BUCKET_BYTES = 25 * 2**20
"""Of gradients that DDP sends at once."""
_INCEPTION_FLOPS, _DINOV2_FLOPS = 11.4e9, 162e9
"""Of one image: Szegedy et al. 2016 at 299x299, two for each multiplication; ViT-L/14 on 257 tokens."""
ADAPTIVE_EVALUATIONS = 150
"""Of samplers that decide for themselves, assumed: as Song et al. 2021 had on CIFAR-10, roughly."""


@dataclass(frozen=True)
class Work:
    """How much a run has to compute, counted."""

    train_flops: float
    """Of a training step, for each image."""
    evaluation_flops: float
    """Of one call of the network, for one image."""
    evaluations: int
    """Calls of the network for each image that is drawn."""

    @classmethod
    def of(cls, config: Config) -> "Work":
        """Counted on the network of this configuration, without its weights."""
        objective = Denoising(config.spec, config.train.weighting)
        steps = config.sample.sampler.evaluations(config.path) or ADAPTIVE_EVALUATIONS
        return cls(
            sum(training_flops(objective, config.conditioning, config.train.augmentation).values()),
            sum(evaluation_flops(objective, config.conditioning).values()),
            steps * config.sample.guidance.evaluations,
        )


@dataclass(frozen=True)
class Speeds:
    """What the devices of a plan do, each on its own."""

    title: str
    devices: int
    train_s: float
    """Of a training step, for each image of a worker's share."""
    exchange_s: float
    """Of a step, to send gradients; 0 where `train_s` holds it already."""
    evaluation_s: float
    """Of one call of the network, for each image, while drawing."""
    classifier_s: float
    """Of the scoring classifier's training, for each image, one thread."""
    start: float
    """How much slower than where they were measured processes start."""
    train_measured: bool
    sample_measured: bool
    because: dict[str, str]
    """Where each figure is from, in words."""


def measured_here(trial: Trial) -> Speeds:
    """Of this machine, as the trial found it."""
    threads, slower = f"{trial.processes} at once, {trial.precision}", trial.start_s / STARTED_AT_S
    return Speeds(
        title=f"this machine, {trial.device}",
        devices=trial.processes,
        train_s=trial.train_s,
        exchange_s=0.0,
        evaluation_s=trial.evaluation_s,
        classifier_s=trial.classifier_s,
        start=slower,
        train_measured=True,
        sample_measured=True,
        because={
            "training": f"measured now: {rate(1 / trial.train_s, 'images')} of each process, {threads}",
            "drawing": f"measured now: {rate(1 / trial.evaluation_s, 'evaluations')} of each process",
            "start-ups": f"measured: {STARTS_SOURCE}, times {slower:.2f}, as a process starts here",
        },
    )


def taken_from_table(config: Config, device: Device, devices: int, work: Work) -> Speeds:
    """Of devices that are not here: what was measured on such a one, or else assumed."""
    kind, precisions = config.network.kind, (_precision(config.train.precision, device), config.sample.precision)
    train = rate_of(device, "train", kind, work.train_flops, precisions[0])
    sample = rate_of(device, "sample", kind, work.evaluation_flops, precisions[1])
    content = gradient_bytes(network_of(config))
    sent = sent_bytes(content, devices, config.train.parallel)
    return Speeds(
        title=device.title,
        devices=devices,
        train_s=work.train_flops / train.flop_per_s,
        exchange_s=exchange_s(device, devices, sent, messages=-(-content // _BUCKET_BYTES)),
        evaluation_s=work.evaluation_flops / sample.flop_per_s,
        classifier_s=CLASSIFIER_S,
        start=1.0,
        train_measured=train.measured and devices <= device.per_host,
        sample_measured=sample.measured,
        because={
            "training": f"{flop_rate(train.flop_per_s)} of each device, {train.because}",
            "drawing": f"{flop_rate(sample.flop_per_s)} of each device, {sample.because}",
            "start-ups": f"as measured on another machine: {STARTS_SOURCE}",
        },
    )


def _precision(chosen: str, device: Device) -> Precision:
    """Of training; auto takes bf16 where there are matrix units for it."""
    if chosen == "auto":
        return "bf16" if "bf16" in device.peak_flop_per_s else "fp32"
    return chosen  # type: ignore[return-value]  # what is not auto is one


def sent_bytes(content: float, workers: int, parallel: Parallel) -> float:
    """What each worker sends in a step to share `content` bytes of gradients."""
    return sharded_bytes(content, workers) if parallel == "fsdp" else all_reduce_bytes(content, workers)


@dataclass(frozen=True)
class Step:
    """One training step of all workers together."""

    compute_s: float
    exposed_s: float
    """Of the exchange of gradients, what the way back does not hide."""
    read_s: float
    """Of one core, to decode the next batch meanwhile."""

    @classmethod
    def of(cls, config: Config, speeds: Speeds) -> "Step":
        """By the worker with the largest share."""
        share = -(-config.train.batch_size // speeds.devices)
        compute_s = share * speeds.train_s
        pixels = config.data.image_size**2 * config.data.channels
        read_s = share * pixels / DECODED_BYTES_PER_S if config.data.cache == "none" else 0.0
        return cls(compute_s, max(0.0, speeds.exchange_s - _BACKWARD * compute_s), read_s)

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return max(self.compute_s + self.exposed_s, self.read_s)

    @property
    def limit(self) -> str:
        """What it waits for."""
        if self.read_s > self.compute_s + self.exposed_s:
            return "decoding images, one core for each worker; set data.cache"
        if self.exposed_s > self.compute_s:
            return "the exchange of gradients"
        hidden = "" if self.exposed_s == 0 else f", {self.exposed_s / self.seconds:.0%} exchange of gradients"
        return f"arithmetic{hidden}"


@dataclass(frozen=True)
class StageCost:
    """One stage of the run."""

    name: str
    seconds: float
    measured: bool
    """Whether its own work was measured on these devices; start-ups may be another machine's."""
    limit: str


def stage_costs(config: Config, speeds: Speeds, work: Work) -> Iterator[StageCost]:
    """The stages of the run, in order, but for tars of the samples, the score's curve and likelihoods."""

    def cost(name: str, seconds: float, measured: bool, limit: str) -> StageCost:
        return StageCost(name, STARTS_S[name] * speeds.start + seconds, measured, limit)

    known, pixels = images_of(config.data), config.data.image_size**2 * config.data.channels
    here = speeds.because["training"].startswith("measured now")
    yield cost("start", 0, here, "Ray's own start")
    packed = f"one process packs {known:,} images" if known else "unknown number of images: not counted"
    yield cost("prepare", (known or 0) * pixels / DECODED_BYTES_PER_S, False, packed)
    step = Step.of(config, speeds)
    yield cost("train", config.train.steps * step.seconds, speeds.train_measured, step.limit)
    guidance = config.sample.guidance
    if isinstance(guidance, ClassifierGuidance):
        yield cost("guide", _guide_s(config, guidance, speeds, work), False, "arithmetic")
    each_s = _features_s(config, speeds, work)
    trained_s = 0.0
    if isinstance(config.evaluate.extractor, Classifier):
        trained_s = config.evaluate.extractor.images * speeds.classifier_s
    limit = "one thread trains the classifier" if trained_s else "features of the images"
    measured = bool(trained_s) and here
    yield cost("reference", trained_s + (known or 0) * each_s / speeds.devices, measured, limit)
    rounds, chunks = drawing_rounds(config, speeds.devices)
    drawn_s = config.sample.chunk_images * (work.evaluations * speeds.evaluation_s + each_s)
    idle = 1 - chunks / (rounds * speeds.devices)
    limit = "arithmetic" if idle < 0.1 else f"{chunks} chunks leave {idle:.0%} of the devices' time idle"
    yield cost("sample", rounds * drawn_s, speeds.sample_measured, limit)
    yield cost("evaluate", 0, False, "one process scores")
    yield cost("register", 0, False, "MLflow")


def drawing_rounds(config: Config, devices: int) -> tuple[int, int]:
    """How often all devices draw a chunk, and chunks of the whole set."""
    chunks = -(-config.sample.images // config.sample.chunk_images)
    return -(-chunks // devices), chunks


def _guide_s(config: Config, guidance: ClassifierGuidance, speeds: Speeds, work: Work) -> float:
    """Of the classifier that guides, at the rate of operations of the network's training."""
    classifier = guidance.classifier
    told = ClassLabels(classes=classifier.classes, dropout=0)
    flops = sum(training_flops(Classifying(config.spec, classifier), told).values())
    return classifier.images / speeds.devices * flops * speeds.train_s / work.train_flops


def _features_s(config: Config, speeds: Speeds, work: Work) -> float:
    """Of one image's features, at the rate of operations of drawing; the classifier's are next to nothing."""
    extractor = config.evaluate.extractor
    if isinstance(extractor, Classifier):
        return speeds.classifier_s / 3
    flops = _DINOV2_FLOPS if isinstance(extractor, DINOv2) else _INCEPTION_FLOPS
    return flops * speeds.evaluation_s / work.evaluation_flops
