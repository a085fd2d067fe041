"""Removes old versions of a model, and of their runs what no other run needs: checkpoints, samples, features, pictures.

What an alias points to stays, and so does every stage that another finished run has used, of this model or another, and
so do packed images, which later sets may go on from and scores may compare with. While a run is at work below the same
output, nothing is removed.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..figures import size
from ..files import exclusive, read_json
from ..stage import CONFIG
from ..summary import SUMMARY
from ..terminal import Terminal
from ..tracking.mlflow_store import connect, reported
from .registry import aliases_of, logged_model_of


@dataclass(frozen=True)
class _Finished:
    """A run that came to its end."""

    folder: Path
    model_name: str
    version: int
    stages: frozenset[str]
    """Names of the folders of its stages, but for `prepare`."""


def prune(name: str, keep: int, output: Path, uri: str, really: bool, terminal: Terminal) -> None:
    """Says, or does where `really`, what is removed so that the newest `keep` versions and all with an alias remain.

    ConfigError where there is no such model, or `keep` is less than 1; BusyError while a run is at work.
    """
    if keep < 1:
        raise ConfigError(f"--keep {keep}: at least 1, the newest version")
    with reported(f"prune {name}", uri), ExitStack() as held:
        for folder in _folders_of_runs(output):
            held.enter_context(exclusive(folder, "run"))
        client = connect(uri)
        found = client.search_model_versions(f"name = '{name}'")
        if not found:
            raise ConfigError(f"{name}: no such registered model, or one without versions")
        numbers = sorted(int(version.version) for version in found)
        aliased = set(aliases_of(client, name).values())
        old = [number for number in numbers[:-keep] if number not in aliased]
        folders = list(_unneeded(output, name, set(old)))
        bytes_there = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
        if really:
            for number in old:  # first: what the registry no longer names nobody misses
                logged_model = logged_model_of(client.get_model_version(name, str(number)))
                client.delete_model_version(name, str(number))
                client.delete_logged_model(logged_model)
            for folder in folders:
                (folder / "done.json").unlink(missing_ok=True)  # so that a half removed stage is none
                shutil.rmtree(folder)
    versions = ", ".join(map(str, old)) or "none"
    did = "removed" if really else "to be removed"
    terminal.facts(
        {
            f"versions {did}": f"{versions} ({len(old)} of {len(numbers)})",
            f"folders {did}": f"{len(folders)}, {size(bytes_there)} below {output}",
            **({} if really else {"nothing was removed": "give --really"}),
        }
    )


def _unneeded(output: Path, name: str, versions: set[int]) -> Iterator[Path]:
    """Folders of the runs that made these versions, and of their stages that no other run has used."""
    runs = list(_runs(output))
    gone = [run for run in runs if run.model_name == name and run.version in versions]
    staying = {stage for run in runs if run not in gone for stage in run.stages}
    yield from (run.folder for run in gone)
    for stage in sorted({stage for run in gone for stage in run.stages} - staying):
        if (folder := output.absolute() / "stages" / stage).is_dir():
            yield folder


def _folders_of_runs(output: Path) -> list[Path]:
    """Of all runs, sweeps too, at work or not."""
    return sorted(path.parent for path in output.absolute().glob(f"*/{CONFIG}"))


def _runs(output: Path) -> Iterator[_Finished]:
    for path in sorted(output.absolute().glob(f"*/{SUMMARY}")):
        summary: dict[str, Any] = read_json(path)
        if "stages" in summary:  # those of earlier code do not say what they used, and stay
            stages = frozenset(folder for name, folder in summary["stages"].items() if name != "prepare")
            yield _Finished(path.parent, summary["model_name"], summary["model_version"], stages)
