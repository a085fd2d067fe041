"""The versions of a registered model by hand: what they were worth, which were champion, and which is to be."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..terminal import Terminal
from ..tracking.mlflow_store import connect, reported
from ..tracking.model_uri import ModelURI, version_uri
from .gate import Standing
from .registry import (
    CHAMPION,
    PREVIOUS,
    PRIMARY_TAG,
    PROTOCOL_TAG,
    VERDICT_TAG,
    aliases_of,
    move_champion,
    moves,
    standing,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def show_history(name: str, uri: str, terminal: Terminal) -> None:
    """Prints every version with its score, protocol and verdict, and below when the champion changed, and why."""
    with reported(f"read the history of {name}", uri):
        client = connect(uri)
        aliases = _aliases(client, name)
        found = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda each: int(each.version))
        rows: list[tuple[str, ...]] = [("version", "made", "score", "protocol", "aliases", "verdict")]
        rows += [_row(client, each, aliases) for each in found]
        moved = moves(client, name)
    terminal.table(rows, ">" + "<" * 5)
    since = [
        (f"{moment[:10]} {moment[11:19]}", str(each["version"]), str(each["before"] or ""), each["why"])
        for moment, each in moved.items()
    ]
    terminal.table([("champion since", "version", "before", "because"), *since], "<>><")


def promote(model: str, because: str, uri: str, terminal: Terminal) -> None:
    """Makes a version the champion, whatever the gate says of it. ConfigError where there is no such version."""
    wanted = ModelURI.parsed(model)
    with reported(f"promote {model}", uri):
        client = connect(uri)
        aliases = _aliases(client, wanted.model)
        if wanted.alias and wanted.alias not in aliases:
            raise ConfigError(f"{model}: no such alias; there are {', '.join(sorted(aliases)) or 'none'}")
        version = int(wanted.version(client).version)  # refuses what is not there
        move_champion(client, wanted.model, version, because)
    terminal.facts({"champion": version_uri(wanted.model, version)})


def rollback(name: str, because: str, uri: str, terminal: Terminal) -> None:
    """Makes the champion before this one the champion again. ConfigError where there was none."""
    with reported(f"roll {name} back", uri):
        client = connect(uri)
        aliases = _aliases(client, name)
        if aliases.get(PREVIOUS) in (None, aliases.get(CHAMPION)):
            raise ConfigError(f"{name}: no version was champion before this one; promote a version by its number")
        version, gone = aliases[PREVIOUS], aliases.get(CHAMPION)
        move_champion(client, name, version, f"rolled back: {because}")
    terminal.facts({"champion": version_uri(name, version), "rolled back": f"version {gone}"})


def _aliases(client: "MlflowClient", name: str) -> dict[str, int]:
    if not client.search_registered_models(f"name = '{name}'", max_results=1):
        names = sorted(each.name for each in client.search_registered_models())
        raise ConfigError(f"{name}: no such registered model; there are {', '.join(names) or 'none'}")
    return aliases_of(client, name)


def _row(client: "MlflowClient", version: "ModelVersion", aliases: dict[str, int]) -> tuple[str, ...]:
    number = int(version.version)
    protocol = version.tags.get(PROTOCOL_TAG, "")
    scored: Standing | None = standing(client, version.name, number, protocol) if protocol else None
    made = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).strftime("%Y-%m-%d %H:%M")
    mine = ", ".join(alias for alias, pointed in sorted(aliases.items()) if pointed == number)
    score = f"{version.tags.get(PRIMARY_TAG, '')} {scored}" if scored else "none"
    return (str(number), made, score, protocol[:8], mine, version.tags.get(VERDICT_TAG, "none yet"))
