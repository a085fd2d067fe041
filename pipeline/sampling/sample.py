"""Fourth stage: Ray actors draw images from the trained model, in fixed chunks of seeds.

Several sets that can be drawn by the same actors, as those of a sweep, are one row of tasks: the model is loaded once,
and no actor waits for a set to be finished.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ..clusters.fan_out import images_on_actors
from ..features.reference import extraction_of
from ..figures import rate
from ..models.weights import weights_digest
from ..runfile.keyroles import identity
from ..stage import Facts, Result, Run, Stage
from ..training.averages import PostHocAverage
from ..training.trained_model import ModelFolders, posthoc_average, weights_identity
from .chunks import Chunks, ChunkTask
from .drawer import Drawer, Equipment


class Sample(Stage):
    """Draws `sample.images` images; chunks that exist already are kept."""

    name = "sample"
    format = 5

    def identity(self, run: Run) -> Any:
        guide = run.results.get("guide")
        return {
            "model": weights_identity(run),
            "guide": guide and guide.facts["weights_digest"],
            "spec": identity(run.config.spec),
            "sample": identity(run.config.sample),
        }

    def compute(self, run: Run, folder: Path) -> Facts:
        ((drawn, images_per_s),) = _draw([_SampleSet.of(run, folder)])
        return drawn.facts(images_per_s)

    def finish_each(self, runs: Sequence[Run]) -> Iterator[Result]:
        """Computes the results of several runs, each of a folder of its own, in one row of tasks.

        Yields each as soon as its images are there; whatever is done with it, the actors go on to the next meanwhile.
        """
        with ExitStack() as stack:
            for run in runs:
                stack.enter_context(self.held(run))
            sets = [_SampleSet.of(run, self.folder(run)) for run in runs]
            began = time.perf_counter()
            for drawn, images_per_s in _draw(sets):
                seconds = time.perf_counter() - began
                yield self.keep(drawn.chunks.folder, drawn.facts(images_per_s), seconds)
                began = time.perf_counter()

    def figure(self, facts: Facts) -> str:
        speed = "" if facts["images_per_s"] is None else f", {rate(facts['images_per_s'], 'images')}"
        return f"{facts['images']:,} images of {facts['network_evaluations']:,.4g} network evaluations{speed}"


@dataclass(frozen=True)
class _SampleSet:
    """What a run wants drawn."""

    run: Run
    chunks: Chunks
    equipment: Equipment
    average: PostHocAverage | None
    missing: Sequence[ChunkTask]

    @classmethod
    def of(cls, run: Run, folder: Path) -> "_SampleSet":
        """As it is before drawing: folder may hold some chunks already."""
        config, device_type = run.config.sample, run.joined.device_type
        chunks = Chunks(folder, config, device_type)
        extraction = extraction_of(run) if "reference" in run.results else None
        equipment = Equipment.of(config, ModelFolders.of(run), device_type, extraction)
        return cls(run, chunks, equipment, posthoc_average(run), chunks.missing())

    @property
    def images_missing(self) -> int:
        """Images that are not there yet."""
        return sum(task.images for task in self.missing)

    def facts(self, images_per_s: float | None) -> Facts:
        """Of the set, now that it is whole."""
        config, average, weights = self.run.config.sample, self.average, self.equipment.model.weights
        trained = self.run.results["train"].facts
        return {
            "images": config.images,
            "network_evaluations": self.chunks.network_evaluations(),
            "images_per_s": images_per_s and round(images_per_s, 1),
            "device_type": self.chunks.device_type,
            "devices": self.chunks.devices(),
            "weights_digest": weights_digest(load_file(weights)) if average else trained["weights_digest"],
            "sigma_rel": config.sigma_rel,
            "reconstruction_error": average and average.reconstruction.error,
        }


def _draw(sets: Sequence[_SampleSet]) -> Iterator[tuple[_SampleSet, float | None]]:
    """Draws what is missing. Yields each set once it is whole, and images per second; None where nothing was missing.

    Sets of one equipment are drawn together, those of the first one first.
    """
    yield from ((one, None) for one in sets if not one.missing)
    remaining = [one for one in sets if one.missing]
    for equipment in dict.fromkeys(one.equipment for one in remaining):
        yield from _draw_together(equipment, [one for one in remaining if one.equipment == equipment])


def _draw_together(equipment: Equipment, sets: Sequence[_SampleSet]) -> Iterator[tuple[_SampleSet, float]]:
    run, tasks = sets[0].run, [task for one in sets for task in one.missing]
    images = sum(one.run.config.sample.images for one in sets)
    unfinished = {one.chunks.folder: one for one in sets}
    left = {one.chunks.folder: len(one.missing) for one in sets}
    with images_on_actors(run, Sample.name, "draw", tasks, images, Drawer, equipment) as drawn:
        began = time.perf_counter()  # only now: the rate is that of drawing
        for task in drawn:
            folder = task.chunks.folder
            left[folder] -= 1
            if left[folder] == 0:
                whole, ended = unfinished[folder], time.perf_counter()
                yield whole, whole.images_missing / (ended - began)
                began = ended
