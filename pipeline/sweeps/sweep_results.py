"""What a sweep leaves: a table in CSV, plots, MLflow's metrics, and what the terminal says at the end."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..figures import rate, score_words
from ..files import write_text
from ..stage import CONFIG
from ..tracking.mlflow_store import how_to_look
from ..tracking.tracked_run import TrackedRun
from .sweep_points import SIGMA_REL, Point, Sweep

TABLE, PLOT, LENGTH_PLOT = "sweep.csv", "sweep.png", "sweep-sigma_rel.png"

_CELL_CHARACTERS = 30
_METRIC_CHARACTERS = 200  # MLflow takes 250


def write(sweep: Sweep, points: Sequence[Point], heldout_images: int) -> Iterator[Path]:
    """The table, and plots for each score that decides. Yields their paths."""
    rows = [point.row | implied for point, implied in zip(points, sweep.implied, strict=True)]
    columns = [*sweep.short_names, *dict.fromkeys(key for row in rows for key in row if key not in sweep.short_names)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(sweep.folder / TABLE, text.getvalue())
    yield sweep.folder / TABLE
    names = _names(points)
    for name in names:
        measured = [point for point in points if point.name == name and point.score() is not None]
        if not measured:
            continue
        suffix = "" if len(names) == 1 else f"-{name}"
        yield from _plot(sweep, measured, heldout_images, suffix)


def _plot(sweep: Sweep, points: Sequence[Point], heldout_images: int, suffix: str) -> Iterator[Path]:
    """The score over network evaluations, and over the averages' lengths where these are swept. Yields the paths.

    Where lengths are swept and nothing else changes the evaluations, a plot over these would show nothing and is not
    made. points: all of one score, which none lacks. suffix: of the files' names.
    """
    from evaluation.quality_curves import quality_against_evaluations, quality_against_length

    images, name = sorted({point.sampled["images"] for point in points}), points[0].name
    label = f"{name}{f' of {images[0]:,} samples' if len(images) == 1 else ''}; lower is better"
    real, few = points[0].score("_heldout"), " (so few score higher)" if heldout_images < images[0] else ""
    real_line = None if real is None else (f"{heldout_images:,} held-out images{few}", real)
    by_evaluations = [(sweep.series(point), point.evaluations, point) for point in points]
    by_length = [(sweep.series_of_lengths(point), point.sigma_rel, point) for point in points if point.sigma_rel]
    swept = SIGMA_REL in sweep.short_names
    if not swept or _varies_at_one_length(points):
        path = sweep.folder / PLOT.replace(".", f"{suffix}.")
        quality_against_evaluations(_lines(by_evaluations), label, path, real_line)
        yield path
    if swept and by_length:
        path = sweep.folder / LENGTH_PLOT.replace(".", f"{suffix}.")
        quality_against_length(_lines(by_length), label, path, real_line)
        yield path


def _varies_at_one_length(points: Sequence[Point]) -> bool:
    """Whether the evaluations differ among points of one average."""
    each: dict[float | None, set[float]] = {}
    for point in points:
        each.setdefault(point.sigma_rel, set()).add(point.evaluations)
    return any(len(evaluations) > 1 for evaluations in each.values())


def _lines(places: Sequence[tuple[str, float, Point]]) -> dict[str, list[tuple[float, float]]]:
    """places: series, x and the point whose score is y. -> the lines of a plot."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for series, x, point in places:
        lines.setdefault(series or "samples", []).append((x, point.score() or 0.0))
    return lines


def log(page: TrackedRun, sweep: Sweep, points: Sequence[Point], files: Sequence[Path]) -> None:
    """Files, and each score over its network evaluations as MLflow's step."""
    for point in points:
        series = re.sub(r"[^\w.:-]+", " ", sweep.series(point), flags=re.ASCII).strip()
        metric = f"{point.name}/{series}" if series else point.name
        page.log_metrics({metric[:_METRIC_CHARACTERS]: point.score()}, round(point.evaluations), point.scored_ms)
    page.log_files([sweep.folder / CONFIG, *files])


def show(sweep: Sweep, points: Sequence[Point], files: Sequence[Path]) -> None:
    """The closing table, and what to know beneath it."""
    names = _names(points)
    rows = [[*sweep.short_names.values(), "network evaluations", *names, "images/s"]]
    for point in points:
        speed = point.sampled["images_per_s"]
        rows.append(
            [
                *(_cut(point.settings.get(key, "")) for key in sweep.short_names),
                f"{point.evaluations:,.4g}",
                *(score_words(point.score()) if point.name == name else "" for name in names),
                "" if speed is None else rate(speed, "images").removesuffix(" images/s"),
            ]
        )
    sweep.terminal.table(rows, "<" * len(sweep.short_names) + ">" * (len(names) + 2))
    if grid := _grid(sweep, points):
        sweep.terminal.table(grid, "<" + ">" * (len(grid[0]) - 1))
    facts: dict[str, str] = {}
    for name in names:
        facts |= _best([point for point in points if point.name == name], sweep)
    facts |= {path.name: str(path) for path in files}
    facts["look at it"] = how_to_look(sweep.runs[0].tracking_uri)
    sweep.terminal.facts(facts)


def _grid(sweep: Sweep, points: Sequence[Point]) -> list[list[str]]:
    """The score that decides, a row for each value of the first key and a column for each of the second.

    Empty unless two keys are swept and each pair of their values has been scored by the same measure.
    """
    names = _names(points)
    if (len(names), len(sweep.short_names)) != (1, 2):
        return []
    pairs = [tuple(point.settings.get(key, "") for key in sweep.short_names) for point in points]
    scores = {pair: score_words(point.score()) for pair, point in zip(pairs, points, strict=True)}
    rows, columns = (list(dict.fromkeys(values)) for values in zip(*pairs, strict=True))
    if min(len(rows), len(columns)) == 1 or len(scores) < len(rows) * len(columns):
        return []
    down, across = sweep.short_names.values()
    heading = [names[0], *(_cut(f"{across} {column}") for column in columns)]
    return [heading, *([_cut(f"{down} {row}"), *(scores[row, column] for column in columns)] for row in rows)]


def _best(points: Sequence[Point], sweep: Sweep) -> dict[str, str]:
    """The lowest score, and beside it what real images reach."""
    measured = [point for point in points if point.score() is not None]
    if not measured:
        reason = points[0].scored["reasons"].get(points[0].name, "")
        return {points[0].name: f"not available: {reason}"}
    best = min(measured, key=lambda point: point.score() or 0.0)
    samples = f"{best.sampled['images']:,} samples"
    facts = {f"best {best.name}": f"{score_words(best.score())} of {samples}: {sweep.words(best.settings)}"}
    real, as_many = best.score("_heldout"), best.score("_as_many_samples")
    if real is not None:
        facts[f"{best.name}_heldout"] = f"{score_words(real)}, what real images reach" + (
            "" if as_many is None else f"; as few samples of the best reach {score_words(as_many)}"
        )
    return facts


def _names(points: Sequence[Point]) -> list[str]:
    """Scores that decide, usually one; another extractor has another."""
    return list(dict.fromkeys(point.name for point in points))


def _cut(text: str) -> str:
    return text if len(text) <= _CELL_CHARACTERS else f"{text[: _CELL_CHARACTERS - 4]} ..."
