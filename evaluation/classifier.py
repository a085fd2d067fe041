"""A small classifier of the data's own classes: the feature extractor where Inception makes no sense.

An 8x8 digit enlarged to 299x299 means nothing to a network that was trained on photographs. A classifier of
the same kind of images costs seconds, needs no download, and gives the two things the scores ask for: a
feature vector (the penultimate layer) and class probabilities.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from model import Record

from .atomic import whole_file
from .errors import EvaluationError

BATCH_IMAGES = 64
PEAK_LEARNING_RATE = 1e-2  # of a one-cycle schedule: Smith & Topin 2019, arXiv 1708.07120
SMALLEST_SIDE_PIXELS = 8  # two poolings leave 2x2


class Classifier(Record):
    """A convolutional network trained on the labelled training images when the first score is asked for."""

    kind: Literal["classifier"] = "classifier"
    images: int = Field(50_000, ge=BATCH_IMAGES)
    """Length of its training, images seen; the training set is repeated as often as it takes."""
    width: int = Field(16, ge=1)
    """Channels of its first convolutions; the later ones have twice as many."""
    features: int = Field(64, ge=2)
    """Size of its penultimate layer, numbers per image: the features that the Frechet distance compares."""
    seed: int = Field(0, ge=0)
    """Seed of its first weights, its order of images and its shifts."""


class Architecture(Record):
    """All that rebuilds the network around its weights; travels in the weights file."""

    image_size: int
    """Side of the square images it was trained on, pixels."""
    channels: Literal[1, 3]
    """Channels of its images: 1 grey, 3 RGB."""
    classes: int
    """Number of classes."""
    width: int
    """Channels of the first convolutions."""
    features: int
    """Size of the penultimate layer, numbers per image."""


class ClassifierNetwork(nn.Module):
    """Five 3x3 convolutions, global average pooling, one linear layer; any image of at least 8x8 pixels."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        width, features = architecture.width, architecture.features
        self.body = nn.Sequential(
            _convolution(architecture.channels, width),
            _convolution(width, width),
            nn.MaxPool2d(2),
            _convolution(width, 2 * width),
            _convolution(2 * width, 2 * width),
            nn.MaxPool2d(2),
            _convolution(2 * width, features),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(features, architecture.classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features and logits. images: uint8 [B, C, H, W] -> float32 [B, D], [B, K]."""
        pool = self.body(images.float() / 127.5 - 1)
        return pool, self.head(pool)


def _convolution(channels_in: int, channels_out: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def train_classifier(
    spec: Classifier, images: NDArray[np.uint8], labels: NDArray[np.int64], num_classes: int
) -> ClassifierNetwork:
    """Train on the CPU, one thread, so that one machine gives one set of weights whatever else it is doing.

    images: uint8 [N, H, W, C] with H = W and C 1 or 3, labels: int64 [N] in [0, num_classes).
    """
    _check_training_data(images, labels, num_classes)
    architecture = Architecture(
        image_size=images.shape[1],
        channels=images.shape[3],
        classes=num_classes,
        width=spec.width,
        features=spec.features,
    )
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        network = ClassifierNetwork(architecture)
        _fit(network, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels.copy()), spec)
    return network.eval().requires_grad_(False)


def _check_training_data(images: NDArray[np.uint8], labels: NDArray[np.int64], num_classes: int) -> None:
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or shape[1] != shape[2]:
        raise EvaluationError(
            f"classifier: training images are {images.dtype} {list(shape)}, expected square ones, "
            f"uint8 [N, H, W, 1 or 3]"
        )
    if shape[1] < SMALLEST_SIDE_PIXELS:
        raise EvaluationError(
            f"classifier: images of {shape[1]}x{shape[1]} pixels, it needs at least {SMALLEST_SIDE_PIXELS}x"
            f"{SMALLEST_SIDE_PIXELS}; set data.image_size accordingly"
        )
    if labels.shape != shape[:1] or labels.dtype != np.int64:
        raise EvaluationError(
            f"classifier: labels are {labels.dtype} {list(labels.shape)}, expected int64 [{shape[0]}]"
        )
    if num_classes < 2 or len(labels) < num_classes or labels.min() < 0 or labels.max() >= num_classes:
        span = f"in {labels.min()}..{labels.max()}" if len(labels) else "absent"
        raise EvaluationError(
            f"classifier: {len(labels)} labels {span}, expected at least one image for each of 2 or more "
            f"classes, labelled 0..{num_classes - 1}; data without classes needs the extractor `inception`"
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """A sum that is split over threads is rounded differently for each number of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit(network: ClassifierNetwork, images: Tensor, labels: Tensor, spec: Classifier) -> None:
    steps = spec.images // BATCH_IMAGES
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=max(steps, 2))
    network.train()
    for batch in _batches(len(labels), steps):
        _, logits = network(_shifted(images[batch]))
        optimizer.zero_grad()
        cross_entropy(logits, labels[batch]).backward()
        optimizer.step()
        schedule.step()


def _batches(count: int, steps: int) -> Iterator[Tensor]:
    """Positions of each step's images: every image once before any comes again."""
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(waiting) < BATCH_IMAGES:
            waiting = torch.cat([waiting, torch.randperm(count)])
        yield waiting[:BATCH_IMAGES]
        waiting = waiting[BATCH_IMAGES:]


def _shifted(images: Tensor) -> Tensor:
    """Move each image by -1, 0 or 1 pixels along each axis, its edge repeated. uint8 [B, C, H, W]."""
    count, channels, height, width = images.shape
    padded = pad(images.float(), (1, 1, 1, 1), mode="replicate").to(torch.uint8)
    down, right = torch.randint(0, 3, (2, count, 1))
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    image, channel = torch.arange(count), torch.arange(channels)
    return padded[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None]]


def save_classifier(network: ClassifierNetwork, path: Path) -> str:
    """Write weights and architecture as one safetensors file, whole or not at all; its sha256."""
    # One metadata key only: safetensors does not keep the order of several, and the digest would change.
    metadata = {"classifier": network.architecture.model_dump_json()}
    content = save(network.state_dict(), metadata=metadata)
    with whole_file(path) as draft:
        draft.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def load_classifier(path: Path) -> ClassifierNetwork:
    """Rebuild the network from `save_classifier`'s file, ready to be called."""
    try:
        with safe_open(path, framework="pt") as file:
            described = (file.metadata() or {}).get("classifier")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except FileNotFoundError:
        raise EvaluationError(f"{path}: no classifier there; run the evaluate stage, which trains it") from None
    except SafetensorError as error:
        raise EvaluationError(f"{path}: not a whole safetensors file ({error}); delete it to train again") from None
    if described is None:
        raise EvaluationError(f"{path}: weights of something else, no `classifier` in the metadata")
    try:
        network = ClassifierNetwork(Architecture.model_validate_json(described))
        network.load_state_dict(state)
    except (ValidationError, RuntimeError) as error:
        raise EvaluationError(f"{path}: the weights do not fit the architecture beside them: {error}") from None
    return network.eval().requires_grad_(False)
