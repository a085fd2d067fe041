"""`model.json`: what is known of a model without its weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from model import (
    ClassLabels,
    Conditioning,
    Guidance,
    ModelSpec,
    NoGuidance,
    Precision,
    Record,
    RePaint,
    Sampler,
    Unconditional,
)

from ..errors import ConfigError
from ..files import read_json
from ..runfile.config import Config
from ..runfile.configfile import load

DESCRIPTION = "model.json"
FORMAT = 3
_READ = (1, 2, FORMAT)
"""Formats of a description that are read: 1 had no guidance, 2 no classifier that guides; the rest is alike."""


class Description(Record):
    """`model.json`: a model without its weights, how images are drawn from it, and where the weights are."""

    format: Literal[1, 2, 3]
    """Version of this file's format."""
    spec: ModelSpec
    """The model without its weights."""
    sampler: Sampler
    """How noise becomes an image."""
    guidance: Guidance = NoGuidance()
    """How strongly the class of an image is followed."""
    precision: Precision = "fp32"
    """Arithmetic of the network, the one that it was scored in."""
    labels_withheld: bool = False
    """Whether the network has learned to do without a class, as classifier_free guidance asks of it."""
    inpaint: RePaint = RePaint()
    """How a hole is filled."""
    weights: str | None = None
    """Safetensors, relative to this file; null in the registry, which has it beside this file."""
    classifier: str | None = None
    """Those of the classifier that guides; null: none."""

    @property
    def conditioning(self) -> Conditioning:
        """What a run file says of a model that is told as much of an image."""
        if not self.spec.classes:
            return Unconditional()
        return ClassLabels(classes=self.spec.classes, **({} if self.labels_withheld else {"dropout": 0.0}))


def described_in(file: Path, overrides: Sequence[str] = ()) -> Description:
    """The description in a `model.json`. ConfigError where it is none, or of a format that is not read."""
    told = _read(file)
    # Earlier code did not write whether labels were withheld, but refused this guidance where they were not.
    guidance = told.get("guidance")
    followed = isinstance(guidance, Mapping) and guidance.get("kind") == "classifier_free"
    implied = ["labels_withheld=true"] if followed and "labels_withheld" not in told else []
    return load(file, [*implied, *overrides], Description)


def description_of(config: Config) -> dict[str, Any]:
    """All of a model but its weights, and how images are drawn from it, as JSON."""
    description = Description(
        format=FORMAT,
        spec=config.spec,
        sampler=config.sample.sampler,
        guidance=config.sample.guidance,
        precision=config.sample.precision,
        labels_withheld=config.labels_withheld,
    )
    return description.model_dump(mode="json", exclude={"inpaint", "weights", "classifier"})


def _read(description: Path) -> dict[str, Any]:
    """The file as it is. ConfigError where it is no description of a format that is read."""
    try:
        told: dict[str, Any] = read_json(description)
        found = told.get("format")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{description}: not a model's description ({error}); run the pipeline again") from None
    if found not in _READ:
        raise ConfigError(
            f"{description}: format {found}, this version reads {', '.join(map(str, _READ))}; run the pipeline again "
            "with this version, or use the version of this program that made it (a registered one loads by "
            "mlflow.pyfunc with its own code)"
        )
    return told
