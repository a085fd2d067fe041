"""A machine that cannot compile says so."""

from pathlib import Path

import pytest

from pipeline.errors import TrainingError
from pipeline.models.compiler import check_compiler


@pytest.mark.parametrize("key", ["train.compile", "sample.compile"])
def test_a_missing_compiler_is_named(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(TrainingError, match=rf"{key}: no C\+\+ compiler on .*install g\+\+.*set {key}=false"):
        check_compiler(key)
    (tmp_path / "clang++").touch(mode=0o755)
    check_compiler(key)
