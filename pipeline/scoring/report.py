"""`report.html` in a run's folder: what was drawn, how good it is, how that was measured and what it cost."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.report import Picture, Section, page

from ..figures import count, duration, rate
from ..files import read_json, write_text
from ..runfile.configfile import flatten
from ..stage import Run
from ..summary import REPORT
from .evaluate import PROTOCOL
from .measured import measured
from .model_scores import ModelScores


class _Caption(NamedTuple):
    """What a reader is told of a picture."""

    heading: str
    text: str
    alt: str
    chart: bool = False


def write_report(run: Run, pictures: Sequence[Path], config: Path) -> Path:
    """Of a run that has been scored. pictures: those that `draw_pictures` has drawn; config: as YAML. -> its file."""
    report = run.folder / REPORT
    sections = [
        Section("In short", rows=tuple(measured(run).items())),
        *_pictured(run, pictures),
        Section("Scores", "A score that cannot be had says why.", rows=_scores(run)),
        Section("Protocol", "All that the scores depend on beside the model.", rows=_protocol(run)),
        Section(
            "Time",
            "Of each stage when it was computed, by this run or by an earlier one.",
            rows=_times(run),
            columns=("stage", "time", "speed", ""),
        ),
        Section("Identity", rows=_identity(run)),
        Section("Configuration", "All keys, those left at their defaults too.", verbatim=config.read_text("utf-8")),
    ]
    write_text(report, page(run.config.name, *_headline(run), sections))
    return report


def _headline(run: Run) -> tuple[str, str]:
    """The score that decides, and what it was measured on."""
    evaluated, sampled = run.results["evaluate"].facts, run.results["sample"].facts
    name, protocol = evaluated["primary_score"], read_json(run.results["evaluate"].folder / PROTOCOL)
    measured_on = (
        f"{sampled['images']:,} images drawn by {run.config.sample.sampler.kind} in "
        f"{sampled['network_evaluations']:,.4g} network evaluations each, against "
        f"{_reference(run, protocol)}, by {evaluated['extractor']['kind']} features; lower is better."
    )
    if (reason := evaluated["reasons"].get(name)) is not None:
        measured_on = f"{reason}. {measured_on}"
    return f"{name} {ModelScores(name, evaluated['scores']).shown(name)}", measured_on


def _reference(run: Run, protocol: Any) -> str:
    """What the samples were compared with."""
    if run.config.evaluate.statistics is not None:
        return f"the statistics in {run.config.evaluate.statistics.name}"
    reference, frozen = protocol["reference"], run.config.evaluate.frozen
    source = f"the frozen set {reference['data_digest'][:12]}" if frozen else run.config.data.source.kind
    return f"{reference['images']:,} training images of {source}"


def _pictured(run: Run, pictures: Sequence[Path]) -> Iterator[Section]:
    drawn = {picture.stem: picture for picture in pictures}
    for name, (heading, text, alt, chart) in _captions(run).items():
        if name in drawn:
            yield Section(heading, text, Picture(drawn[name].read_bytes(), alt, chart))


def _captions(run: Run) -> dict[str, _Caption]:
    """By the names of the pictures' files, in the order of the page."""
    sample, path, data = run.config.sample, run.config.path.kind, run.config.data.source.kind
    told = bool(run.config.spec.classes or sample.guidance.classes)
    of_it = "that were asked to be of it" if told else "that the classifier takes for it"
    return {
        "samples": _Caption(
            "Samples",
            f"The first of {sample.images:,}, not chosen: seeds from {sample.seed}.",
            "Grid of samples in the order of their seeds",
        ),
        "real_and_generated": _Caption(
            "Beside real images",
            f"Images of {data} to the left, samples to the right.",
            "Real images to the left, samples to the right",
        ),
        "classes": _Caption(
            "By class",
            f"For each class a row of the first samples {of_it}.",
            "Samples, one row for each class",
        ),
        "closest": _Caption(
            "Nearest to training images",
            "The samples that are nearest to a training image in feature space, and the training images near them.",
            "Rows of a sample and the training images nearest to it",
        ),
        "interpolation": _Caption(
            "Between two seeds",
            "All noises turned on great circles from one seed's to the other's.",
            "Images that change from that of one seed to that of the next",
        ),
        "denoising": _Caption(
            "From noise to image",
            f"States of {sample.sampler.kind} on its way to the first samples.",
            "Samples that emerge from noise, one row each",
        ),
        "noising": _Caption(
            "From image to noise",
            f"Real images as {path} has them at evenly spaced times: q(x_t | x_0).",
            "Real images that drown in noise, one row each",
        ),
        "path": _Caption(
            "The path",
            f"What {path} leaves of an image over time.",
            "Plots of alpha_bar and of the signal-to-noise ratio over t",
            chart=True,
        ),
        "loss": _Caption(
            "Training loss",
            "Over the images seen, repeats counted.",
            "Plot of the loss over images seen",
            chart=True,
        ),
        "score": _Caption(
            "Score over the training",
            f"Of {run.config.evaluate.curve_images:,} images from each average that was kept at a checkpoint: so few "
            "score higher than the samples above.",
            "Plot of the score over images seen",
            chart=True,
        ),
        "bound_terms": _Caption(
            "The variational bound",
            "Its terms, step by step.",
            "Plot of the terms of the bound over their steps",
            chart=True,
        ),
        "rate_distortion": _Caption(
            "Rate and distortion",
            "What a receiver makes of an image while it arrives.",
            "Plot of the distortion over the rate",
            chart=True,
        ),
    }


def _scores(run: Run) -> Sequence[tuple[str, str]]:
    """Name, and value or why there is none."""
    evaluated = run.results["evaluate"].facts
    found, reasons = ModelScores(evaluated["primary_score"], evaluated["scores"]), evaluated["reasons"]
    beside = {f"{name}_se" for name in found.scores} - set(reasons)  # shown behind what they are the errors of
    shown = {name: found.shown(name) for name in found.scores if name not in beside}
    return [(name, f"{value}: {reasons[name]}" if name in reasons else value) for name, value in shown.items()]


def _protocol(run: Run) -> Sequence[tuple[str, str]]:
    protocol = flatten(read_json(run.results["evaluate"].folder / PROTOCOL))
    return [(name.replace(".", " ").replace("_", " "), value) for name, value in protocol.items()]


def _times(run: Run) -> Sequence[tuple[str, str, str, str]]:
    """Stage, its time, its speed, and whether it was found again."""
    rows = []
    for name, result in run.results.items():
        images_per_s = result.facts.get("images_per_s")
        speed = rate(images_per_s, "images") if images_per_s else ""
        rows.append((name, duration(result.seconds), speed, "found again" if result.reused else ""))
    return rows


def _identity(run: Run) -> Sequence[tuple[str, str]]:
    """Digests of all that the run is made of."""
    train, sampled, evaluated = (run.results[name].facts for name in ("train", "sample", "evaluate"))
    rows = {
        "run": run.folder.name,
        "run key": run.key,
        "data": run.results["prepare"].facts["data_digest"],
        "weights": sampled["weights_digest"],
        "starts from": run.warm_start and run.warm_start.digest,
        "guiding classifier": run.results["guide"].facts["weights_digest"] if "guide" in run.results else None,
        "feature extractor": evaluated["extractor"]["digest"],
        "protocol": evaluated["protocol_digest"],
        "network": count(train["parameters"], "parameters"),
        "trained on": f"{count(train['images'], 'images')}, repeats counted",
        "drawn on": ", ".join(sampled["devices"]),
    }
    return [(name, value) for name, value in rows.items() if value]
