"""One pipeline run's page in MLflow: opened or found again, filled, closed.

MLflow is a follower here. What a run measured is in files of its folder; this module copies it to the store
that `tracking.uri` names, and may be called again at any point without writing anything twice. It speaks
through `MlflowClient` with an explicit run id: the fluent API would open another run in another thread.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..files import lock_of, read_json, write_json
from ..redaction import redacted
from .mlflow_store import artifact_location, connect, reported

if TYPE_CHECKING:
    from mlflow import MlflowClient

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

_TOKEN_FILE = "mlflow.json"
_TOKEN_TAG = "pipeline.token"
_OPENING_S = 300.0  # longest wait for another process that is opening the same
_MAX_PARAM_CHARACTERS = 6000  # MLflow's own limit, beyond which it cuts without saying so
_MAX_PARAMS = 100  # of one log_batch
_DIGEST_CHARACTERS = 12  # as in the version's card; MLflow's columns show no more, and it takes at most 36


@dataclass(frozen=True)
class TrackedRun:
    """One MLflow run. Every method raises TrackingError where the store does not accept what it is given."""

    uri: str = field(repr=False)  # may hold a password
    experiment_id: str
    run_id: str

    @property
    def client(self) -> "MlflowClient":
        """Cheap: MLflow keeps one store per address."""
        return connect(self.uri)

    def log_metrics(self, figures: Mapping[str, float | None], images: int, time_ms: int) -> None:
        """Figures of the finished model; None is left out. The same call with the same time adds nothing."""
        from mlflow.entities import Metric

        known = {name: value for name, value in figures.items() if value is not None}
        metrics = [Metric(name, value, time_ms, images) for name, value in known.items()]
        with reported("log the figures", self.uri):
            self.client.log_batch(self.run_id, metrics=metrics)

    def log_inputs(self, name: str, digest: str, source: str, images: Mapping[str, int]) -> None:
        """The data set, as `mlflow.log_input` has it. digest: of the shard index; images: count by split."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:_DIGEST_CHARACTERS],
            source_type="local",
            source=json.dumps({"uri": redacted(source)}),
            profile=json.dumps({f"{split}_images": count for split, count in images.items()}),
        )
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        with reported("log the data set", self.uri):
            self.client.log_inputs(self.run_id, datasets=inputs)

    def log_files(self, paths: Sequence[Path], folder: str | None = None) -> None:
        """Uploads each file under its own name; folder: relative path among the run's artifacts."""
        for path in paths:
            with reported(f"upload {path.name}", self.uri):
                self.client.log_artifact(self.run_id, str(path), folder)

    def describe(self, text: str) -> None:
        """What the UI shows as the run's description, Markdown; one that is there, perhaps a person's, stays."""
        from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

        with reported("describe the run", self.uri):
            if MLFLOW_RUN_NOTE not in self.client.get_run(self.run_id).data.tags:
                self.client.set_tag(self.run_id, MLFLOW_RUN_NOTE, text)

    def finish(self, status: RunStatus) -> None:
        """Marks the run as ended."""
        with reported("close the run", self.uri):
            self.client.set_terminated(self.run_id, status)


def open_run(
    uri: str,
    experiment: str,
    run_name: str,
    folder: Path,
    params: Mapping[str, str],
    tags: Mapping[str, str],
) -> TrackedRun:
    """The MLflow run of `folder`: the one opened before if the store still has it, else a new one.

    What ties them is a random token, written to `folder/mlflow.json` before the run is made and tagged on it:
    a kill between the two leaves no orphan, and a run deleted in the UI is not found and so made anew.
    """
    params = {name: _cut(redacted(value)) for name, value in params.items()}
    tags = {name: redacted(value) for name, value in tags.items()}
    with reported("open a run", uri), lock_of(folder / _TOKEN_FILE).acquire(_OPENING_S):
        client = connect(uri)
        experiment_id = _experiment(client, uri, experiment, folder)
        tags[_TOKEN_TAG] = _token(folder)
        found = client.search_runs([experiment_id], f"tags.`{_TOKEN_TAG}` = '{tags[_TOKEN_TAG]}'", max_results=1)
        run = found[0] if found else client.create_run(experiment_id, run_name=run_name, tags=tags)
        if found:
            client.update_run(run.info.run_id, status="RUNNING", name=run_name)
        _log_params(client, run.info.run_id, run.data.params, params)
    return TrackedRun(uri, experiment_id, run.info.run_id)


def _token(folder: Path) -> str:
    path = folder / _TOKEN_FILE
    if path.exists():
        return str(read_json(path)["token"])
    token = uuid.uuid4().hex
    write_json(path, {"token": token})
    return token


def _experiment(client: "MlflowClient", uri: str, name: str, folder: Path) -> str:
    from mlflow.exceptions import MlflowException

    if (experiment := client.get_experiment_by_name(name)) is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location(uri, folder)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # by another process, meanwhile
                raise
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
    return str(experiment.experiment_id)


def _log_params(client: "MlflowClient", run_id: str, there: Mapping[str, str], params: Mapping[str, str]) -> None:
    """Params of a run cannot change: one resumed with, say, more workers says so in a tag instead."""
    from mlflow.entities import Param

    new = [Param(name, value) for name, value in params.items() if name not in there]
    for start in range(0, len(new), _MAX_PARAMS):
        client.log_batch(run_id, params=new[start : start + _MAX_PARAMS])
    changed = [f"{name}: {there[name]} -> {value}" for name, value in params.items() if there.get(name, value) != value]
    if changed:
        client.set_tag(run_id, "pipeline.params_changed_on_resume", "; ".join(changed))


def _cut(text: str) -> str:
    """As long as MLflow takes, and marked so."""
    if len(text) <= _MAX_PARAM_CHARACTERS:
        return text
    note = f" ... ({len(text)} characters, whole in config.yaml)"
    return text[: _MAX_PARAM_CHARACTERS - len(note)] + note
