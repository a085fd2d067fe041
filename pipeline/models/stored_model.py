"""A trained model from where it is kept: a run's folder, or a version in the MLflow registry. No Ray."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model import (
    EAGER,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Execution,
    Guidance,
    LearnedRange,
    ModelSpec,
    RePaint,
    Sampler,
    TrainedModel,
)

from ..errors import ConfigError
from ..tracking.mlflow_store import ANSWER_S
from ..tracking.model_uri import names_registered
from .description import DESCRIPTION, Description, described_in
from .model_files import files_of, placed
from .weights import check_weights, read_weights

_OPEN = ("sampler", "guidance", "inpaint")
"""Sections that a request may override."""


@dataclass(frozen=True)
class StoredModel:
    """A model in memory, and how images are drawn from it."""

    name: str
    """As it was asked for; of a run, its folder's last part."""
    model: TrainedModel
    sampler: Sampler
    guidance: Guidance
    inpaint: RePaint
    device: torch.device
    sampler_asked: bool = False
    """Whether the sampler is one that the request names, and not the model's own."""


def load_stored(name: str, overrides: Sequence[str], tracking_uri: str | None, device: str) -> StoredModel:
    """The model that is called so, with `section.key=value` overrides of its sampler, guidance and inpaint.

    name: a run's folder, models:/NAME@ALIAS or models:/NAME/VERSION. ConfigError where it is not there, is of another
    format, or does not fit together; TrackingError where MLflow does not answer.
    """
    where = _device(device)
    _refuse_closed(overrides)
    with files_of(name, tracking_uri, "--tracking-uri", ANSWER_S) as files:
        described = described_in(files.description, overrides)
        _check_fits(described)
        weights = placed(files.description, files.weights, described.weights, "weights")
        classifier = None
        if isinstance(described.guidance, ClassifierGuidance):
            classifier = placed(files.description, files.classifier, described.classifier, "classifier")
        execution = Execution(precision=described.precision)
        model = assembled(described.spec, described.guidance, weights, classifier, where, execution)
    shown = name if names_registered(name) else Path(name).resolve().name
    asked = any(override.startswith("sampler") for override in overrides)
    return StoredModel(shown, model, described.sampler, described.guidance, described.inpaint, where, asked)


@contextmanager
def weights_of(name: str, tracking_uri: str, timeout_s: float) -> Iterator[tuple[str, Path, Path | None]]:
    """The weights that a model's images are drawn from, without the model: yields its name, their file, and that of its
    description where there is one. The files are there while the block runs.

    name: what `load_stored` takes, or a .safetensors file; in place of an alias the version that it means now is
    yielded. timeout_s: longest wait for MLflow's first answer. ConfigError and TrackingError as by `load_stored`.
    """
    if not names_registered(name) and name.endswith(".safetensors"):
        file = Path(name).expanduser().absolute()
        if not file.is_file():
            raise ConfigError(f"{name}: no such file; give one of weights, the folder of a trained run, or models:/...")
        yield str(file), file, None
        return
    with files_of(name, tracking_uri, "tracking.uri", timeout_s) as files:
        relative = described_in(files.description).weights if files.weights is None else None
        yield files.name, placed(files.description, files.weights, relative, "weights"), files.description


def assembled(
    spec: ModelSpec,
    guidance: Guidance,
    weights: Path,
    classifier: Path | None,
    device: torch.device,
    execution: Execution = EAGER,
) -> TrainedModel:
    """The model of these files, with all that the guidance needs. ConfigError where the weights are another's."""
    network, guide = _filled(spec.build, weights, device), None
    if isinstance(guidance, ClassifierGuidance):
        assert classifier is not None
        channels, image_size, _ = spec.latent_shape
        guide = _filled(lambda: guidance.classifier.build(image_size, channels), classifier, device)
    return TrainedModel(spec, execution.of(network), guide, spec.codec.build().to(device))


def _device(device: str) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here; use cpu, or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def _refuse_closed(overrides: Sequence[str]) -> None:
    for override in overrides:
        if (key := re.split(r"[.=]", override)[0]) not in _OPEN:
            raise ConfigError(
                f"{override}: {key!r} is none of {', '.join(_OPEN)}; everything else is as the model was trained"
            )


def _check_fits(described: Description) -> None:
    try:
        described.sampler.check(described.spec.path)
    except ValueError as error:
        raise ConfigError(f"sampler: {error}") from None
    if isinstance(described.guidance, ClassifierFreeGuidance) and not described.spec.classes:
        raise ConfigError("guidance: classifier_free follows the class of an image, and this model is told of none")
    if isinstance(described.guidance, ClassifierFreeGuidance) and not described.labels_withheld:
        raise ConfigError(
            "guidance: classifier_free compares with images whose class is withheld, and this model was trained with "
            "conditioning.dropout 0; use none, or train it again"
        )
    for section, part in (("sampler", described.sampler), ("inpaint", described.inpaint)):
        if getattr(part, "variance", None) == "learned" and not isinstance(described.spec.variance, LearnedRange):
            raise ConfigError(f"{section}.variance: learned, but this model has none; use fixed_small or fixed_large")


def _filled(build: Any, file: Path, device: torch.device) -> nn.Module:
    """A network with the weights of the file. ConfigError where they are another network's."""
    weights = read_weights(file)
    with torch.device("meta"):  # first without memory, of which a description may promise any amount
        check_weights(weights, build(), str(file), f"that {DESCRIPTION} describes")
    with torch.random.fork_rng(devices=[]):  # `build` draws weights, which is no reason to disturb the caller
        network: nn.Module = build()
    network.load_state_dict(weights)
    return network.to(device).eval().requires_grad_(False)
