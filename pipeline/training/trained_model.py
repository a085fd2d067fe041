"""A trained model on disk, and back in memory."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from model import EAGER, EMASnapshot, Execution, Guidance, ModelSpec, TrainedModel

from ..files import digest, write_json
from ..models.description import DESCRIPTION, description_of
from ..models.stored_model import assembled
from ..runfile.config import Config
from ..stage import Run
from .averages import AVERAGES, PostHocAverage
from .checkpoint import SPEC, WEIGHTS


def posthoc_average(run: Run) -> PostHocAverage | None:
    """Of a run that has been trained, the average that `sample.sigma_rel` asks for, whether its file is there or not.

    None where it asks for none: images are then drawn from the average of `train.ema`.
    """
    sigma_rel, train = run.config.sample.sigma_rel, run.results["train"]
    if sigma_rel is None:
        return None
    wanted = EMASnapshot(images_seen=train.facts["images"], sigma_rel=sigma_rel)
    return PostHocAverage(train.folder / AVERAGES, train.facts["averages"], wanted)


def weights_identity(run: Run) -> str:
    """Digest of what decides the weights that a run draws from, known before an average is made of those kept."""
    average, facts = posthoc_average(run), run.results["train"].facts
    return facts["weights_digest"] if average is None else digest([average.wanted.model_dump(), average.kept])


@dataclass(frozen=True)
class ModelFolders:
    """Where the stages have left a model's parts."""

    train: Path
    guide: Path | None
    """Where the classifier that guides is; None: there is none."""
    weights: Path
    """The safetensors file that images are drawn from."""

    @classmethod
    def of(cls, run: Run) -> "ModelFolders":
        """Those of a run that has been trained; the average that it draws from is made where it is not there yet."""
        train, guide, average = run.results["train"].folder, run.results.get("guide"), posthoc_average(run)
        if average and not average.file.exists():
            run.terminal.line(str(average))
            average.make()
        return cls(train, guide.folder if guide else None, average.file if average else train / WEIGHTS)

    def write_description(self, config: Config, folder: Path) -> None:
        """`model.json` in a run's folder, with the places of the weights relative to it."""
        weights = {"weights": self.weights, "classifier": self.guide and self.guide / WEIGHTS}
        places = {name: file and os.path.relpath(file, folder) for name, file in weights.items()}
        write_json(folder / DESCRIPTION, description_of(config) | places)

    def load(self, guidance: Guidance, device: torch.device, execution: Execution = EAGER) -> TrainedModel:
        """The model with all that this guidance needs."""
        spec = ModelSpec.model_validate_json((self.train / SPEC).read_text())
        return assembled(spec, guidance, self.weights, self.guide and self.guide / WEIGHTS, device, execution)
