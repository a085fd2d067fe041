"""After the fifth stage, where `evaluate.curve_images` asks for it: how the score fell while the network learned.

A few images are drawn from each power-function average that the training has kept, all from the same seeds, and scored
as the run's are. So few score higher than the run's own set: the curve says when training stopped to help, and its
numbers are to be compared with each other only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..clusters.fan_out import finish_on_actors
from ..features.features import Extraction
from ..features.reference import extraction_of, reference_key, reference_statistics
from ..runfile.config import Config
from ..runfile.keyroles import identity
from ..sampling.chunks import Chunks, ChunkTask
from ..sampling.drawer import Drawer, Equipment
from ..stage import Facts, Run, Stage
from ..training.averages import AVERAGES, KeptAverage, along_the_way
from ..training.trained_model import ModelFolders

_MOST_POINTS = 20  # of the curve, evenly spaced


class ScoreCurve(Stage):
    """Draws from what the training has kept on its way, and scores it; chunks that exist already are kept."""

    name = "curve"

    def wanted(self, config: Config) -> bool:
        return config.evaluate.curve_images > 0

    def identity(self, run: Run) -> Any:
        guide, config = run.results.get("guide"), run.config
        return {
            "averages": [kept.sha256 for kept in _points(run)],
            "guide": guide and guide.facts["weights_digest"],
            "spec": identity(config.spec),
            "sample": identity(config.sample) | {"images": config.evaluate.curve_images, "sigma_rel": None},
            "reference": run.results["reference"].key,
        }

    def compute(self, run: Run, folder: Path) -> Facts:
        sets = [_Moment.of(run, folder, kept) for kept in _points(run)]
        tasks = [task for one in sets for task in one.missing]
        images = sum(one.chunks.config.images for one in sets)
        finish_on_actors(run, self.name, "draw", tasks, images, MomentDrawer)
        return _scored(run, {one.images_seen: one.chunks for one in sets})

    def figure(self, facts: Facts) -> str:
        values = [value for _, value in facts["points"] if value is not None]
        if not values:
            return f"{facts['score']} not available"
        return f"{facts['score']} {values[0]:.4g} to {values[-1]:.4g} at {len(values):,} checkpoints"


def _points(run: Run) -> Sequence[KeptAverage]:
    """Of one width, the narrowest, in the order of the training; the last one always."""
    train = run.results["train"]
    kept = along_the_way(train.folder / AVERAGES, train.facts["averages"])
    count = min(len(kept), _MOST_POINTS)
    return [kept[(number + 1) * len(kept) // count - 1] for number in range(count)]


class _MomentTask(NamedTuple):
    """One chunk of images of one moment of the training, and what it is drawn with."""

    equipment: Equipment
    task: ChunkTask

    @property
    def images(self) -> int:
        """Images that it adds to its set."""
        return self.task.images


@dataclass(frozen=True)
class _Moment:
    """The images of one moment of the training."""

    images_seen: int
    chunks: Chunks
    missing: Sequence[_MomentTask]

    @classmethod
    def of(cls, run: Run, folder: Path, kept: KeptAverage) -> "_Moment":
        """As it is before drawing: folder, the stage's, may hold some chunks already."""
        config = run.config.sample.model_copy(update={"images": run.config.evaluate.curve_images})
        here, device_type = folder / f"images-{kept.images_seen:012d}", run.joined.device_type
        here.mkdir(exist_ok=True)
        chunks, model = Chunks(here, config, device_type), replace(ModelFolders.of(run), weights=kept.checked())
        equipment = Equipment.of(config, model, device_type, extraction_of(run))
        return cls(kept.images_seen, chunks, [_MomentTask(equipment, task) for task in chunks.missing()])


class MomentDrawer:
    """Runs as an actor: draws chunks of any moment of a training, and loads its weights when it comes to them."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._equipment: Equipment | None = None
        self._drawer: Drawer | None = None

    def ready(self) -> None:
        """Returns at once: what is to be loaded is known with the first task only."""

    def draw(self, task: _MomentTask) -> None:
        """Draws and writes one chunk and its features."""
        if self._drawer is None or self._equipment != task.equipment:
            self._equipment, self._drawer = task.equipment, Drawer(task.equipment, self._threads)
        self._drawer.draw(task.task)


def _scored(run: Run, drawn: Mapping[int, Chunks]) -> Facts:
    """drawn: by the images that the training had seen."""
    from evaluation.scores import score_names

    names = score_names(reference_key(run).extractor)
    points = list(_distances(run, drawn, extraction_of(run)))
    drawn_on = {"images": run.config.evaluate.curve_images, "device_type": run.joined.device_type}
    return {"score": names.frechet_distance, "points": points, **drawn_on}


def _distances(run: Run, drawn: Mapping[int, Chunks], extraction: Extraction) -> Iterator[tuple[int, float | None]]:
    """Frechet distances to the reference, in the training's order; None where the extractor's weights lack them."""
    from evaluation.feature_set import FeatureSet
    from evaluation.scores import frechet_distance

    reference = reference_statistics(run)
    for images_seen, chunks in drawn.items():
        files = chunks.features(extraction.digest)
        gathered = FeatureSet.folded(chunks.config.images, files.parts(chunks.batches()), keep_features=False)
        yield images_seen, frechet_distance(gathered.statistics, reference).value
