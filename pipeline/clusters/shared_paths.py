"""Which keys of a configuration name files, and whether the nodes of a cluster will find them there."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..data.remote import is_remote
from ..errors import ConfigError
from ..runfile.config import Config
from ..tracking.model_uri import ModelURI, names_registered

_EACH_NODES_OWN = "data.shard_cache.folder"
_START = "train.warm_start"
_AS_TEXT = ("output", "data.source.urls", _START, "evaluate.extractor.weights")
_SQLITE = "sqlite:///"


def named_paths(config: Config) -> Iterator[tuple[str, str]]:
    """Each key that names a file or folder, with what it names; of several files the key comes several times.

    ConfigError where train.warm_start is meant to name a registered version and does not.
    """
    for key, value in _values(config.model_dump(by_alias=True)):
        text = str(value).removeprefix("file://")
        named = isinstance(value, Path) or (key in _AS_TEXT and isinstance(value, str))
        if key == _START and names_registered(text):
            ModelURI.parsed(text)
        elif named and key != _EACH_NODES_OWN and not is_remote(text):
            yield key, text


def tracking_uri(config: Config) -> str | None:
    """MLflow's address as this process would take it; None: an SQLite file under `output`."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")


def check_paths(config: Config, nodes: int, here: bool) -> None:
    """ConfigError names every key whose file some node may not have.

    nodes: how many the cluster has. here: whether the only one is this machine, where paths mean what they mean to who
    gives the command. Of another one absolute paths are taken on trust; of several, those below `cluster.shared`.
    """
    if nodes == 1 and here:
        return
    refusal, mistakes = _of_another_machine(config) if nodes == 1 else _of_several(config, nodes)
    if mistakes:
        raise ConfigError("\n  ".join([refusal, *mistakes]))


def _of_another_machine(config: Config) -> tuple[str, list[str]]:
    named = [*named_paths(config), ("tracking.uri", (tracking_uri(config) or "").partition(_SQLITE)[2] or "/")]
    mistakes = [f"{key}: {path} is not absolute" for key, path in named if not Path(path).is_absolute()]
    return "the cluster is another machine; give the absolute paths that files have there", mistakes


def _of_several(config: Config, nodes: int) -> tuple[str, list[str]]:
    shared = [folder for folder in config.cluster.shared if folder.is_absolute()]
    mistakes = [f"{key}: {path}" for key, path in named_paths(config) if not _is_below(Path(path), shared)]
    uri = tracking_uri(config)
    if uri is None or uri.startswith(_SQLITE):
        mistakes.append(f"tracking.uri: {uri or 'null'} is an SQLite file; give the address of an MLflow server")
    return (
        f"the cluster has {nodes} nodes, and not all of them may see the same here; give URLs, or paths below a folder "
        "that all nodes share, which cluster.shared names",
        mistakes,
    )


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    plain = Path(os.path.normpath(path))  # `..` leads out again
    return any(plain.is_relative_to(folder) for folder in folders)


def _values(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each value that is no section, with its dotted key; members of a list have that of the list."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _values(below, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _values(member, key)
    else:
        yield key, value
