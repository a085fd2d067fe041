"""A file is whole or absent."""

from pathlib import Path

import pytest

from evaluation.atomic import whole_file


def test_file_appears_only_once_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.json"
    with whole_file(path) as draft:
        draft.write_text("{}")
        assert not path.exists()
    assert path.read_text() == "{}"
    assert list(path.parent.iterdir()) == [path]


def test_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    path.write_text("old")

    def interrupted() -> None:
        with whole_file(path) as draft:
            draft.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
