"""One checkpoint, many ways to draw from it and to score that: quality against measured network evaluations.

Every combination is a run of its own, whose stages lie where `run` would put them. So what has been computed is found
again by the same sweep, by a larger one and by `run`; only nothing is registered.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from ..data.prepare import check_prepared
from ..figures import duration, score_words
from ..files import exclusive, write_text
from ..flow import FLOW, recall, started, tracked
from ..redaction import redacted
from ..runfile.configfile import dump
from ..sampling.sample import Sample
from ..scoring.evaluate import Evaluate
from ..stage import CONFIG, Run, Stage, advance
from ..terminal import Terminal
from .combinations import Combination
from .sweep_points import Point, Sweep
from .sweep_results import log, show, write

_SHARED, _BEFORE_SAMPLING = FLOW[:2], FLOW[2:4]
_SAMPLE, _EVALUATE = Sample(), Evaluate()


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
            points = _reach_all(sweep)
        files = [*write(sweep, points, first.results["prepare"].facts["heldout_images"])]
        log(page, sweep, points, files)
    show(sweep, points, files)
    return points


def _stages(run: Run) -> list[Stage]:
    """All that this combination has, but registration."""
    return [stage for stage in FLOW[:-1] if stage.wanted(run.config)]


def _heading(combinations: Sequence[Combination]) -> str:
    """YAML comment above the configuration of the first combination."""
    each = ["  ".join(f"{key}={value}" for key, value in one.settings.items()) for one in combinations]
    lines = [f"The first of {len(each)} combinations:", *each]
    return "".join(f"# {line}\n" for line in redacted("\n".join(lines)).splitlines())


def _reach_all(sweep: Sweep) -> list[Point]:
    """Draws and scores all combinations, those found first; one line for each, as soon as it is scored.

    Combinations that only score the images of another one otherwise, or that need actors to be scored, come last, when
    those that draw have made room.
    """
    runs, points = sweep.runs, dict[int, Point]()

    def score(numbers: Iterable[int]) -> None:
        for number in numbers:
            points[number] = _score(sweep, number)
            sweep.terminal.line(f"{len(points)} of {len(runs)}: {_in_words(sweep, number, points[number])}")

    score(number for number, run in enumerate(runs) if not recall(run, _stages(run)))
    remaining = [number for number in range(len(runs)) if number not in points]
    for number in remaining:
        _reach(runs[number], _BEFORE_SAMPLING)
    undrawn = [number for number in remaining if _SAMPLE.recall(runs[number]) is None]
    first = {_SAMPLE.folder(runs[number]): number for number in reversed(undrawn)}
    for drawn in _SAMPLE.finish_each([runs[number] for number in sorted(first.values())]):
        run = runs[number := first[drawn.folder]]
        run.results[_SAMPLE.name] = drawn
        if not _EVALUATE.needs_actors(run):
            score([number])
    score(number for number in remaining if number not in points)
    return [points[number] for number in range(len(runs))]


def _reach(run: Run, stages: Sequence[Stage]) -> None:
    """Recalls or computes those that a run of this configuration has."""
    for stage in stages:
        if stage.wanted(run.config):
            run.results[stage.name] = run.results.get(stage.name) or stage.recall(run) or stage.finish(run)


def _score(sweep: Sweep, number: int) -> Point:
    """What a combination has reached, computed where it has not been."""
    run = sweep.runs[number]
    _reach(run, _stages(run))
    evaluate = run.results["evaluate"]
    scored_ms = (evaluate.folder / "done.json").stat().st_mtime_ns // 1_000_000
    return Point(sweep.combinations[number].settings, run.results["sample"].facts, evaluate.facts, scored_ms)


def _in_words(sweep: Sweep, number: int, point: Point) -> str:
    """What a combination is, what it has reached, and what that took."""
    computed = [result.seconds for result in sweep.runs[number].results.values() if not result.reused]
    effort = duration(sum(computed)) if computed else "found again"
    return (
        f"{sweep.words(point.settings)}: {point.evaluations:.4g} network evaluations, {point.name} "
        f"{score_words(point.score())}; {effort}"
    )
