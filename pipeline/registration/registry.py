"""The model registry: a finished model becomes a version, and two aliases say which version to use.

`candidate` is the newest version. `champion` is the best one: it moves to a version that passes the gate, or by hand,
and `previous` is the one it was before. A call that was killed is made again and finishes what it had begun: the key of
the run that made the model is on everything it creates, so nothing is created twice.
"""

import json
import math
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..tracking.mlflow_store import default_store, reported
from ..tracking.model_uri import version_uri
from ..tracking.tracked_run import TrackedRun
from .gate import Gate, Standing, judge
from .model_package import ModelPackage, card, write_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE = "candidate"
CHAMPION = "champion"
PREVIOUS = "previous"

_RUN_KEY_TAG = "run_key"
PROTOCOL_TAG = "protocol_digest"
PRIMARY_TAG = "primary_score"
_VALUE_TAG = "primary_score_value"
VERDICT_TAG = "verdict"
DECISION_TAG = "decision"
_RESCORED_TAG = "scores."
"""And the first characters of a protocol's digest: what the version scored when it was scored again under that."""
_MOVED_TAG = "champion."
"""And a time: the version became champion then, and why."""
_MOVED = re.compile(re.escape(_MOVED_TAG) + r"(\d{4}-\d\d-\d\dT[\d:.]+Z)")


@dataclass(frozen=True)
class Registered:
    """A version of a model. verdict: one sentence on the champion, with the numbers that decided."""

    name: str
    version: int
    is_champion: bool
    verdict: str

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return version_uri(self.name, self.version)


def register(run: TrackedRun, package: ModelPackage, model_name: str, gate: Gate) -> Registered:
    """Makes or finds the version of `package`, then sets the aliases. TrackingError where MLflow refuses.

    The verdict is written last and once: a version that has one is left alone, also where a person has moved an
    alias since.
    """
    with reported(f"register {model_name}", run.uri):
        client = run.client
        _ensure_registered_model(client, model_name)
        version = _version_of(client, model_name, package.run_key)
        version = version or _create_version(run, package, model_name)
        if VERDICT_TAG not in version.tags:
            _name_on_logged_model(client, version)
            _decide(client, package, version, gate)
        return _as_stored(client, model_name, int(version.version))


def _decide(client: "MlflowClient", package: ModelPackage, version: "ModelVersion", gate: Gate) -> None:
    name, number = version.name, int(version.version)
    new = Standing(package.primary_score, package.scores, version=number, protocol_digest=package.protocol_digest)
    _move_candidate(client, name)
    while True:
        seen = moves(client, name).keys()
        champion = aliases_of(client, name).get(CHAMPION)
        held = None if champion is None else standing(client, name, champion, package.protocol_digest)
        decision = judge(gate, new, champion, held)
        if not decision.promoted:
            break
        replaced = move_champion(client, name, number, decision.verdict)
        # Moves are announced before they are made. Of two at the same time one finds the other here, announced since it
        # looked or made already: that one stands, and this version is judged again.
        announced = [move["version"] for moment, move in moves(client, name).items() if moment not in seen]
        others = [other for other in (replaced, *announced) if other not in (None, champion, number)]
        if not others:
            break
        move_champion(client, name, others[-1], f"it was promoted at the same time as version {number}")
    client.set_model_version_tag(name, str(number), DECISION_TAG, json.dumps(decision.to_json()))
    client.set_model_version_tag(name, str(number), VERDICT_TAG, decision.verdict)


def _move_candidate(client: "MlflowClient", name: str) -> None:
    """To the newest version, also where another process makes one at the same time: the last to move it looks again."""
    while True:
        newest = max(int(each.version) for each in client.search_model_versions(f"name = '{name}'"))
        if aliases_of(client, name).get(CANDIDATE, 0) >= newest:
            return
        client.set_registered_model_alias(name, CANDIDATE, str(newest))


def standing(client: "MlflowClient", name: str, number: int, protocol_digest: str) -> Standing | None:
    """How a version scored under this protocol; None: it was not scored under it."""
    version = client.get_model_version(name, str(number))
    if version.tags.get(PROTOCOL_TAG) == protocol_digest and (scores := scores_of(client, version)) is not None:
        primary = version.tags.get(PRIMARY_TAG, "no score")
        return Standing(primary, scores, version=number, protocol_digest=protocol_digest)
    rescored = version.tags.get(_rescored_tag(protocol_digest))
    if not rescored:
        return None
    return Standing(**json.loads(rescored), version=number, protocol_digest=protocol_digest)


def logged_model_of(version: "ModelVersion") -> str:
    """Id of the MLflow model with the files and the scores."""
    return str(version.source).removeprefix("models:/")


def scores_of(client: "MlflowClient", version: "ModelVersion") -> dict[str, float] | None:
    """Those it was registered with, which are on its logged model; None: somebody has deleted that."""
    from mlflow.exceptions import MlflowException

    try:
        metrics = client.get_logged_model(logged_model_of(version)).metrics or []
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return {metric.key: metric.value for metric in metrics}


def add_scores(client: "MlflowClient", name: str, again: Standing) -> None:
    """Keeps what a version scored when it was scored again, under another protocol than its own."""
    kept = json.dumps({"primary": again.primary, "scores": dict(again.scores)}, allow_nan=False)
    client.set_model_version_tag(name, str(again.version), _rescored_tag(again.protocol_digest), kept)


