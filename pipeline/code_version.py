"""Which code and which packages made a model."""

import json
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

TREE = Path(__file__).parents[1]
"""The folder that this code's packages lie in."""
RECORD = "code_version.json"
"""Beside the packages where they were sent to a cluster, without their repository: what was known of it."""
_GIT_S = 30.0


@dataclass(frozen=True)
class CodeVersion:
    """A commit, and what was changed since."""

    commit: str | None
    """Its hash; None: the code is in no git repository, or there is no git."""
    changes: str
    """What `git diff` says of files that are tracked."""

    def __str__(self) -> str:
        if self.commit is None:
            return "code of no known commit"
        return f"code `{self.commit[:12]}`{' with changes' if self.changes else ''}"


@cache
def code_version(folder: Path = TREE) -> CodeVersion:
    """Of the packages in a folder, by default this code's: by its record, else its repository; looked up once."""
    if (record := folder / RECORD).is_file():
        return CodeVersion(**json.loads(record.read_text(encoding="utf-8")))
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        return CodeVersion(commit, _git(folder, "diff", "HEAD"))
    except (OSError, subprocess.SubprocessError):
        return CodeVersion(None, "")


def environment() -> str:
    """Python, the system, and every installed package with its version, a line each."""
    packages = {f"{each.metadata['Name']}=={each.version}" for each in distributions()}
    return "\n".join([f"# Python {platform.python_version()}, {platform.platform()}", *sorted(packages), ""])


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=_GIT_S
    )
    return done.stdout
