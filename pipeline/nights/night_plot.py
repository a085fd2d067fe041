"""The plot of the nights of a model: its newest versions, by what the registry says of them."""

import json
from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING

from ..registration.registry import (
    CHAMPION,
    DECISION_TAG,
    PRIMARY_TAG,
    PROTOCOL_TAG,
    aliases_of,
    moment_of,
    moves,
    standing,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from evaluation.night_curve import NightPoint

_MOST = 60
"""Versions that are shown, the newest ones: two months of nights, and the registry is asked four times for each."""


def draw_nights(client: "MlflowClient", name: str, path: Path) -> Path | None:
    """Draws them. -> `path`; None where no version has a score."""
    from evaluation.night_curve import night_curve

    points, score = night_points(client, name)
    if not any(point.score is not None for point in points):
        return None
    night_curve(points, score, path)
    return path


def night_points(client: "MlflowClient", name: str) -> tuple[list["NightPoint"], str]:
    """In the order of their versions, and the name of the newest's score; versions of another score are left out."""
    from evaluation.night_curve import NightPoint

    found = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda each: int(each.version))
    judged = [each for each in found if {DECISION_TAG, PROTOCOL_TAG, PRIMARY_TAG} <= each.tags.keys()][-_MOST:]
    score = judged[-1].tags[PRIMARY_TAG] if judged else ""
    shown = [each for each in judged if each.tags[PRIMARY_TAG] == score]
    there, changes = {int(each.version) for each in found}, moves(client, name)
    moments, champions = list(changes), [move["before"] for move in changes.values()]
    champions.append(aliases_of(client, name).get(CHAMPION))  # the one after all changes
    ends = [bisect_right(moments, moment_of(after.creation_timestamp / 1000)) for after in shown[1:]] + [len(moments)]
    points = []
    for version, moved in zip(shown, ends, strict=True):
        protocol = version.tags[PROTOCOL_TAG]
        own = standing(client, name, int(version.version), protocol)
        held = standing(client, name, champions[moved], protocol) if champions[moved] in there else None
        points.append(
            NightPoint(
                int(version.version),
                own.decisive if own else None,
                own.error if own else None,
                json.loads(version.tags[DECISION_TAG])["promoted"],
                held.decisive if held else None,
                protocol,
            )
        )
    return points, score
