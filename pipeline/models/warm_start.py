"""The weights that a training starts from in place of random ones: found and checked once, before anything is spent.

What decides the result is the weights and not where they were: their digest is part of the training's identity. They
are copied into the training's folder, from where workers read them, on other nodes and after a restart too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from model import ModelSpec, Record

from ..errors import ConfigError, PipelineError, TrainingError
from ..files import write_bytes
from ..runfile.config import Config
from .description import Description, described_in
from .stored_model import weights_of
from .weights import check_weights, read_weights, weights_digest

START = "start.safetensors"


@dataclass(frozen=True)
class WarmStart:
    """Weights of a model that exists, in memory."""

    name: str
    """Where they are from; of an alias, the version that it meant."""
    digest: str
    """Of the weights."""
    weights: Mapping[str, Tensor] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.name}, weights {self.digest[:12]}"

    def write(self, folder: Path) -> None:
        """Copies the weights into a training's folder, whole or absent, unless they are there."""
        path = folder / START
        try:
            if weights_digest(read_weights(path)) == self.digest:
                return
        except ConfigError:
            pass  # none there yet, or a damaged one
        write_bytes(path, save(dict(self.weights)))


def find_start(name: str, config: Config, tracking_uri: str) -> WarmStart:
    """The model of this name, which `train.warm_start` gives, as a start for this configuration's network.

    ConfigError where it is not there or the weights are another network's, or where it is to be taken as it is and is
    another model; TrackingError where MLflow does not answer or has no such model.
    """
    try:
        with weights_of(name, tracking_uri, config.tracking.timeout_s) as (found, file, description):
            if config.train.images == 0 and description is not None:
                _refuse_another(found, described_in(description), config)
            weights = read_weights(file)
            with torch.device("meta"):
                network = config.spec.build()
            check_weights(weights, network, found, "of this configuration")
            weights = {key: tensor.clone() for key, tensor in weights.items()}  # the file may change, or go
    except PipelineError as error:
        raise type(error)(f"train.warm_start: {error}") from None
    return WarmStart(found, weights_digest(weights), weights)


def _refuse_another(name: str, there: Description, config: Config) -> None:
    """Unlike the start of a training, what is not trained cannot get used to another path or target."""
    parts = {part: (getattr(there.spec, part), getattr(config.spec, part)) for part in ModelSpec.model_fields}
    parts["labels_withheld"] = (there.labels_withheld, config.labels_withheld)
    differing = [
        f"{part} is {_shown(found)} there and {_shown(asked)} here"
        for part, (found, asked) in parts.items()
        if found != asked
    ]
    if differing:
        raise ConfigError(
            f"{name}: another model than this configuration's, and train.images 0 would take it as it is: "
            f"{'; '.join(differing)}"
        )


def _shown(part: Any) -> str:
    return json.dumps(part.model_dump(mode="json") if isinstance(part, Record) else part)


def read_start(folder: Path, digest: str) -> Mapping[str, Tensor]:
    """The copy in a training's folder. TrainingError unless it is whole and of this digest."""
    path = folder / START
    remedy = "remove it, and the same command copies it anew"
    try:
        weights = read_weights(path)
    except ConfigError as error:
        raise TrainingError(f"{error}; {remedy}") from None
    if (found := weights_digest(weights)) != digest:
        raise TrainingError(f"{path}: weights {found[:12]}, expected {digest[:12]}; {remedy}")
    return weights
