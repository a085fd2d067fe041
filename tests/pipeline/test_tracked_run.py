"""The MLflow run of a pipeline run, in a real SQLite store."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import TrackingError
from pipeline.tracking.tracked_run import TrackedRun, open_run


def opened(uri: str, folder: Path, **params: str) -> TrackedRun:
    return open_run(uri, "digits", "night", folder, params, {"commit": "abc"})


def number_of_runs(run: TrackedRun, folder: Path) -> int:
    token = json.loads((folder / "mlflow.json").read_text())["token"]
    return len(run.client.search_runs([run.experiment_id], f"tags.`pipeline.token` = '{token}'"))


def test_a_value_beyond_mlflows_limit_is_cut_and_says_so(uri: str, tmp_path: Path) -> None:
    run = open_run(uri, "digits", "long", tmp_path, {"urls": "x" * 7000}, {})
    (kept,) = run.client.get_run(run.run_id).data.params.values()
    assert len(kept) == 6000
    assert kept.endswith("x ... (7000 characters, whole in config.yaml)")


def test_a_run_keeps_its_params_tags_and_name_and_hides_secrets(uri: str, tmp_path: Path) -> None:
    run = opened(uri, tmp_path, seed="1", store="http://ann:secret@host")
    stored = run.client.get_run(run.run_id)
    assert stored.data.params == {"seed": "1", "store": "http://***@host"}
    assert stored.data.tags["commit"] == "abc"
    assert stored.info.run_name == "night"
    assert uri not in repr(run)


def test_a_run_keeps_the_description_that_it_has(uri: str, tmp_path: Path) -> None:
    run = opened(uri, tmp_path)
    for text in ("- **fid**: 1.25", "- **fid**: 1.5"):
        run.describe(text)
    assert run.client.get_run(run.run_id).data.tags["mlflow.note.content"] == "- **fid**: 1.25"


def test_the_same_folder_finds_its_run_again(uri: str, tmp_path: Path) -> None:
    first = opened(uri, tmp_path, workers="2")
    first.finish("KILLED")
    again = opened(uri, tmp_path, workers="3")
    assert again.run_id == first.run_id
    stored = again.client.get_run(again.run_id)
    assert stored.info.status == "RUNNING"
    assert stored.data.params == {"workers": "2"}
    assert stored.data.tags["pipeline.params_changed_on_resume"] == "workers: 2 -> 3"


def test_more_params_than_one_request_takes_are_all_logged(uri: str, tmp_path: Path) -> None:
    params = {f"key.{number}": "x" for number in range(250)}
    run = opened(uri, tmp_path, **params)
    assert run.client.get_run(run.run_id).data.params == params


def test_another_folder_has_another_run(uri: str, tmp_path: Path) -> None:
    assert opened(uri, tmp_path / "a").run_id != opened(uri, tmp_path / "b").run_id


def test_a_deleted_run_is_made_anew(uri: str, tmp_path: Path) -> None:
    deleted = opened(uri, tmp_path)
    deleted.client.delete_run(deleted.run_id)
    assert opened(uri, tmp_path).run_id != deleted.run_id


def test_a_kill_before_the_run_was_made_leaves_one_run(uri: str, tmp_path: Path) -> None:
    (tmp_path / "mlflow.json").write_text('{"token": "written-before-the-kill"}')
    assert number_of_runs(opened(uri, tmp_path), tmp_path) == 1
    assert number_of_runs(opened(uri, tmp_path), tmp_path) == 1


def test_scores_are_logged_once_and_missing_ones_left_out(uri: str, tmp_path: Path) -> None:
    run = opened(uri, tmp_path)
    for _ in range(2):
        run.log_metrics({"fid_classifier": 27.5, "fid": None}, images=5000, time_ms=1_700_000_000_000)
    assert run.client.get_run(run.run_id).data.metrics == {"fid_classifier": 27.5}
    assert [point.step for point in run.client.get_metric_history(run.run_id, "fid_classifier")] == [5000]


def test_the_data_set_is_one_input_however_often_it_is_logged(uri: str, tmp_path: Path) -> None:
    run = opened(uri, tmp_path)
    for _ in range(2):
        run.log_inputs("digits", "f" * 64, "s3://key:secret@bucket/digits", {"train": 1437, "heldout": 360})
    [logged] = run.client.get_run(run.run_id).inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("digits", "f" * 12)
    assert json.loads(logged.dataset.source) == {"uri": "s3://***@bucket/digits"}
    assert json.loads(logged.dataset.profile) == {"train_images": 1437, "heldout_images": 360}


def test_files_are_uploaded_beside_the_database(uri: str, tmp_path: Path) -> None:
    (tmp_path / "grid.png").write_bytes(b"png")
    run = opened(uri, tmp_path)
    run.log_files([tmp_path / "grid.png"], "pictures")
    assert [file.path for file in run.client.list_artifacts(run.run_id, "pictures")] == ["pictures/grid.png"]
    location = run.client.get_run(run.run_id).info.artifact_uri
    assert location.startswith(Path(uri.removeprefix("sqlite:///")).with_name("mlartifacts").as_uri())


def test_a_file_that_is_not_there_is_named(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"cannot upload absent\.png"):
        opened(uri, tmp_path).log_files([tmp_path / "absent.png"])


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_ends_with_its_status(uri: str, tmp_path: Path, status: Any) -> None:
    run = opened(uri, tmp_path)
    run.finish(status)
    assert run.client.get_run(run.run_id).info.status == status


def test_a_fresh_store_is_made_without_a_word(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from pipeline.tracking.tracked_run import open_run
folder = Path({str(tmp_path)!r})
open_run(f"sqlite:///{{folder}}/mlflow.db", "digits", "night", folder / "night", {{}}, {{}}).finish("FINISHED")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "night"]
