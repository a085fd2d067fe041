"""Two scored models side by side, with their uncertainty, where they were scored in the same way; else why not."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter, ValidationError

from evaluation import Protocol, differences

from .errors import ConfigError, PipelineError
from .evaluate import PROTOCOL
from .files import read_json
from .mlflow_store import check_answers, connect, default_store, reported
from .model_uri import ModelURI
from .registry import PRIMARY_TAG, scores_of
from .summary import SUMMARY
from .terminal import Terminal

_SCORES = TypeAdapter(dict[str, float | None])
_DISTINCT = 2.0
"""Combined standard errors from which on a difference is taken for one."""


@dataclass(frozen=True)
class Scored:
    """A model's scores and how they came about."""

    name: str
    protocol: Protocol
    primary: str
    """The name of the score that decides; lower is better."""
    scores: Mapping[str, float | None]


def run_compare(first: str, second: str, tracking_uri: str, timeout_s: float, terminal: Terminal) -> None:
    """Prints both. PipelineError, with every reason, where the two were not scored in the same way."""
    one, other = (scored(name, tracking_uri, timeout_s) for name in (first, second))
    reasons = differences(one.protocol, other.protocol)
    if reasons:
        raise PipelineError(
            f"{one.name} and {other.name} were not scored in the same way, so their scores say nothing of each other:\n"
            + "\n".join(f"  {reason}" for reason in reasons)
            + "\nscore one of them again as the other was"
        )
    rows = [("", one.name, other.name, "difference")]
    names = [name for name in one.scores if name in other.scores and not name.endswith("_se")]
    rows += [(name, _shown(one, name), _shown(other, name), _difference(one, other, name)) for name in names]
    terminal.table(rows, "<>>>")
    terminal.facts({"verdict": verdict(one, other)})


def verdict(one: Scored, other: Scored) -> str:
    """Which is better by the score that decides, and whether that is more than chance."""
    values, errors = ([each.scores.get(name) for each in (one, other)] for name in (one.primary, f"{one.primary}_se"))
    if any(value is None for value in values):
        return f"no {one.primary} of both"
    difference = _number(values[0]) - _number(values[1])
    better = other if difference > 0 else one
    if any(error is None for error in errors):
        return f"{better.name} has the lower {one.primary}; how much of that is chance is not known (no standard error)"
    combined = math.hypot(*map(_number, errors))
    ratio = abs(difference) / combined if combined else math.inf
    if ratio < _DISTINCT:
        return f"no difference beyond chance: {abs(difference):.3g} is {ratio:.1f} combined standard errors"
    return (
        f"{better.name} is better: {one.primary} lower by {abs(difference):.3g}, {ratio:.1f} combined standard errors"
    )


def scored(name: str, tracking_uri: str, timeout_s: float) -> Scored:
    """Of a run's folder, models:/NAME@ALIAS or models:/NAME/VERSION. ConfigError where there are no scores."""
    if name.startswith("models:/"):
        return _registered(name, tracking_uri, timeout_s)
    path = Path(name) / SUMMARY
    try:
        summary = read_json(path)
        return _as_scored(Path(name).name, summary["protocol"], summary["primary_score"], summary["scores"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: no scores of a finished run ({error}); name the folder of a run, or models:/NAME@ALIAS"
        ) from None


def _registered(name: str, uri: str, timeout_s: float) -> Scored:
    wanted = ModelURI.parsed(name)
    check_answers(uri, timeout_s)
    with reported(f"look up {name}", uri), TemporaryDirectory() as folder:
        client = connect(uri)
        version = wanted.version(client)
        scores = scores_of(client, version)
        if PRIMARY_TAG not in version.tags or scores is None:
            raise ConfigError(f"{name}: version {version.version} was not scored by this program; name one that was")
        with default_store(uri):
            protocol = read_json(Path(client.download_artifacts(str(version.run_id), PROTOCOL, folder)))
    return _as_scored(f"{version.name}/{version.version}", protocol, version.tags[PRIMARY_TAG], scores)


def _as_scored(name: str, protocol: Any, primary: str, scores: Any) -> Scored:
    try:
        return Scored(name, Protocol.model_validate(protocol), primary, _SCORES.validate_python(scores))
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise ConfigError(
            f"{name}: its protocol or scores are of another version of this program ({fields}); score it again with "
            "this one"
        ) from None


def _shown(one: Scored, name: str) -> str:
    value, error = one.scores.get(name), one.scores.get(f"{name}_se")
    return "not available" if value is None else f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}")


def _difference(one: Scored, other: Scored, name: str) -> str:
    values = one.scores[name], other.scores[name]
    return "" if None in values else f"{_number(values[1]) - _number(values[0]):+.3g}"


def _number(value: float | None) -> float:
    assert value is not None
    return value
