"""A trained model from where it is kept: a run's folder, or a version in the MLflow registry. No Ray."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import nn

from model import (
    EAGER,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    ClassLabels,
    Conditioning,
    Execution,
    Guidance,
    LearnedRange,
    ModelSpec,
    NoGuidance,
    Precision,
    Record,
    RePaint,
    Sampler,
    TrainedModel,
    Unconditional,
)

from ..errors import ConfigError
from ..files import read_json
from ..runfile.config import Config
from ..runfile.configfile import load
from ..runfile.yamltext import read_yaml
from ..tracking.mlflow_store import ANSWER_S, check_answers, connect, default_store, reported, resolve_uri
from ..tracking.model_uri import ModelURI, names_registered, version_uri
from .weights import check_weights, read_weights

DESCRIPTION = "model.json"
FORMAT = 3
_READ = (1, 2, FORMAT)
"""Formats of a description that are read: 1 had no guidance, 2 no classifier that guides; the rest is alike."""
_OPEN = ("sampler", "guidance", "inpaint")
"""Sections that a request may override."""


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


@dataclass(frozen=True)
class _Files:
    name: str
    """As it was asked for, but the version in place of an alias, and a folder's whole path."""
    description: Path
    weights: Path | None = None
    """None: where the description says."""
    classifier: Path | None = None


def load_stored(name: str, overrides: Sequence[str], tracking_uri: str | None, device: str) -> StoredModel:
    """The model that is called so, with `section.key=value` overrides of its sampler, guidance and inpaint.

    name: a run's folder, models:/NAME@ALIAS or models:/NAME/VERSION. ConfigError where it is not there, is of another
    format, or does not fit together; TrackingError where MLflow does not answer.
    """
    where = _device(device)
    _refuse_closed(overrides)
    with _files_of(name, tracking_uri, "--tracking-uri", ANSWER_S) as files:
        described = described_in(files.description, overrides)
        _check_fits(described)
        weights = _placed(files.description, files.weights, described.weights, "weights")
        classifier = None
        if isinstance(described.guidance, ClassifierGuidance):
            classifier = _placed(files.description, files.classifier, described.classifier, "classifier")
        execution = Execution(precision=described.precision)
        model = assembled(described.spec, described.guidance, weights, classifier, where, execution)
    shown = name if names_registered(name) else Path(name).resolve().name
    asked = any(override.startswith("sampler") for override in overrides)
    return StoredModel(shown, model, described.sampler, described.guidance, described.inpaint, where, asked)


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
    with _files_of(name, tracking_uri, "tracking.uri", timeout_s) as files:
        relative = described_in(files.description).weights if files.weights is None else None
        yield files.name, _placed(files.description, files.weights, relative, "weights"), files.description


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


@contextmanager
def _files_of(name: str, tracking_uri: str | None, key: str, timeout_s: float) -> Iterator[_Files]:
    """key: the option or key by which a person gives MLflow's address; timeout_s: longest wait for its answer."""
    if names_registered(name):
        with TemporaryDirectory() as folder:
            yield _downloaded(name, resolve_uri(tracking_uri), key, timeout_s, Path(folder))
        return
    folder_of_run = Path(name).expanduser()
    if not (folder_of_run / DESCRIPTION).is_file():
        what = "has no " + DESCRIPTION if folder_of_run.is_dir() else "no such folder"
        if (folder_of_run / "model_index.json").is_file():
            what += ", but diffusers' model_index.json; 'python -m pipeline import' makes a model of it"
        raise ConfigError(
            f"{name}: {what}; give the folder of a trained run, such as outputs/digits-..., models:/NAME@ALIAS or "
            "models:/NAME/VERSION"
        )
    yield _Files(str(folder_of_run.absolute()), folder_of_run / DESCRIPTION)


def _downloaded(name: str, uri: str, key: str, timeout_s: float, folder: Path) -> _Files:
    """The version's files in `folder`, by the names that `model_package.write_model` gave them."""
    wanted = ModelURI.parsed(name)
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not file.exists():
        raise ConfigError(f"{name}: there is no MLflow store {file}; give its address by {key}")
    check_answers(uri, timeout_s)
    with reported(f"download {name}", uri):
        from mlflow.artifacts import download_artifacts

        version = wanted.version(connect(uri))
        with default_store(uri):
            download_artifacts(artifact_uri=version.source, dst_path=str(folder))
    return _files_in(folder, version_uri(version.name, version.version))


def _files_in(folder: Path, name: str) -> _Files:
    """The places that MLflow's own `MLmodel` lists. ConfigError where these are not a model of ours."""
    try:
        told: Any = read_yaml((folder / "MLmodel").read_text()).value
        listed = told["flavors"]["python_function"]["artifacts"]
        artifacts: Mapping[str, Path] = {key: _within(folder, place["path"]) for key, place in listed.items()}
        return _Files(name, artifacts["description"], artifacts["weights"], artifacts.get("classifier"))
    except (OSError, KeyError, TypeError, AttributeError, ValueError):
        raise ConfigError(
            f"{name}: no model of this pipeline, which would list its description and weights; name another version"
        ) from None


def _within(folder: Path, place: str) -> Path:
    """The file at this place. ValueError where that leads out of the folder: who wrote the list may lie."""
    if not (folder / place).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{place} is outside")
    return folder / place


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


def _placed(description: Path, found: Path | None, relative: str | None, what: str) -> Path:
    path = found or (relative and description.parent / relative)
    if not path:
        raise ConfigError(f"{description}: no {what}; this model was trained without")
    if not path.is_file():
        raise ConfigError(f"{path}: the {what} that {description} names are not there; restore them, or run again")
    return path


def _filled(build: Any, file: Path, device: torch.device) -> nn.Module:
    """A network with the weights of the file. ConfigError where they are another network's."""
    weights = read_weights(file)
    with torch.device("meta"):  # first without memory, of which a description may promise any amount
        check_weights(weights, build(), str(file), f"that {DESCRIPTION} describes")
    with torch.random.fork_rng(devices=[]):  # `build` draws weights, which is no reason to disturb the caller
        network: nn.Module = build()
    network.load_state_dict(weights)
    return network.to(device).eval().requires_grad_(False)
