"""A score of many ways to draw in one plot: a line for each, named at its end."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray

from .curves import COLORS, one_plot, plain_numbers, save_figure, scale_y
from .errors import EvaluationError
from .pictures import INK

_MARKERS = "osD^vPX*"


def quality_against_evaluations(
    series: Mapping[str, Sequence[tuple[float, float]]], score: str, path: Path, real: tuple[str, float] | None = None
) -> None:
    """A score against calls of the network for each image, one line for each series, named at its end.

    series: name -> (evaluations > 0, value) in any order; a value that is not finite is left out. score: what the y
    axis says. real: what the level line of real images says, and its value.
    """
    _quality(series, "network evaluations for each image, measured", score, path, real)


def quality_against_length(
    series: Mapping[str, Sequence[tuple[float, float]]], score: str, path: Path, real: tuple[str, float] | None = None
) -> None:
    """A score against the length of the averages that were drawn from, after Karras et al. 2024, figure 5.

    series: name -> (sigma_rel > 0, value). The rest as in `quality_against_evaluations`.
    """
    _quality(series, "EMA length: sigma_rel, as a share of the training", score, path, real)


def _quality(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    score: str,
    path: Path,
    real: tuple[str, float] | None,
) -> None:
    lines = {
        name: np.array(sorted(point for point in points if np.isfinite(point).all()), dtype=np.float64)
        for name, points in series.items()
    }
    lines = {name: line for name, line in lines.items() if len(line)}
    if not lines:
        raise EvaluationError(
            f"{path.name}: none of {sum(map(len, series.values()))} values of {score} is a number; was anything scored?"
        )
    figure, axes = one_plot(x_label, score, size=(9, max(4.8, 1 + 0.26 * len(lines))))
    for number, line in enumerate(lines.values()):
        axes.plot(
            *line.T,
            color=COLORS[number % len(COLORS)],
            marker=_MARKERS[number % len(_MARKERS)],
            linestyle=("-", "--", ":")[number // len(COLORS) % 3],
            markersize=5,
        )
    points = np.concatenate(list(lines.values()))
    _log_axis(axes, points[:, 0])
    scale_y(axes, points[:, 1] if real is None else np.append(points[:, 1], real[1]))
    if real is not None:
        axes.axhline(real[1], color=INK, linewidth=1, linestyle=(0, (6, 4)), zorder=1)
        axes.annotate(
            real[0], (0, real[1]), (4, 4), axes.get_yaxis_transform(), textcoords="offset points", color=INK, fontsize=9
        )
    _name_lines(figure, axes, {name: (float(line[-1, 0]), float(line[-1, 1])) for name, line in lines.items()})
    save_figure(figure, path)


def _log_axis(axes: Axes, values: NDArray[np.float64]) -> None:
    """A logarithmic x axis whose ticks are the values themselves, as many as can be read."""
    axes.set_xscale("log")
    axes.set_xlim(values.min() / 1.15, values.max() * 1.15)
    apart = 0.06 * np.log(values.max() * 1.15**2 / values.min())
    ticks: list[float] = []
    for value in np.unique(values):
        if not ticks or np.log(value / ticks[-1]) > apart:
            ticks.append(value)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    plain_numbers(axes.xaxis)


def _name_lines(figure: Figure, axes: Axes, ends: Mapping[str, tuple[float, float]]) -> None:
    """Each name in its line's colour to the right of the axes, at the height of its end or near it."""
    figure.draw_without_rendering()  # only then does y have its range
    ends_drawn = (axes.transData + axes.transAxes.inverted()).transform(list(ends.values()))
    line_height = 16 * figure.dpi / 72 / axes.get_window_extent().height  # 16 points
    heights = _apart(ends_drawn[:, 1].tolist(), line_height)
    for number, (name, end, height) in enumerate(zip(ends, ends_drawn, heights, strict=True)):
        color = COLORS[number % len(COLORS)]
        dotted = {"linewidth": 0.8, "linestyle": (0, (1, 3)), "alpha": 0.7}
        leader = {"arrowstyle": "-", "color": color, "relpos": (0, 0.5), "shrinkB": 4, **dotted}
        axes.annotate(
            name,
            (float(end[0]), float(end[1])),
            (1.03, height),
            xycoords="axes fraction",
            color=color,
            va="center",
            parse_math=False,  # a name may have dollars
            arrowprops=leader,
        )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved as little as it takes to be `gap` apart in the same order, within [0, 1] as far as they fit."""
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(order))
    # Without these steps, heights that are `gap` apart only have to rise: pool neighbours that fall.
    pools: list[list[float]] = []
    for height in np.asarray(heights, dtype=np.float64)[order] - steps:
        pools.append([height])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    risen = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    moved = np.empty(len(order))
    moved[order] = np.clip(risen, 0, max(0, 1 - steps[-1])) + steps
    return moved.tolist()
