"""The commit of a real repository, with and without changes."""

import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from pipeline.code_version import CodeVersion, code_version, environment


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_and_what_was_changed_since(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)
        return done.stdout.decode().strip()

    git("init")
    (tmp_path / "file.py").write_text("old\n")
    git("add", "file.py")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    code_version.cache_clear()
    assert code_version(tmp_path) == CodeVersion(commit, "")
    assert str(code_version(tmp_path)) == f"code `{commit[:12]}`"
    (tmp_path / "file.py").write_text("new\n")
    code_version.cache_clear()
    assert "-old\n+new" in code_version(tmp_path).changes
    assert str(code_version(tmp_path)).endswith("with changes")


def test_code_in_no_repository_is_of_no_known_commit(tmp_path: Path) -> None:
    assert code_version(tmp_path) == CodeVersion(None, "")
    assert str(code_version(tmp_path)) == "code of no known commit"


def test_the_environment_names_every_package() -> None:
    first, *packages = environment().splitlines()
    assert first.startswith(f"# Python {platform.python_version()}")
    assert f"numpy=={version('numpy')}" in packages
