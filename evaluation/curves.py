"""PNG plots for people: loss, scores, the terms of a bound, rate and distortion, the path from image to noise."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, FormatStrFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from .atomic import whole_file
from .errors import EvaluationError
from .pictures import INK

FAINT, ACCENT = "#9db4d0", "#1f4e8c"
COLORS = ("#1f4e8c", "#d9822b", "#2e8b57", "#b5344a", "#7d5ba6", "#17a2b8", "#8c6d31", "#d16ba5")
MARKERS = "osD^vPX*"


def loss_curve(images_seen: Sequence[float], loss: Sequence[float], path: Path) -> None:
    """Loss against images seen, with its running mean; a loss that is not finite is left out."""
    seen, values = np.asarray(images_seen, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if seen.shape != values.shape or seen.ndim != 1:
        raise EvaluationError(
            f"loss curve: {seen.size} image counts and {values.size} losses, expected as many of each"
        )
    drawn = np.isfinite(values) & (values > 0)
    if not drawn.any():
        raise EvaluationError(
            f"loss curve: none of the {values.size} losses is a positive number; was anything logged?"
        )
    figure, axes = one_plot("images seen", "loss (mean squared error)")
    _draw_loss(axes, seen[drawn], values[drawn])
    save_figure(figure, path)


def score_curve(images_seen: Sequence[float], values: Sequence[float], score: str, path: Path) -> None:
    """A score against images seen, lower is better; one that is not finite is left out. score: what the y axis says."""
    points = np.array([point for point in zip(images_seen, values, strict=True) if np.isfinite(point).all()])
    if not len(points):
        raise EvaluationError(f"{path.name}: none of {len(values)} values of {score} is a number")
    figure, axes = one_plot("images seen", score)
    axes.plot(*points.T, color=ACCENT, linewidth=2, marker="o" if len(points) < 40 else "")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _scale(axes, points[:, 1])
    save_figure(figure, path)


def _draw_loss(axes: Axes, seen: NDArray[np.float64], loss: NDArray[np.float64]) -> None:
    axes.plot(seen, loss, color=FAINT, linewidth=1, marker="o" if len(loss) < 40 else "", label="as logged")
    axes.plot(seen, _running_mean(loss), color=ACCENT, linewidth=2, label="running mean")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _scale(axes, loss)
    axes.legend(frameon=False)


def _scale(axes: Axes, values: NDArray[np.float64]) -> None:
    """A grid; and a logarithmic y axis where the values span enough that it has ticks to read."""
    if values.min() > 0 and values.max() > 3 * values.min():
        axes.set_yscale("log")
        within_a_decade = values.max() < 10 * values.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8) if within_a_decade else (1, 2, 5)))
        _plain_numbers(axes.yaxis)
    quiet_grid(axes)


def _plain_numbers(axis: Axis) -> None:
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


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
    figure = Figure(figsize=(9, max(4.8, 1 + 0.26 * len(lines))), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel=x_label, ylabel=score)
    for number, line in enumerate(lines.values()):
        axes.plot(
            *line.T,
            color=COLORS[number % len(COLORS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle=("-", "--", ":")[number // len(COLORS) % 3],
            markersize=5,
        )
    points = np.concatenate(list(lines.values()))
    _log_axis(axes, points[:, 0])
    _scale(axes, points[:, 1] if real is None else np.append(points[:, 1], real[1]))
    if real is not None:
        axes.axhline(real[1], color=INK, linewidth=1, linestyle=(0, (6, 4)), zorder=1)
        axes.annotate(
            real[0], (0, real[1]), (4, 4), axes.get_yaxis_transform(), textcoords="offset points", color=INK, fontsize=9
        )
    _name_lines(figure, axes, {name: (float(line[-1, 0]), float(line[-1, 1])) for name, line in lines.items()})
    save_figure(figure, path)


def bound_terms(terms: Sequence[float] | NDArray[np.floating], path: Path) -> None:
    """The variational bound step by step, both axes logarithmic, as in Nichol & Dhariwal 2021, figure 2.

    terms: bits/dim at t = 0, ..., T - 1; one that is not positive is left out.
    """
    values = np.asarray(terms, dtype=np.float64)
    drawn = np.isfinite(values) & (values > 0)
    if values.ndim != 1 or not drawn.any():
        raise EvaluationError(f"{path.name}: none of {values.size} terms of the bound is a positive number")
    figure, axes = one_plot("step, 1 from the image", "term of the bound, bits/dim")
    steps = np.arange(1, len(values) + 1)[drawn]
    axes.plot(steps, values[drawn], color=ACCENT, linewidth=2, marker="o" if len(steps) < 40 else "")
    axes.set_xscale("log")
    axes.set_yscale("log")
    quiet_grid(axes)
    _plain_numbers(axes.xaxis)
    _title(axes, f"{values.sum():.3f} bits/dim in all {len(values):,} steps, {values[0]:.3f} of them in the first")
    save_figure(figure, path)


def rate_distortion_curve(
    rate: Sequence[float] | NDArray[np.floating], distortion: Sequence[float] | NDArray[np.floating], path: Path
) -> None:
    """What a receiver makes of an image while it arrives. Ho et al. 2020, figure 5.

    rate: bits/dim so far; distortion: root mean squared error then, in grey levels of 0 to 255; as many of each.
    """
    x, y = np.asarray(rate, dtype=np.float64), np.asarray(distortion, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or not x.size or not np.isfinite([x, y]).all():
        raise EvaluationError(
            f"{path.name}: {x.size} rates and {y.size} distortions, expected as many of each and all finite"
        )
    figure, axes = one_plot("rate, bits/dim", "distortion, RMSE on 0 to 255")
    axes.plot(x, y, color=ACCENT, linewidth=2, marker="o" if len(x) < 40 else "")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    quiet_grid(axes)
    _title(axes, f"{y[-1]:.3g} grey levels off after {x[-1]:.3f} bits/dim, before the step to the image itself")
    save_figure(figure, path)


def path_curves(
    t: Sequence[float] | NDArray[np.floating],
    alpha: Sequence[float] | NDArray[np.floating],
    sigma: Sequence[float] | NDArray[np.floating],
    path: Path,
) -> None:
    """alpha_bar = alpha^2 and the signal-to-noise ratio alpha^2 / sigma^2 over t, the latter logarithmic.

    t: times from the cleanest to the noisiest, drawn logarithmically where most of them are near the first; alpha,
    sigma: the path's there, as many of each. A ratio of zero has no logarithm and is left out.
    """
    times, scale, noise = (np.asarray(each, dtype=np.float64) for each in (t, alpha, sigma))
    if times.ndim != 1 or not times.size or not times.shape == scale.shape == noise.shape or not (noise > 0).all():
        raise EvaluationError(
            f"{path.name}: {times.size} times, {scale.size} alphas and {noise.size} sigmas, expected as many of each "
            "and every sigma above 0"
        )
    figure = Figure(figsize=(8, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    alpha_bar, ratio = scale**2, (scale / noise) ** 2
    left.plot(times, alpha_bar, color=ACCENT, linewidth=2)
    left.set_ylim(0, 1.05 * alpha_bar.max())
    right.plot(times[ratio > 0], ratio[ratio > 0], color=ACCENT, linewidth=2)
    right.set_yscale("log")
    for axes, name in ((left, "alpha_bar"), (right, "signal-to-noise ratio")):
        axes.set_xlabel("t")
        _title(axes, name)
        quiet_grid(axes)
        if times[0] > 0 and np.median(times) < times[-1] / 10:
            axes.set_xscale("log")
    save_figure(figure, path)


def one_plot(x: str, y: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes that are named so."""
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot(xlabel=x, ylabel=y)


def quiet_grid(axes: Axes) -> None:
    """Lines behind the data, and no frame above and to the right."""
    axes.grid(color="#e8e8e8")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, color=INK, fontsize=10, loc="left")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes the PNG atomically."""
    with whole_file(path) as draft:
        figure.savefig(draft)


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
    _plain_numbers(axes.xaxis)


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


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a window of a twentieth of the curve, shorter at its ends."""
    reach = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - reach, 0)
    last = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    mean: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return mean
