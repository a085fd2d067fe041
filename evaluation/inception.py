"""The 2015 Inception network: which weights file, and that it is the right one before anything reads it."""

import hashlib
import io
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal
from urllib.error import URLError

import torch
from pydantic import Field, model_validator
from torch import Tensor

from model import Record

from .errors import EvaluationError

# torch-fidelity's own file; it downloads it without looking at the digest.
PUBLISHED_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Inception(Record):
    """The InceptionV3 of 2015-12-05 as torch-fidelity ports it: the network of every published FID."""

    kind: Literal["inception"] = "inception"
    layer: Literal["64", "192", "768", "2048"] = "2048"
    """Features that the Frechet distance compares, named by their size; only 2048 gives a comparable FID."""
    weights: str | None = None
    """State dict file in torch-fidelity's naming; null: its own one, downloaded once into torch's cache."""
    weights_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Expected sha256 of `weights`, 64 hexadecimal digits, checked before the file is read; null: any."""

    @model_validator(mode="after")
    def _digest_belongs_to_a_file(self) -> "Inception":
        if self.weights is None and self.weights_sha256 not in (None, PUBLISHED_SHA256):
            raise ValueError("weights_sha256 needs weights: without a path the published file and digest are used")
        return self

    @property
    def path(self) -> Path:
        """Where the weights file is to be."""
        return Path(self.weights).expanduser().absolute() if self.weights else _cached()

    def absolute(self) -> "Inception":
        """The same for a process with another working directory."""
        return self.model_copy(update={"weights": str(self.path)}) if self.weights else self

    def file_digest(self) -> str:
        """sha256 of the weights file, of the published one without looking; empty where there is no file."""
        if self.weights is None:
            return PUBLISHED_SHA256
        if not self.path.is_file():
            return ""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(spec: Inception) -> tuple[dict[str, Tensor], str]:
    """State dict and sha256 of the weights file, checked before a byte of it is unpickled.

    torch-fidelity would unpickle whatever it is given; here only tensors are let through (`weights_only`).
    """
    path = spec.path if spec.weights else _downloaded()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EvaluationError(
            f"{path}: Inception weights cannot be read ({error.strerror}); set evaluate.extractor.weights to "
            f"the file of {PUBLISHED_URL}, or to null to download it"
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    expected = spec.weights_sha256 if spec.weights else PUBLISHED_SHA256
    if expected not in (None, digest):
        raise EvaluationError(
            f"{path}: sha256 {digest}, expected {expected}; the file is damaged or another one: replace it, "
            f"or name its digest in evaluate.extractor.weights_sha256"
        )
    return _tensors(path, content), digest


def _tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        first_line = str(error).partition("\n")[0]
        raise EvaluationError(f"{path}: not a file of plain tensors ({first_line})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise EvaluationError(f"{path}: holds a {type(state).__name__}, expected a state dict of tensors")
    # An ordered dict with torch's version metadata would be asked for counters that these files do not have.
    return dict(state)


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
