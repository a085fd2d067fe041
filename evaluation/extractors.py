"""Feature extractors: what turns images into the numbers that scores compare.

To add one: a record with its own `kind`, its name in `Extractor`, its case in `load_extractor`.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from model import Record

from .classifier import Classifier, load_classifier
from .dinov2 import DINOv2, build_vision_transformer
from .errors import EvaluationError
from .inception import Inception

Extractor = Annotated[Classifier | Inception | DINOv2, Field(discriminator="kind")]
"""One of them, told apart by `kind`."""

INCEPTION_CLASSES = 1008


class ExtractorIdentity(Record):
    """Which network made the features; two scores are alike only if this is equal."""

    kind: str
    """The extractor's kind in the configuration."""
    layer: str
    """The layer whose features the Frechet distance compares."""
    digest: str
    """sha256 of the weights file."""
    resize: Literal["none", "tf1-bilinear-299", "pil-bicubic-224", "unknown"]
    """How images are resized before the network sees them; unknown only of a reference that others made."""


class Features(NamedTuple):
    """What an extractor says of B images; NaN where its weights cannot say it."""

    pool: NDArray[np.float32]
    """[B, D], for the Frechet distance."""
    logits: NDArray[np.float32]
    """[B, K], for the Inception Score; K = 0 where the network knows no classes."""


@dataclass(frozen=True)
class LoadedExtractor:
    """A network on its device, ready to be called with images."""

    identity: ExtractorIdentity
    module: nn.Module
    device: torch.device
    classes: int
    """K, the number of logits; 0: none."""
    image_shape: tuple[int, int, int] | None
    """The only [H, W, C] it takes; None: any size, grey or RGB."""

    @property
    def name(self) -> str:
        """The kind: `classifier`, `inception` or `dinov2`."""
        return self.identity.kind

    @property
    def digest(self) -> str:
        """sha256 of the weights file."""
        return self.identity.digest

    def __call__(self, images: NDArray[np.uint8]) -> Features:
        """Features of one batch. images: uint8 [B, H, W, C] in 0..255."""
        _check_images(self, images)
        if self.image_shape is None and images.shape[3] == 1:
            images = images.repeat(3, axis=3)
        # Always a copy: with one channel a transposed view passes for contiguous, but torch sees its strides
        # and rounds otherwise.
        batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(self.device)
        # TF32 rounds what a convolution reads to 10 bits; a benchmarked algorithm changes between runs.
        with (
            torch.no_grad(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            found = self.module(batch)
        return Features(_array(found[0]), _array(found[1]) if len(found) > 1 else self._no_logits(len(images)))

    def _no_logits(self, count: int) -> NDArray[np.float32]:
        return np.full((count, self.classes), np.nan, dtype=np.float32)


def _array(features: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = features.float().cpu().numpy()
    return array


def _check_images(extractor: LoadedExtractor, images: NDArray[Any]) -> None:
    if images.dtype != np.uint8:
        span = f" in {images.min():g}..{images.max():g}" if images.size else ""
        raise EvaluationError(f"{extractor.name}: images are {images.dtype}{span}, expected uint8 in 0..255")
    if images.ndim != 4 or len(images) == 0 or images.shape[3] not in (1, 3):
        raise EvaluationError(f"{extractor.name}: images are {list(images.shape)}, expected [B, H, W, 1 or 3], B >= 1")
    if extractor.image_shape not in (None, images.shape[1:]):
        raise EvaluationError(
            f"{extractor.name}: images of {list(images.shape[1:])}, trained on "
            f"{list(extractor.image_shape or ())}; score images of the same data set"
        )


def load_extractor(spec: Extractor, classifier_weights: Path, device: str = "cpu") -> LoadedExtractor:
    """Load onto `device`. `classifier_weights`: where `save_classifier` wrote; read for a classifier only."""
    match spec:
        case Classifier():
            return _load_classifier(classifier_weights, torch.device(device))
        case Inception():
            return _load_inception(spec, torch.device(device))
        case DINOv2():
            return _load_dinov2(spec, torch.device(device))


def _load_classifier(weights: Path, device: torch.device) -> LoadedExtractor:
    from . import fidelity  # not above: `pipeline check` needs the records only and should not wait for torchvision

    network = load_classifier(weights)
    shape = network.architecture
    identity = ExtractorIdentity(
        kind="classifier",
        layer=str(shape.features),
        digest=hashlib.sha256(weights.read_bytes()).hexdigest(),
        resize="none",
    )
    module = fidelity.classifier_module(weights, ["pool", "logits"]).to(device)
    image_shape = (shape.image_size, shape.image_size, shape.channels)
    return LoadedExtractor(identity, module, device, shape.classes, image_shape)


def _load_inception(spec: Inception, device: torch.device) -> LoadedExtractor:
    from . import fidelity

    state, digest = spec.read()
    # Published sets of partial weights mark what is missing by NaN; the layers behind would only spread it.
    finite = all(torch.isfinite(value).all() for value in state.values())
    layers: list[str] = [spec.layer, "logits_unbiased"] if finite else [spec.layer]
    try:
        module = fidelity.inception_module(state, layers).to(device)
    except RuntimeError as error:
        first_lines = " ".join(str(error).split())[:200]
        raise EvaluationError(
            f"{spec.weights}: not the weights of torch-fidelity's InceptionV3 ({first_lines}...)"
        ) from None
    identity = ExtractorIdentity(kind="inception", layer=spec.layer, digest=digest, resize="tf1-bilinear-299")
    return LoadedExtractor(identity, module, device, INCEPTION_CLASSES, None)


def _load_dinov2(spec: DINOv2, device: torch.device) -> LoadedExtractor:
    state, digest = spec.read()
    module = build_vision_transformer(state, spec.path).to(device)
    identity = ExtractorIdentity(
        kind="dinov2", layer=f"class-token-{module.width}", digest=digest, resize="pil-bicubic-224"
    )
    return LoadedExtractor(identity, module, device, 0, None)


def extract(extractor: LoadedExtractor, chunks: Iterable[NDArray[np.uint8]]) -> Features:
    """Features of all chunks, joined in the order given. A chunk is one batch, on which rounding depends."""
    return joined(extractor(images) for images in chunks)


def joined(parts: Iterable[Features]) -> Features:
    """One set of features from those of its chunks, in the order given."""
    pools, logits = zip(*parts, strict=True)
    return Features(np.concatenate(pools), np.concatenate(logits))
