"""A published network's weights in a file: that it is the right one before anything reads it, and tensors alone."""

import hashlib
import io
from pathlib import Path
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from model import Record

from .errors import EvaluationError


class WeightsFile(Record):
    """What extractors have in common whose weights somebody else has trained."""

    weights: str | None = None
    """State dict file."""
    weights_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Expected sha256 of `weights`, 64 hexadecimal digits, checked before the file is read; null: any."""

    @property
    def path(self) -> Path:
        """Where the weights file is to be."""
        assert self.weights is not None
        return Path(self.weights).expanduser().absolute()

    def absolute(self) -> Self:
        """The same for a process with another working directory."""
        return self.model_copy(update={"weights": str(self.path)}) if self.weights else self

    def file_digest(self) -> str:
        """sha256 of the weights file; empty where there is no file."""
        if not self.path.is_file():
            return ""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self) -> tuple[dict[str, Tensor], str]:
        """State dict and sha256 of the weights file. EvaluationError where it is missing, another one or no tensors."""
        return read_tensors(self.path, self.weights_sha256, "set evaluate.extractor.weights to the file")


def read_tensors(path: Path, expected: str | None, cure: str) -> tuple[dict[str, Tensor], str]:
    """State dict and sha256 of a file, which is compared with the expected one before a byte of it is unpickled.

    Only tensors are let through (`weights_only`), and no code. cure: what to do where the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{path}: weights cannot be read ({error.strerror}); {cure}") from None
    digest = hashlib.sha256(content).hexdigest()
    if expected not in (None, digest):
        raise EvaluationError(
            f"{path}: sha256 {digest}, expected {expected}; the file is damaged or another one: replace it, "
            f"or name its digest in evaluate.extractor.weights_sha256"
        )
    return _tensors(path, content), digest


def _tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file nearly anything
        first_line = str(error).partition("\n")[0] or type(error).__name__
        raise EvaluationError(f"{path}: not a file of plain tensors ({first_line})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise EvaluationError(f"{path}: holds a {type(state).__name__}, expected a state dict of tensors")
    # An ordered dict with torch's version metadata would be asked for counters that these files do not have.
    return dict(state)
