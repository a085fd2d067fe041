"""The versions of a month of nights in one plot: what each scored, which were promoted, and which was champion."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .curves import ACCENT, COLORS, FAINT, one_plot, quiet_grid, save_figure
from .errors import EvaluationError
from .pictures import INK

_REFUSED = COLORS[1]


@dataclass(frozen=True)
class NightPoint:
    """A version, and how it scored."""

    version: int
    score: float | None
    """Lower is better; None: it has none, and is left out but for its place."""
    error: float | None
    """Standard error of the score; None: not known."""
    promoted: bool
    """Whether it became champion when it was registered."""
    champion_score: float | None
    """Of the version that was champion from then on, under the protocol of this one; None: not known."""
    protocol: str
    """Scores are on one curve where this is equal."""


def night_curve(points: Sequence[NightPoint], score: str, path: Path) -> None:
    """Score over versions with two standard errors; points of another protocol start a new curve.

    points: in the order of their versions. score: what the y axis says.
    """
    if not any(point.score is not None for point in points):
        raise EvaluationError(f"{path.name}: none of {len(points)} versions has a score; was anything scored?")
    figure, axes = one_plot("version", f"{score}; lower is better")
    for curve in _curves(points):
        axes.plot(
            [point.version for point in curve],
            [float("nan") if point.champion_score is None else point.champion_score for point in curve],
            color=ACCENT,
            linewidth=1.5,
            drawstyle="steps-post",
            zorder=2,
            label="champion from then on" if curve[0] is points[0] else None,
        )
    _bars(axes, [point for point in points if point.promoted], "promoted", ACCENT, ACCENT)
    _bars(axes, [point for point in points if not point.promoted], "rejected", _REFUSED, "white")
    for before, after in pairwise(points):
        if before.protocol != after.protocol:
            _boundary(axes, (before.version + after.version) / 2)
    axes.margins(y=0.15)  # room for what the boundaries say
    axes.set_xlim(points[0].version - 0.5, points[-1].version + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    quiet_grid(axes)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    save_figure(figure, path)


def _bars(axes: Axes, points: Sequence[NightPoint], name: str, color: str, fill: str) -> None:
    drawn = [(point.version, point.score, point.error or 0.0) for point in points if point.score is not None]
    if not drawn:
        return
    versions, scores, errors = zip(*drawn, strict=True)
    axes.errorbar(
        versions,
        scores,
        [2 * error for error in errors],
        linestyle="",
        marker="o",
        markersize=7,
        color=color,
        markerfacecolor=fill,
        markeredgewidth=1.5,
        elinewidth=1.2,
        capsize=3,
        zorder=3,
        label=f"{name}, ± 2 standard errors",
    )


def _boundary(axes: Axes, x: float) -> None:
    axes.axvline(x, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        "another protocol:\na new curve",
        (x, 0),
        (4, 4),
        axes.get_xaxis_transform(),
        textcoords="offset points",
        color=INK,
        fontsize=8,
    )


def _curves(points: Sequence[NightPoint]) -> list[list[NightPoint]]:
    """Runs of points of one protocol."""
    curves: list[list[NightPoint]] = []
    for point in points:
        if not curves or curves[-1][-1].protocol != point.protocol:
            curves.append([])
        curves[-1].append(point)
    return curves
