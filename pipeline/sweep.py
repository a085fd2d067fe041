"""One checkpoint, many ways to draw from it and to score that: quality against measured network evaluations.

Every combination is a run of its own, whose stages lie where `run` would put them. So what has been computed is found
again by the same sweep, by a larger one and by `run`; only nothing is registered.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .combinations import Combination
from .configfile import dump
from .files import digest, exclusive, write_text
from .flow import FLOW, advance, recall, started, tracked
from .mlflow_store import redacted
from .prepare import check_prepared
from .register import CONFIG
from .stage import Facts, Run, Stage
from .terminal import Terminal, duration, rate
from .tracking import TrackedRun, flatten
from .warm_start import WarmStart

TABLE, PLOT, LENGTH_PLOT = "sweep.csv", "sweep.png", "sweep-sigma_rel.png"

_SHARED, _EACH = FLOW[:2], FLOW[2:-1]
_LENGTHS = ("steps", "rtol", "atol")  # keys that only move a sampler along its line of the plot
_SIGMA_REL = "sample.sigma_rel"  # the x axis of a plot of its own
_CELL_CHARACTERS = 30
_METRIC_CHARACTERS = 200  # MLflow takes 250


@dataclass(frozen=True)
class Point:
    """What one combination reached."""

    settings: Mapping[str, str]
    sampled: Facts
    scored: Facts
    scored_ms: int
    """When it was scored, Unix time: logged again at this time, it is no second point."""

    @property
    def evaluations(self) -> float:
        """Measured calls of the network for each image."""
        return float(self.sampled["network_evaluations"])

    @property
    def sigma_rel(self) -> float | None:
        """Relative width of the average that was drawn from; None: the average of `train.ema`."""
        value: float | None = self.sampled["sigma_rel"]
        return value

    @property
    def name(self) -> str:
        """Of the score that decides, lower is better."""
        return str(self.scored["primary_score"])

    def score(self, suffix: str = "") -> float | None:
        """The score that decides, or another one whose name begins with it; None where it cannot be had."""
        value: float | None = self.scored["scores"].get(self.name + suffix)
        return value

    @property
    def row(self) -> dict[str, Any]:
        """The point in the table."""
        return {
            **self.settings,
            "network_evaluations": self.evaluations,
            **({} if self.sigma_rel is None else {"reconstruction_error": self.sampled["reconstruction_error"]}),
            "images": self.sampled["images"],
            "images_per_s": self.sampled["images_per_s"],
            "primary_score": self.name,
            **self.scored["scores"],
            "protocol_digest": self.scored["protocol_digest"],
        }


@dataclass
class Sweep:
    """All combinations, each as a run, and the place of their comparison."""

    combinations: Sequence[Combination]
    terminal: Terminal
    warm_start: WarmStart | None = None
    """What the one training starts from, looked up once for all runs; None: each run looks up its own."""

    @cached_property
    def runs(self) -> list[Run]:
        """One for each combination."""
        brief = Terminal(self.terminal.console, brief=True)
        return [Run(combination.config, brief, warm_start=self.warm_start) for combination in self.combinations]

    @cached_property
    def key(self) -> str:
        """Digest of all that decides the table."""
        return digest([[dict(one.settings), run.key] for one, run in zip(self.combinations, self.runs, strict=True)])

    @property
    def folder(self) -> Path:
        """Where table, plot and configuration lie."""
        return self.runs[0].output / f"{self.runs[0].config.name}-sweep-{self.key[:8]}"

    @cached_property
    def short_names(self) -> dict[str, str]:
        """Dotted keys that have several values, in the order given -> the fewest last words that tell them apart.

        `sample.sampler.kind` is `sampler`.
        """
        keys = dict.fromkeys(key for combination in self.combinations for key in combination.settings)
        return {key: _short(key, list(keys)) for key in keys}

    @cached_property
    def flat(self) -> list[dict[str, str]]:
        """The whole configuration of each combination, dotted key -> value."""
        return [flatten(combination.config.model_dump(mode="json", by_alias=True)) for combination in self.combinations]

    @property
    def params(self) -> dict[str, str]:
        """MLflow params: every key, with all its values where there are several."""
        keys = dict.fromkeys(key for one in self.flat for key in one)
        return {key: ", ".join(dict.fromkeys(one[key] for one in self.flat if key in one)) for key in keys}

    @property
    def implied(self) -> list[dict[str, str]]:
        """Of each combination, the keys that it does not set and that differ all the same, such as defaults."""
        keys = dict.fromkeys(key for one in self.flat for key in one)
        differing = [key for key in keys if len({one.get(key) for one in self.flat}) > 1]
        return [
            {key: one.get(key, "") for key in differing if key not in combination.settings}
            for one, combination in zip(self.flat, self.combinations, strict=True)
        ]

    def words(self, settings: Mapping[str, str]) -> str:
        """Settings in a few words: `ddim, steps 20`."""
        return ", ".join(
            value if key.endswith(".kind") else f"{self.short_names[key]} {value}" for key, value in settings.items()
        )

    def series(self, point: Point) -> str:
        """Name of the line of the plot that the point is on."""
        settings = {key: value for key, value in point.settings.items() if key.rpartition(".")[2] not in _LENGTHS}
        return self.words(settings)

    def series_of_lengths(self, point: Point) -> str:
        """Name of its line in a plot over lengths: what else is swept."""
        return self.words({key: value for key, value in point.settings.items() if key != _SIGMA_REL})


def run_sweep(combinations: Sequence[Combination], terminal: Terminal) -> list[Point]:
    """Trains where there is no checkpoint, draws and scores each combination, and sets them side by side.

    What is refused before anything is spent is the same as in `run_flow`.
    """
    first = Run(combinations[0].config, terminal)
    sweep = Sweep(combinations, terminal, first.warm_start)
    prepare, train = _SHARED
    with ExitStack() as stack:
        stack.enter_context(exclusive(sweep.folder, "sweep"))
        write_text(sweep.folder / CONFIG, _heading(combinations) + redacted(dump(first.config)))
        with terminal.stage("start", str(sweep.folder)) as report:
            runs = [first, *sweep.runs]
            pending = [stage for run in runs for stage in recall(run, _stages(run))]
            stack.enter_context(started(runs, pending, report))
        advance(first, prepare)
        for run in sweep.runs:
            recall(run, [prepare])
            check_prepared(run)
        page = stack.enter_context(tracked(first, sweep.folder, sweep.key, sweep.params))
        advance(first, train)
        with terminal.stage("sweep", f"{len(combinations)} combinations"):
            points = [_reach(sweep, number) for number in range(len(combinations))]
        files = [*_write(sweep, points, first.results["prepare"].facts["heldout_images"])]
        _log(page, sweep, points, files)
    _show(sweep, points, files)
    return points


def _stages(run: Run) -> list[Stage]:
    """All that this combination has, but registration."""
    return [stage for stage in (*_SHARED, *_EACH) if stage.wanted(run.config)]


def _heading(combinations: Sequence[Combination]) -> str:
    """YAML comment above the configuration of the first combination."""
    each = ["  ".join(f"{key}={value}" for key, value in one.settings.items()) for one in combinations]
    lines = [f"The first of {len(each)} combinations:", *each]
    return "".join(f"# {line}\n" for line in redacted("\n".join(lines)).splitlines())


def _reach(sweep: Sweep, number: int) -> Point:
    """Recalls or computes one combination and shows it on one line."""
    run, settings = sweep.runs[number], sweep.combinations[number].settings
    seconds, found = 0.0, True
    for stage in _stages(run):
        result = run.results.get(stage.name) or stage.recall(run) or stage.finish(run)
        run.results[stage.name] = result
        if not result.reused:
            seconds, found = seconds + result.seconds, False
    evaluate = run.results["evaluate"]
    scored_ms = (evaluate.folder / "done.json").stat().st_mtime_ns // 1_000_000
    point = Point(settings, run.results["sample"].facts, evaluate.facts, scored_ms)
    effort = "found again" if found else duration(seconds)
    sweep.terminal.line(
        f"{number + 1} of {len(sweep.runs)}: {sweep.words(settings)}: {point.evaluations:.4g} network evaluations, "
        f"{point.name} {_figure(point.score())}; {effort}"
    )
    return point


def _write(sweep: Sweep, points: Sequence[Point], heldout_images: int) -> Iterator[Path]:
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
    from evaluation.curves import quality_against_evaluations, quality_against_length

    images, name = sorted({point.sampled["images"] for point in points}), points[0].name
    label = f"{name}{f' of {images[0]:,} samples' if len(images) == 1 else ''}; lower is better"
    real, few = points[0].score("_heldout"), " (so few score higher)" if heldout_images < images[0] else ""
    real_line = None if real is None else (f"{heldout_images:,} held-out images{few}", real)
    by_evaluations = [(sweep.series(point), point.evaluations, point) for point in points]
    by_length = [(sweep.series_of_lengths(point), point.sigma_rel, point) for point in points if point.sigma_rel]
    swept = _SIGMA_REL in sweep.short_names
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


def _log(page: TrackedRun, sweep: Sweep, points: Sequence[Point], files: Sequence[Path]) -> None:
    """Files, and each score over its network evaluations as MLflow's step."""
    for point in points:
        series = re.sub(r"[^\w.:-]+", " ", sweep.series(point), flags=re.ASCII).strip()
        metric = f"{point.name}/{series}" if series else point.name
        page.log_metrics({metric[:_METRIC_CHARACTERS]: point.score()}, round(point.evaluations), point.scored_ms)
    page.log_files([sweep.folder / CONFIG, *files])


