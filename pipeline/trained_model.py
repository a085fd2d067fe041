"""A trained model on disk, and back in memory."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model import ClassLabels, Guidance, ModelSpec, TrainedModel

from .checkpoint import SPEC, WEIGHTS
from .config import Config
from .files import write_json
from .stage import Run
from .stored_model import DESCRIPTION, FORMAT, assembled


def described(config: Config) -> dict[str, Any]:
    """All of a model but its weights, and how images are drawn from it, as JSON."""
    parts = {"spec": config.spec, "sampler": config.sample.sampler, "guidance": config.sample.guidance}
    withheld = isinstance(config.conditioning, ClassLabels) and config.conditioning.dropout > 0
    described_parts = {name: part.model_dump(mode="json") for name, part in parts.items()}
    return {"format": FORMAT, **described_parts, "labels_withheld": withheld}


@dataclass(frozen=True)
class ModelFolders:
    """Where the stages have left a model's parts."""

    train: Path
    guide: Path | None
    """Where the classifier that guides is; None: there is none."""

    @classmethod
    def of(cls, run: Run) -> "ModelFolders":
        """Those of a run that has been trained."""
        guide = run.results.get("guide")
        return cls(run.results["train"].folder, guide.folder if guide else None)

    def write_description(self, config: Config, folder: Path) -> None:
        """`model.json` in a run's folder, with the places of the weights relative to it."""
        weights = {"weights": self.train, "classifier": self.guide}
        places = {name: part and os.path.relpath(part / WEIGHTS, folder) for name, part in weights.items()}
        write_json(folder / DESCRIPTION, described(config) | places)

    def load(self, guidance: Guidance, device: torch.device) -> TrainedModel:
        """The model with all that this guidance needs."""
        spec = ModelSpec.model_validate_json((self.train / SPEC).read_text())
        return assembled(spec, guidance, self.train / WEIGHTS, self.guide and self.guide / WEIGHTS, device)
