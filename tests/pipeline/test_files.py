"""Files that are whole or absent, and folders that one process holds at a time."""

import json
import math
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.files import digest, exclusive, in_turn, read_json, sha256_of, write_json


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "stage"
    with exclusive(folder, "train stage"):
        assert folder.is_dir()
        message = rf"{folder}: another process \(\d+ on .+, since .+ UTC\) is at this train stage; wait for it"
        with pytest.raises(PipelineError, match=message), exclusive(folder, "train stage"):
            pass
    with exclusive(folder, "train stage"):
        pass


def test_who_waits_for_a_folder_gets_it_or_gives_up(tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    folder.mkdir()
    with in_turn(folder, "set of features", 0.2):
        says = rf"{folder}: another process has been at this set of features for 0.2 s \(cluster.task_timeout_s\)"
        with pytest.raises(PipelineError, match=says), in_turn(folder, "set of features", 0.2):
            pass
    with in_turn(folder, "set of features", 0.2):
        pass


def test_the_folder_is_let_go_of_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path / "stage", "run"):
        raise ZeroDivisionError
    with exclusive(tmp_path / "stage", "run"):
        pass


def test_json_that_other_readers_would_refuse_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"loss": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": math.nan})
    assert read_json(path) == {"loss": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["facts.json"]


def test_a_digest_is_of_the_value_and_not_of_its_order() -> None:
    assert digest({"a": 1, "b": [2.5, None]}) == digest(json.loads('{"b": [2.5, null], "a": 1}'))
    assert digest({"a": 1}) != digest({"a": 1.5})


def test_the_sha256_of_a_file_is_the_known_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
