"""PNG plots for people: loss, scores, the terms of a bound, rate and distortion, the path from image to noise; and how
all of them look.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from .atomic import whole_file
from .errors import EvaluationError
from .pictures import INK

FAINT, ACCENT = "#9db4d0", "#1f4e8c"
COLORS = ("#1f4e8c", "#d9822b", "#2e8b57", "#b5344a", "#7d5ba6", "#17a2b8", "#8c6d31", "#d16ba5")

_FEW = 40  # points of a curve that are marked, too


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
    _draw(axes, seen[drawn], values[drawn], color=FAINT, linewidth=1, label="as logged")
    axes.plot(seen[drawn], _running_mean(values[drawn]), color=ACCENT, linewidth=2, label="running mean")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    scale_y(axes, values[drawn])
    axes.legend(frameon=False)
    save_figure(figure, path)


def score_curve(images_seen: Sequence[float], values: Sequence[float], score: str, path: Path) -> None:
    """A score against images seen, lower is better; one that is not finite is left out. score: what the y axis says."""
    points = np.array([point for point in zip(images_seen, values, strict=True) if np.isfinite(point).all()])
    if not len(points):
        raise EvaluationError(f"{path.name}: none of {len(values)} values of {score} is a number")
    figure, axes = one_plot("images seen", score)
    _draw(axes, *points.T)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    scale_y(axes, points[:, 1])
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
    _draw(axes, steps, values[drawn])
    axes.set_xscale("log")
    axes.set_yscale("log")
    quiet_grid(axes)
    plain_numbers(axes.xaxis)
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
    _draw(axes, x, y)
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


def one_plot(x: str, y: str, size: tuple[float, float] = (8, 4.5)) -> tuple[Figure, Axes]:
    """A figure of this size, in inches, with one pair of axes that are named so."""
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    return figure, figure.add_subplot(xlabel=x, ylabel=y)


def scale_y(axes: Axes, values: NDArray[np.float64]) -> None:
    """A grid; and a logarithmic y axis where the values span enough that it has ticks to read."""
    if values.min() > 0 and values.max() > 3 * values.min():
        axes.set_yscale("log")
        within_a_decade = values.max() < 10 * values.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8) if within_a_decade else (1, 2, 5)))
        plain_numbers(axes.yaxis)
    quiet_grid(axes)


def plain_numbers(axis: Axis) -> None:
    """Ticks as 0.5 and 20, and none between those that are named."""
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def quiet_grid(axes: Axes) -> None:
    """Lines behind the data, and no frame above and to the right."""
    axes.grid(color="#e8e8e8")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes the PNG atomically."""
    with whole_file(path) as draft:
        figure.savefig(draft)


def _draw(
    axes: Axes,
    x: NDArray[Any],
    y: NDArray[np.float64],
    color: str = ACCENT,
    linewidth: float = 2,
    label: str | None = None,
) -> None:
    axes.plot(x, y, color=color, linewidth=linewidth, marker="o" if len(x) < _FEW else "", label=label)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, color=INK, fontsize=10, loc="left")


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a window of a twentieth of the curve, shorter at its ends."""
    reach = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - reach, 0)
    last = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    mean: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return mean
