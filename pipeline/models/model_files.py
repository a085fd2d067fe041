"""Where a model's files are: in a run's folder, or fetched from the MLflow registry."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import ConfigError
from ..runfile.yamltext import read_yaml
from ..tracking.mlflow_store import check_answers, connect, default_store, reported, resolve_uri
from ..tracking.model_uri import ModelURI, names_registered, version_uri
from .description import DESCRIPTION


@dataclass(frozen=True)
class ModelFiles:
    """Those of one model."""

    name: str
    """As it was asked for, but the version in place of an alias, and a folder's whole path."""
    description: Path
    weights: Path | None = None
    """None: where the description says."""
    classifier: Path | None = None


@contextmanager
def files_of(name: str, tracking_uri: str | None, key: str, timeout_s: float) -> Iterator[ModelFiles]:
    """The files of the model that is called so, there while the block runs. ConfigError where they are not there.

    key: the option or key by which a person gives MLflow's address. timeout_s: longest wait for its answer.
    """
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
    yield ModelFiles(str(folder_of_run.absolute()), folder_of_run / DESCRIPTION)


def _downloaded(name: str, uri: str, key: str, timeout_s: float, folder: Path) -> ModelFiles:
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


def _files_in(folder: Path, name: str) -> ModelFiles:
    """The places that MLflow's own `MLmodel` lists. ConfigError where these are not a model of ours."""
    try:
        told: Any = read_yaml((folder / "MLmodel").read_text()).value
        listed = told["flavors"]["python_function"]["artifacts"]
        artifacts: Mapping[str, Path] = {key: _within(folder, place["path"]) for key, place in listed.items()}
        return ModelFiles(name, artifacts["description"], artifacts["weights"], artifacts.get("classifier"))
    except (OSError, KeyError, TypeError, AttributeError, ValueError):
        raise ConfigError(
            f"{name}: no model of this pipeline, which would list its description and weights; name another version"
        ) from None


def _within(folder: Path, place: str) -> Path:
    """The file at this place. ValueError where that leads out of the folder: who wrote the list may lie."""
    if not (folder / place).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{place} is outside")
    return folder / place


def placed(description: Path, found: Path | None, relative: str | None, what: str) -> Path:
    """A file of the model: where it was `found`, else where its description says. ConfigError where it is not there.

    what: weights or classifier, as the error calls it.
    """
    path = found or (relative and description.parent / relative)
    if not path:
        raise ConfigError(f"{description}: no {what}; this model was trained without")
    if not path.is_file():
        raise ConfigError(f"{path}: the {what} that {description} names are not there; restore them, or run again")
    return path