def _show(sweep: Sweep, points: Sequence[Point], files: Sequence[Path]) -> None:
    """The closing table, and what to know beneath it."""
    names = _names(points)
    rows = [[*sweep.short_names.values(), "network evaluations", *names, "images/s"]]
    for point in points:
        speed = point.sampled["images_per_s"]
        rows.append(
            [
                *(_cut(point.settings.get(key, "")) for key in sweep.short_names),
                f"{point.evaluations:,.4g}",
                *(_figure(point.score()) if point.name == name else "" for name in names),
                "" if speed is None else rate(speed, "images").removesuffix(" images/s"),
            ]
        )
    sweep.terminal.table(rows, "<" * len(sweep.short_names) + ">" * (len(names) + 2))
    facts: dict[str, str] = {}
    for name in names:
        facts |= _best([point for point in points if point.name == name], sweep)
    facts |= {path.name: str(path) for path in files}
    facts["look at it"] = f"make ui, or mlflow ui --backend-store-uri {redacted(sweep.runs[0].tracking_uri)}"
    sweep.terminal.facts(facts)


def _best(points: Sequence[Point], sweep: Sweep) -> dict[str, str]:
    """The lowest score, and beside it what real images reach."""
    measured = [point for point in points if point.score() is not None]
    if not measured:
        reason = points[0].scored["reasons"].get(points[0].name, "")
        return {points[0].name: f"not available: {reason}"}
    best = min(measured, key=lambda point: point.score() or 0.0)
    samples = f"{best.sampled['images']:,} samples"
    facts = {f"best {best.name}": f"{_figure(best.score())} of {samples}: {sweep.words(best.settings)}"}
    real, as_many = best.score("_heldout"), best.score("_as_many_samples")
    if real is not None:
        facts[f"{best.name}_heldout"] = f"{_figure(real)}, what real images reach" + (
            "" if as_many is None else f"; as few samples of the best reach {_figure(as_many)}"
        )
    return facts


def _names(points: Sequence[Point]) -> list[str]:
    """Scores that decide, usually one; another extractor has another."""
    return list(dict.fromkeys(point.name for point in points))


def _short(key: str, keys: Sequence[str]) -> str:
    named = [other.removesuffix(".kind") for other in keys]
    words = key.removesuffix(".kind").split(".")
    for count in range(1, len(words) + 1):
        end = ".".join(words[-count:])
        if sum(f".{other}".endswith(f".{end}") for other in named) == 1:
            return end
    return key


def _figure(value: float | None) -> str:
    return "not available" if value is None else f"{value:.4g}"


def _cut(text: str) -> str:
    return text if len(text) <= _CELL_CHARACTERS else f"{text[: _CELL_CHARACTERS - 4]} ..."