def aliases_of(client: "MlflowClient", name: str) -> dict[str, int]:
    """The versions that aliases point to. None of a model that is not there."""
    if not client.search_registered_models(f"name = '{name}'", max_results=1):
        return {}
    return {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()}


def move_champion(client: "MlflowClient", name: str, number: int, why: str) -> int | None:
    """Makes a version the champion and the one before it `previous`, after it has written down when and why.

    -> the champion just before: another than a moment ago where another process has moved it.
    """
    before = aliases_of(client, name).get(CHAMPION)
    if before == number:
        return before
    event = json.dumps({"version": number, "before": before, "why": why})
    client.set_model_version_tag(name, str(number), f"{_MOVED_TAG}{moment_of(time.time())}", event)
    replaced = aliases_of(client, name).get(CHAMPION)
    if replaced not in (None, number):
        client.set_registered_model_alias(name, PREVIOUS, str(replaced))
    client.set_registered_model_alias(name, CHAMPION, str(number))
    return replaced


def moment_of(unix_s: float) -> str:
    """A time as it is in the tags, in whose order they come."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moves(client: "MlflowClient", name: str) -> dict[str, dict[str, Any]]:
    """By their times, oldest first, changes of the champion: to which `version`, from which `before`, and `why`.

    They are kept with the versions, and so those to a version that was deleted are not known any more.
    """
    found = {
        f"{match[1]} {version.version}": json.loads(value)
        for version in client.search_model_versions(f"name = '{name}'")
        for key, value in version.tags.items()
        if (match := _MOVED.fullmatch(key))
    }
    return dict(sorted(found.items()))


def _rescored_tag(protocol_digest: str) -> str:
    return f"{_RESCORED_TAG}{protocol_digest[:12]}"


def _as_stored(client: "MlflowClient", name: str, number: int) -> Registered:
    champion = aliases_of(client, name).get(CHAMPION)
    verdict = client.get_model_version(name, str(number)).tags[VERDICT_TAG]
    return Registered(name, number, champion == number, verdict)


def _ensure_registered_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    if client.search_registered_models(f"name = '{name}'", max_results=1):
        return
    try:
        client.create_registered_model(name, description=_about(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # by another process, meanwhile
            raise


def _version_of(client: "MlflowClient", name: str, run_key: str) -> "ModelVersion | None":
    found = client.search_model_versions(f"name = '{name}' and tags.`{_RUN_KEY_TAG}` = '{run_key}'", max_results=1)
    return found[0] if found else None


def _create_version(run: TrackedRun, package: ModelPackage, name: str) -> "ModelVersion":
    model_id = _logged_model(run, package, name)
    score = package.scores.get(package.primary_score)
    tags = {  # the UI shows them in this order
        PRIMARY_TAG: package.primary_score,
        _VALUE_TAG: repr(score) if score is not None and math.isfinite(score) else "nan",
        "trained_images": str(package.trained_images),
        "data_digest": package.data_digest,
        PROTOCOL_TAG: package.protocol_digest,
        _RUN_KEY_TAG: package.run_key,
    }
    with default_store(run.uri):
        return run.client.create_model_version(
            name, f"models:/{model_id}", run.run_id, tags, description=card(package), model_id=model_id
        )


def _name_on_logged_model(client: "MlflowClient", version: "ModelVersion") -> None:
    """So that its page links to the version; done by `mlflow.register_model` and by a server, not by MlflowClient."""
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    named = json.dumps([{"name": version.name, "version": version.version}])
    client.set_logged_model_tags(logged_model_of(version), {MLFLOW_MODEL_VERSIONS: named})


def _logged_model(run: TrackedRun, package: ModelPackage, name: str) -> str:
    """Id of the MLflow model with the files. One that a kill left half-uploaded is deleted and made again."""
    client = run.client
    mine = f"tags.`{_RUN_KEY_TAG}` = '{package.run_key}' AND name = '{name}'"
    for found in client.search_logged_models([run.experiment_id], filter_string=mine):
        if found.status == "READY":
            return str(found.model_id)
        client.delete_logged_model(found.model_id)
    created = client.create_logged_model(
        run.experiment_id, name, run.run_id, tags={_RUN_KEY_TAG: package.run_key}, model_type="diffusion"
    )
    with TemporaryDirectory() as folder:
        write_model(Path(folder, "model"), package, run.run_id, created.model_id)
        client.log_model_artifacts(created.model_id, str(Path(folder, "model")))
    _link(run, package, created.model_id)
    client.finalize_logged_model(created.model_id, "READY")
    return str(created.model_id)


def _link(run: TrackedRun, package: ModelPackage, model_id: str) -> None:
    """Shows the model on its run's page, and the scores on the model's."""
    from mlflow.entities import LoggedModelOutput, Metric

    metrics = [
        Metric(name, value, package.trained_ms, package.trained_images, model_id=model_id)
        for name, value in package.scores.items()
        if value is not None
    ]
    run.client.log_batch(run.run_id, metrics=metrics)
    run.client.log_outputs(run.run_id, [LoggedModelOutput(model_id, package.trained_images)])


def _about(name: str) -> str:
    return f"""A diffusion model that turns integers into images, each of which depends on its integer alone.

`champion` is the version to use: better than the champion before it by more than chance, under one evaluation protocol.
`previous` is that one before, `candidate` the newest version.

```python
import mlflow
model = mlflow.pyfunc.load_model("models:/{name}@champion")
images = model.predict({{"seed": [0, 1, 2]}})  # uint8 [3, H, W, C]
```
"""
