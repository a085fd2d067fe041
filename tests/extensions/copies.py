"""Copies of the tree in which diffs are applied, and commands that run in them."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIFFS = {name: Path(__file__).with_name(f"{name}.diff") for name in ("sampler", "dataset", "metric", "stage")}
PACKAGES = ["model", "evaluation", "pipeline"]
_LIMIT_S = 600


def extended(folder: Path, *names: str) -> Path:
    """Copies the tree into the folder and applies these diffs to it. -> the folder."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)  # for ruff and pytest
    for name in names:
        ran(folder, "git", "apply", str(DIFFS[name]))
    return folder


def ran(folder: Path, *command: str) -> str:
    """What the command prints that ends well in the folder, whose packages are the ones that Python finds."""
    alone = {"PYTHONPATH": str(folder), "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | alone, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
