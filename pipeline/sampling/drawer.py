"""The Ray actor that draws images, and what it loads once for all sets that can be drawn with it."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model import (
    NO_GUIDANCE,
    ClassifierGuidance,
    Execution,
    NoisyClassifier,
    State,
    default_label,
    interpolate_seeds,
    trajectory,
)

from ..errors import TrainingError
from ..features.features import Extraction
from ..files import write_arrays
from ..models.compiler import check_compiler
from ..models.drawing import STRIP_FRAMES, device_name, images_counted, strip
from ..runfile.config import SampleConfig
from ..training.trained_model import ModelFolders
from .chunks import ChunkTask

_STRIP_IMAGES = 8


@dataclass(frozen=True)
class Equipment:
    """What must be the same for two sets to be drawn by one actor."""

    model: ModelFolders
    classifier: NoisyClassifier | None
    """The one that guides, where one does; how strongly may differ from set to set."""
    execution: Execution
    compiled_images: int | None
    """Images in each call of a compiled network, which is compiled anew for any other number; None: it is not."""
    device_type: str
    extraction: Extraction | None
    """Of the features that are taken where images are drawn; None: none are."""

    @classmethod
    def of(
        cls, config: SampleConfig, model: ModelFolders, device_type: str, extraction: Extraction | None = None
    ) -> "Equipment":
        """For a set of this configuration, drawn from this model."""
        guidance = config.guidance
        return cls(
            model,
            guidance.classifier if isinstance(guidance, ClassifierGuidance) else None,
            config.execution,
            config.chunk_images * guidance.evaluations if config.compile else None,
            device_type,
            extraction,
        )


class Drawer:
    """Runs as an actor: loads the weights once, draws chunks of any set, and takes their features on the way."""

    def __init__(self, equipment: Equipment, threads: int) -> None:
        torch.set_num_threads(threads)
        if equipment.execution.compile:
            check_compiler("sample.compile")
        classifier, extraction = equipment.classifier, equipment.extraction
        guidance = ClassifierGuidance(classifier=classifier) if classifier else NO_GUIDANCE
        self.device = torch.device(equipment.device_type)
        self.model = equipment.model.load(guidance, self.device, equipment.execution)
        self.extractor = extraction and extraction.load(equipment.device_type)

    def ready(self) -> None:
        """Returns once the weights are loaded."""

    def draw(self, task: ChunkTask) -> None:
        """Draws and writes one chunk; the strips before the first of a set, which is whole only with them."""
        chunks, chunk = task
        config, seeds, way = chunks.config, chunks.seeds(chunk), list[State]()
        seeds_there = torch.from_numpy(seeds).to(self.device)
        try:
            with images_counted(self.model.network) as count:
                for state in trajectory(self.model, config.sampler, seeds_there, guidance=config.guidance):
                    if chunk == 0:
                        way.append(State(state.t, state.x[:_STRIP_IMAGES].clone()))
            images = self.model.pictures(state.x)
            if way:
                frames, times = strip(self.model, way)
                write_arrays(chunks.strip, frames=frames, times=np.array(times))
                write_arrays(chunks.interpolation, frames=self._between(config, seeds_there[0]))
        except FloatingPointError as error:
            raise TrainingError(
                f"sample: seeds from {seeds[0]}: {error}; lower train.learning_rate, set sample.sampler.clip "
                f"to x0_and_eps, or loosen the tolerances of an adaptive sampler"
            ) from None
        pixels = images[: task.images].cpu().numpy()
        sha256, device = hashlib.sha256(pixels.tobytes()).hexdigest(), device_name(self.device)
        chunks.check_same(chunk, device, sha256)
        if self.extractor:
            chunks.features(self.extractor.digest).write(chunks.batch(chunk), self.extractor(pixels))
        write_arrays(
            chunks.path(chunk),
            images=pixels,
            seeds=seeds[: task.images],
            network_evaluations=np.array(count() / len(seeds)),
            pixels_sha256=np.array(sha256),
            device=np.array(device),
        )

    def _between(self, config: SampleConfig, first: Tensor) -> NDArray[np.uint8]:
        """Images from this seed to the next, all of the first one's class. -> uint8 [F, H, W, C].

        A compiled network is given whole chunks, since it would be compiled anew for batches of another size.
        """
        label = default_label(self.model.spec, config.guidance, first)
        shares = torch.linspace(0, 1, STRIP_FRAMES, dtype=torch.float64, device=self.device)
        if config.compile:
            shares = F.pad(shares, (0, -len(shares) % config.chunk_images))
        seed, told = int(first), None if label is None else int(label)
        frames = [
            interpolate_seeds(self.model, config.sampler, seed, seed + 1, some, told, config.guidance)
            for some in shares.split(config.chunk_images)
        ]
        return torch.cat(frames)[:STRIP_FRAMES].cpu().numpy()
