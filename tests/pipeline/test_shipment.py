"""What travels with a job: the packages alone, the same bytes each time, and never more than a cluster takes."""

import json
import zipfile
from pathlib import Path

import pytest

from pipeline.clusters.shipment import LIMIT_BYTES, PACKAGES, CodeTree
from pipeline.code_version import RECORD, CodeVersion, code_version
from pipeline.errors import ConfigError


@pytest.fixture
def tree(tmp_path: Path) -> CodeTree:
    """Packages of one module each, and what is not sent."""
    for package in PACKAGES:
        (tmp_path / package / "__pycache__").mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text("")
        (tmp_path / package / "__pycache__" / "x.pyc").write_text("compiled")
        (tmp_path / package / ".hidden").write_text("")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "weights").write_text("")
    return CodeTree(tmp_path)


def large_file(path: Path, size: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def test_the_packages_are_sent_without_what_is_hidden_or_compiled(tree: CodeTree) -> None:
    assert tree.files == ["evaluation/__init__.py", "model/__init__.py", "pipeline/__init__.py"]
    tree.check()
    assert str(tree) == "0.0 MiB in 3 files"


def test_this_tree_is_small() -> None:
    assert {"model/__init__.py", "pipeline/__main__.py", "pipeline/runs/digits.yaml"} <= set(CodeTree().files)
    assert CodeTree().bytes < LIMIT_BYTES / 20


def test_the_archive_follows_from_its_content(tree: CodeTree, tmp_path: Path) -> None:
    first, second = tmp_path / "1.zip", tmp_path / "2.zip"
    tree.pack(first, {"run.yaml": "a: 1"})
    (tree.folder / "model" / "__init__.py").touch()
    tree.pack(second, {"run.yaml": "a: 1"})
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert archive.namelist() == [*tree.files, "run.yaml", RECORD]
        assert archive.read("run.yaml") == b"a: 1"


def test_a_changed_file_is_another_code(tree: CodeTree) -> None:
    before = tree.digest
    assert CodeTree(tree.folder).digest == before
    (tree.folder / "model" / "__init__.py").write_text("1")
    assert CodeTree(tree.folder).digest != before


def test_too_much_is_refused_and_what_is_large_is_named(tree: CodeTree) -> None:
    large_file(tree.folder / "pipeline" / "runs" / "weights.pt", LIMIT_BYTES)
    large_file(tree.folder / "model" / "notes.bin", 2 * 1024**2)
    largest = r"pipeline/runs/ holds 100\.0 MiB, of which weights\.pt 100\.0 MiB; model/ holds 2\.0 MiB"
    says = rf"hold 102\.0 MiB, and a Ray cluster takes 100\.0 MiB with a job; {largest}.*move what is no code elsewhere"
    with pytest.raises(ConfigError, match=says):
        CodeTree(tree.folder).check()


def test_what_is_large_is_named_where_it_is_allowed_too(tree: CodeTree) -> None:
    large_file(tree.folder / "pipeline" / "runs" / "weights.pt", 20 * 1024**2)
    large = CodeTree(tree.folder)
    large.check()
    assert str(large).startswith("20.0 MiB in 4 files; pipeline/runs/ holds 20.0 MiB, of which weights.pt 20.0 MiB")


def test_the_commit_travels_with_the_code(tree: CodeTree, tmp_path: Path) -> None:
    """There is no repository where the code arrives, and none where it may be sent on from there."""
    known = {"commit": "5e" * 20, "changes": "a line"}
    (tmp_path / RECORD).write_text(json.dumps(known))
    assert code_version(tmp_path) == CodeVersion("5e" * 20, "a line")
    tree.pack(tmp_path / "on.zip", {})
    with zipfile.ZipFile(tmp_path / "on.zip") as archive:
        assert json.loads(archive.read(RECORD)) == known
