"""Two scored models side by side, with their uncertainty, where they were scored in the same way; else why not."""

import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter, ValidationError

from evaluation import Protocol, differences

from ..errors import ConfigError, PipelineError
from ..files import read_json
from ..scoring.evaluate import PROTOCOL
from ..scoring.model_scores import ModelScores
from ..summary import SUMMARY
from ..terminal import Terminal
from ..tracking.mlflow_store import check_answers, connect, default_store, reported
from ..tracking.model_uri import ModelURI, names_registered
from .registry import PRIMARY_TAG, scores_of

_SCORES = TypeAdapter(dict[str, float | None])
_DISTINCT = 2.0
"""Combined standard errors from which on a difference is taken for one."""


@dataclass(frozen=True, kw_only=True)
class Scored(ModelScores):
    """A model, and how it scored under which protocol."""

    name: str
    protocol: Protocol


def run_compare(first: str, second: str, tracking_uri: str, terminal: Terminal) -> None:
    """Prints both. PipelineError, with every reason, where the two were not scored in the same way."""
    one, other = (scored(name, tracking_uri) for name in (first, second))
    reasons = differences(one.protocol, other.protocol)
    if reasons:
        raise PipelineError(
            f"{one.name} and {other.name} were not scored in the same way, so their scores say nothing of each other:\n"
            + "\n".join(f"  {reason}" for reason in reasons)
            + "\nscore one of them again as the other was"
        )
    rows = [("", one.name, other.name, "difference")]
    names = [name for name in one.scores if name in other.scores and not name.endswith("_se")]
    rows += [(name, one.shown(name), other.shown(name), _difference(one, other, name)) for name in names]
    terminal.table(rows, "<>>>")
    terminal.facts({"verdict": verdict(one, other)})


def verdict(one: Scored, other: Scored) -> str:
    """Which is better by the score that decides, and whether that is more than chance."""
    name = one.primary
    if one.decisive is None or other.decisive is None:
        return f"no {name} of both"
    difference = one.decisive - other.decisive
    better = other if difference > 0 else one
    if one.error is None or other.error is None:
        return f"{better.name} has the lower {name}; how much of that is chance is not known (no standard error)"
    combined = math.hypot(one.error, other.error)
    ratio = abs(difference) / combined if combined else math.inf
    if ratio < _DISTINCT:
        return f"no difference beyond chance: {abs(difference):.3g} is {ratio:.1f} combined standard errors"
    return f"{better.name} is better: {name} lower by {abs(difference):.3g}, {ratio:.1f} combined standard errors"


def scored(name: str, tracking_uri: str) -> Scored:
    """Of a run's folder, models:/NAME@ALIAS or models:/NAME/VERSION. ConfigError where there are no scores."""
    if names_registered(name):
        return _registered(name, tracking_uri)
    path = Path(name) / SUMMARY
    try:
        summary = read_json(path)
        return _as_scored(Path(name).name, summary["protocol"], summary["primary_score"], summary["scores"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: no scores of a finished run ({error}); name the folder of a run, or models:/NAME@ALIAS"
        ) from None


def _registered(name: str, uri: str) -> Scored:
    wanted = ModelURI.parsed(name)
    check_answers(uri)
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
        return Scored(primary, _SCORES.validate_python(scores), name=name, protocol=Protocol.model_validate(protocol))
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise ConfigError(
            f"{name}: its protocol or scores are of another version of this program ({fields}); score it again with "
            "this one"
        ) from None


def _difference(one: Scored, other: Scored, name: str) -> str:
    before, after = one.score(name), other.score(name)
    return "" if before is None or after is None else f"{after - before:+.3g}"
