"""The 2015 Inception network: which weights file, and that it is the right one before anything reads it."""

from pathlib import Path
from typing import Literal
from urllib.error import URLError

import torch
from pydantic import model_validator
from torch import Tensor

from .errors import EvaluationError
from .weights_file import WeightsFile, read_tensors

# torch-fidelity's own file; it downloads it without looking at the digest.
PUBLISHED_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Inception(WeightsFile):
    """The InceptionV3 of 2015-12-05 as torch-fidelity ports it: the network of every published FID."""

    kind: Literal["inception"] = "inception"
    layer: Literal["64", "192", "768", "2048"] = "2048"
    """Features that the Frechet distance compares, named by their size; only 2048 gives a comparable FID."""
    weights: str | None = None
    """State dict file in torch-fidelity's naming; null: its own one, downloaded once into torch's cache."""

    @model_validator(mode="after")
    def _digest_belongs_to_a_file(self) -> "Inception":
        if self.weights is None and self.weights_sha256 not in (None, PUBLISHED_SHA256):
            raise ValueError("weights_sha256 needs weights: without a path the published file and digest are used")
        return self

    @property
    def path(self) -> Path:
        """Where the weights file is to be."""
        return super().path if self.weights else _cached()

    def file_digest(self) -> str:
        """sha256 of the weights file, of the published one without looking; empty where there is no file."""
        return super().file_digest() if self.weights else PUBLISHED_SHA256

    def read(self) -> tuple[dict[str, Tensor], str]:
        """State dict and sha256 of the weights file, which is downloaded where none is named."""
        path, expected = (self.path, self.weights_sha256) if self.weights else (_downloaded(), PUBLISHED_SHA256)
        cure = f"set evaluate.extractor.weights to the file of {PUBLISHED_URL}, or to null to download it"
        return read_tensors(path, expected, cure)


def _cached() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", PUBLISHED_URL.rpartition("/")[2])


def _downloaded() -> Path:
    """The published file in torch's cache, fetched if absent; torch writes it whole or not at all."""
    path = _cached()
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(PUBLISHED_URL, str(path), progress=False)
    except URLError as error:
        raise EvaluationError(
            f"{PUBLISHED_URL}: the Inception weights cannot be downloaded ({error.reason}); fetch the file "
            f"elsewhere and set evaluate.extractor.weights to it, or use the extractor `classifier`"
        ) from None
    return path
