"""The pictures of a run that has been scored, in its folder: its samples, real images, its path and its loss."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.curves import loss_curve, path_curves, score_curve
from evaluation.pictures import denoising_strip, headed_rows, image_grid, noising_strip, real_and_generated
from model import default_label

from ..data.reader import ShardReader
from ..errors import DataError
from ..files import read_arrays
from ..models.drawing import noised
from ..sampling.chunks import Chunks
from ..stage import Run
from ..training.curve import read_curve
from .evaluate import CLOSEST, SampleFeatures
from .likelihood import draw_likelihoods

_GRID_IMAGES, _GRID_COLUMNS, _BESIDE_IMAGES, _BESIDE_COLUMNS = 100, 10, 48, 6
_NOISED_IMAGES = 4
_PATH_TIMES = 1000
_MOST_CLASSES, _CLASS_COLUMNS = 20, 10
_LONGEST_NAME = 20  # letters of a class's, beside its row


def draw_pictures(run: Run) -> list[Path]:
    """PNG files, but for those that cannot be drawn: no features tell of classes, or earlier code sampled."""
    chunks = Chunks.of(run)
    cache = run.config.data.shard_cache
    reader = ShardReader(run.index, "train", "none", cache)
    scored = run.results["evaluate"].folder
    return [
        *_draw_samples(run.folder, chunks, reader),
        *_draw_classes(run, chunks),
        *_draw_closest(run.folder, scored / CLOSEST, chunks, ShardReader(run.compared, "train", "none", cache)),
        *_draw_strips(run, chunks, reader),
        *_draw_curves(run),
        *draw_likelihoods(scored, run.folder),
    ]


def _draw_samples(folder: Path, chunks: Chunks, reader: ShardReader) -> Iterator[Path]:
    """A grid of samples, and some of them beside real images."""
    drawn = chunks.read_all(min(_GRID_IMAGES, chunks.config.images))
    image_grid(drawn, _GRID_COLUMNS, folder / "samples.png")
    yield folder / "samples.png"
    real = reader.read(np.arange(min(_BESIDE_IMAGES, len(reader))))
    real_and_generated(real, drawn[:_BESIDE_IMAGES], _BESIDE_COLUMNS, folder / "real_and_generated.png")
    yield folder / "real_and_generated.png"


def _draw_classes(run: Run, chunks: Chunks) -> Iterator[Path]:
    """A row of samples for each class: of those that were asked to be of it, else those that a classifier takes so."""
    told = _classes_of_samples(run)
    if told is None:
        return
    labels, classes = told
    rows = min(classes, _MOST_CLASSES)
    numbers = [np.flatnonzero(labels == label)[:_CLASS_COLUMNS] for label in range(rows)]
    if not sum(map(len, numbers)):
        return
    images = chunks.pick(np.concatenate(numbers))
    page = np.full((rows, _CLASS_COLUMNS, *images.shape[1:]), 255, dtype=np.uint8)  # white where there are fewer
    page[np.arange(_CLASS_COLUMNS) < np.array([[len(some)] for some in numbers])] = images
    headed_rows(page, [""] * _CLASS_COLUMNS, run.folder / "classes.png", _names(run.index.class_names, classes)[:rows])
    yield run.folder / "classes.png"


def _classes_of_samples(run: Run) -> tuple[NDArray[np.int64], int] | None:
    """The class of each sample, and how many there are; None where nothing tells."""
    sample, spec = run.config.sample, run.config.spec
    seeds = sample.seed + torch.arange(sample.images)
    if (asked := default_label(spec, sample.guidance, seeds)) is not None:
        return asked.numpy(), spec.classes or sample.guidance.classes
    if run.results["reference"].facts["extractor"]["kind"] != "classifier":
        return None
    try:
        logits = SampleFeatures.of(run).logits
    except DataError:  # the scores are known; someone may have made room
        return None
    return logits.argmax(axis=1), logits.shape[1]


def _names(known: Sequence[str], classes: int) -> list[str]:
    """Of all classes; the data's names, where they are of the same classes."""
    if len(known) != classes:
        return [f"class {label}" for label in range(classes)]
    lines = (" ".join(name.split()) for name in known)
    return [line if len(line) <= _LONGEST_NAME else f"{line[: _LONGEST_NAME - 3]}..." for line in lines]


def _draw_closest(folder: Path, closest: Path, chunks: Chunks, reader: ShardReader) -> Iterator[Path]:
    """The samples that are nearest to a training image, each beside its nearest ones, where features could tell."""
    if not closest.exists():
        return
    samples, training = read_arrays(closest, "samples", "training")
    near = np.stack([reader.read(nearest) for nearest in training])
    headings = ["sample", "nearest", *map(_ordinal, range(2, training.shape[1] + 1))]
    headed_rows(np.concatenate([chunks.pick(samples)[:, None], near], axis=1), headings, folder / "closest.png")
    yield folder / "closest.png"


def _ordinal(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def _draw_strips(run: Run, chunks: Chunks, reader: ShardReader) -> Iterator[Path]:
    """From noise to image, from one seed to the next, and from image to noise."""
    names = ("denoising", "interpolation", "noising")
    denoising, interpolation, noising = (run.folder / f"{name}.png" for name in names)
    frames, times = read_arrays(chunks.strip, "frames", "times")
    denoising_strip(frames, times.tolist(), denoising)
    yield denoising
    if chunks.interpolation.exists():
        (between,) = read_arrays(chunks.interpolation, "frames")
        ends = [f"seed {run.config.sample.seed + number}" for number in (0, 1)]
        headed_rows(between[None], [ends[0], *[""] * (len(between) - 2), ends[1]], interpolation)
        yield interpolation
    real = reader.read(np.arange(min(_NOISED_IMAGES, len(reader))))
    noising_strip(*noised(run.config.spec, real), noising)
    yield noising


def _draw_curves(run: Run) -> Iterator[Path]:
    """Of the path and of the training."""
    path = run.config.path
    t = path.training_time(torch.linspace(0, 1, _PATH_TIMES, dtype=torch.float64)).unique()
    path_curves(t.numpy(), path.alpha(t).numpy(), path.sigma(t).numpy(), run.folder / "path.png")
    yield run.folder / "path.png"
    points = [point for point in read_curve(run.results["train"].folder) if "loss" in point]
    if points:  # a model may be scored as it is
        loss_curve([point["images"] for point in points], [point["loss"] for point in points], run.folder / "loss.png")
        yield run.folder / "loss.png"
    if (curve := run.results.get("curve")) is not None:
        measured = [point for point in curve.facts["points"] if point[1] is not None]
        if measured:
            score = f"{curve.facts['score']} of {curve.facts['images']:,} samples; lower is better"
            images_seen, values = zip(*measured, strict=True)
            score_curve(images_seen, values, score, run.folder / "score.png")
            yield run.folder / "score.png"
