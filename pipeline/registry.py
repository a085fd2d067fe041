"""The model registry: a finished model becomes a version, and two aliases say which version to use.

`candidate` is the newest version. `champion` is the best one: it moves only to a version that was scored
under the same protocol and scored lower. A call that was killed is made again and finishes what it had begun:
the key of the run that made the model is on everything it creates, so nothing is created twice.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .mlflow_store import default_store, reported
from .model_package import ModelPackage, card, write_model
from .tracking import TrackedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE = "candidate"
CHAMPION = "champion"

_RUN_KEY_TAG = "run_key"
_PROTOCOL_TAG = "protocol_digest"
PRIMARY_TAG = "primary_score"
_VALUE_TAG = "primary_score_value"
_VERDICT_TAG = "verdict"


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
        return f"models:/{self.name}/{self.version}"


def register(run: TrackedRun, package: ModelPackage, model_name: str) -> Registered:
    """Makes or finds the version of `package`, then sets the aliases. TrackingError where MLflow refuses.

    The verdict is written last and once: a version that has one is left alone, also where a person has moved an
    alias since.
    """
    with reported(f"register {model_name}", run.uri):
        client = run.client
        _ensure_registered_model(client, model_name)
        version = _version_of(client, model_name, package.run_key)
        version = version or _create_version(run, package, model_name)
        if _VERDICT_TAG not in version.tags:
            _decide(client, package, version)
        return _as_stored(client, model_name, int(version.version))


def judge(package: ModelPackage, version: int, champion: "ModelVersion | None") -> tuple[bool, str]:
    """Whether `version` is to be the champion, and why. A score that is missing or not finite never wins."""
    if champion is None:
        return True, f"version {version} is the first champion"
    holder = f"version {champion.version}"
    if int(champion.version) == version:
        return True, f"{holder} is the champion"
    name, score = package.primary_score, package.scores.get(package.primary_score)
    if (champion.tags.get(_PROTOCOL_TAG), champion.tags.get(PRIMARY_TAG)) != (package.protocol_digest, name):
        return (
            False,
            f"{holder} stays champion: it was scored under another protocol, so the two cannot be compared",
        )
    if score is None or not math.isfinite(score):
        return False, f"{holder} stays champion: version {version} has no {name}"
    held = float(champion.tags[_VALUE_TAG])
    if math.isnan(held):
        return True, f"version {version} is champion: {name} {score:.4g}, where {holder} has none"
    if score < held:
        return True, f"version {version} is champion: {name} {score:.4g} against {held:.4g} of {holder}"
    return False, f"{holder} stays champion: {name} {held:.4g} against {score:.4g} of version {version}"


def _decide(client: "MlflowClient", package: ModelPackage, version: "ModelVersion") -> None:
    name, number = version.name, int(version.version)
    aliases = client.get_registered_model(name).aliases
    champion = client.get_model_version(name, str(aliases[CHAMPION])) if CHAMPION in aliases else None
    is_champion, verdict = judge(package, number, champion)
    if number > int(aliases.get(CANDIDATE, 0)):
        client.set_registered_model_alias(name, CANDIDATE, str(number))
    if is_champion:
        client.set_registered_model_alias(name, CHAMPION, str(number))
    client.set_model_version_tag(name, str(number), _VERDICT_TAG, verdict)


def _as_stored(client: "MlflowClient", name: str, number: int) -> Registered:
    champion = int(client.get_registered_model(name).aliases.get(CHAMPION, 0))
    verdict = client.get_model_version(name, str(number)).tags[_VERDICT_TAG]
    return Registered(name, number, champion == number, verdict)


def _ensure_registered_model(client: "MlflowClient", name: str) -> None:
    if client.search_registered_models(f"name = '{name}'", max_results=1):
        return
    client.create_registered_model(name, description=_about(name))


def _version_of(client: "MlflowClient", name: str, run_key: str) -> "ModelVersion | None":
    found = client.search_model_versions(f"name = '{name}' and tags.`{_RUN_KEY_TAG}` = '{run_key}'", max_results=1)
    return found[0] if found else None


def _create_version(run: TrackedRun, package: ModelPackage, name: str) -> "ModelVersion":
    model_id = _logged_model(run, package, name)
    score = package.scores.get(package.primary_score)
    tags = {
        _RUN_KEY_TAG: package.run_key,
        _PROTOCOL_TAG: package.protocol_digest,
        PRIMARY_TAG: package.primary_score,
        _VALUE_TAG: repr(score) if score is not None and math.isfinite(score) else "nan",
        "data_digest": package.data_digest,
        "trained_images": str(package.trained_images),
    }
    with default_store(run.uri):
        return run.client.create_model_version(
            name, f"models:/{model_id}", run.run_id, tags, description=card(package), model_id=model_id
        )


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
    return f"""A diffusion model that turns integers into images.

`champion` is the best version under one evaluation protocol, `candidate` the newest one.

```python
import mlflow
model = mlflow.pyfunc.load_model("models:/{name}@champion")
images = model.predict({{"seed": [0, 1, 2]}})  # uint8 [3, H, W, C]; image i depends on row i alone
```
"""
