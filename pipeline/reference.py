"""Fourth stage: what the drawn images will be compared with. The features of the real images, and the classifier that
makes them, where one is to be trained on these data.

They depend on the data and the extractor only, so all runs on these data share them, whatever they train or draw.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import torch

from evaluation import (
    Classifier,
    Extractor,
    ExtractorIdentity,
    Features,
    Inception,
    save_classifier,
    train_classifier,
)

from .fan_out import actor_pool, awaited, fan_out
from .features import Batch, Extraction, FeatureFiles, batches, extractor_identity
from .files import sha256_of, write_json
from .reader import ShardReader
from .shard_cache import ShardCacheConfig
from .shard_index import ShardIndex
from .stage import Facts, Run, Stage

BATCH_IMAGES = 100
"""Real images whose features are taken together."""
_CLASSIFIER, _EXTRACTOR = "classifier.safetensors", "extractor.json"
Split = Literal["train", "heldout"]
_SPLITS: tuple[Split, ...] = ("train", "heldout")


class Reference(Stage):
    """Features of the training images, and of those held out."""

    name = "reference"
    shared = True

    def identity(self, run: Run) -> Any:
        return {
            "extractor": extractor_identity(run.config.evaluate.extractor),
            "data": run.results["prepare"].facts["data_digest"],
            "batch_images": BATCH_IMAGES,
        }

    def compute(self, run: Run, folder: Path) -> Facts:
        prepared = run.results["prepare"]
        images = RealImages(prepared.folder, run.config.data.shard_cache)
        extraction = _extraction(run, images, folder)
        files = FeatureFiles(folder, extraction.digest, run.joined.device_type)
        all_batches = [
            batch for split in _SPLITS for batch in batches(split, prepared.facts[f"{split}_images"], BATCH_IMAGES)
        ]
        missing = [batch for batch in all_batches if files.read(batch) is None]
        total = sum(batch.images for batch in all_batches)
        done = total - sum(batch.images for batch in missing)
        with (
            run.terminal.progress(total, "images") as progress,
            actor_pool(
                run.joined, run.samplers(len(missing)), FeatureWriter, extraction, files, images, run.threads
            ) as pool,
        ):
            progress.update(done)
            for batch in fan_out(pool, missing, "write", self.name, run.config.cluster.task_timeout_s):
                done += batch.images
                progress.update(done)
        return {
            "extractor": ExtractorIdentity.model_validate_json((folder / _EXTRACTOR).read_text()).model_dump(),
            "device_type": files.device_type,
            **{f"{split}_images": prepared.facts[f"{split}_images"] for split in _SPLITS},
        }

    def figure(self, facts: Facts) -> str:
        return (
            f"{facts['extractor']['kind']} features of {facts['train_images'] + facts['heldout_images']:,} real images"
        )


@dataclass(frozen=True)
class RealImages:
    """The packed images, as an actor finds them."""

    index_folder: Path
    shard_cache: ShardCacheConfig

    def reader(self, split: Split) -> ShardReader:
        """Of one part of the data."""
        return ShardReader(ShardIndex.load(self.index_folder), split, "none", self.shard_cache)


class FeatureWriter:
    """Runs as an actor: loads the extractor once and writes the features of batches of real images."""

    def __init__(self, extraction: Extraction, files: FeatureFiles, images: RealImages, threads: int) -> None:
        torch.set_num_threads(threads)
        self.extractor, self.files = extraction.load(files.device_type), files
        write_json(files.folder / _EXTRACTOR, self.extractor.identity.model_dump())
        self.readers: dict[str, ShardReader] = {split: images.reader(split) for split in _SPLITS}

    def ready(self) -> None:
        """Returns once the extractor is loaded."""

    def write(self, batch: Batch) -> None:
        """Writes the features of one batch."""
        start = batch.number * BATCH_IMAGES
        images = self.readers[batch.source].read(np.arange(start, start + batch.images))
        self.files.write(batch, self.extractor(images))


def extraction_of(run: Run) -> Extraction:
    """What made the features of the real images, and will make those of the drawn ones."""
    reference = run.results["reference"]
    return Extraction(
        _absolute(run.config.evaluate.extractor),
        reference.folder / _CLASSIFIER,
        reference.facts["extractor"]["digest"],
    )


def real_features(run: Run, split: str) -> Features:
    """Features of the `train` or `heldout` images, in order."""
    reference = run.results["reference"]
    files = FeatureFiles(reference.folder, reference.facts["extractor"]["digest"], reference.facts["device_type"])
    return files.joined(batches(split, reference.facts[f"{split}_images"], BATCH_IMAGES))


def _absolute(extractor: Extractor) -> Extractor:
    return extractor.absolute() if isinstance(extractor, Inception) else extractor


def _extraction(run: Run, images: RealImages, folder: Path) -> Extraction:
    """Trains the classifier where one is asked for and there is none yet."""
    extractor = _absolute(run.config.evaluate.extractor)
    if isinstance(extractor, Inception):
        return Extraction(extractor, folder / _CLASSIFIER, extractor.file_digest())
    classifier = folder / _CLASSIFIER
    if not classifier.exists():
        training = ray.remote(num_cpus=run.threads)(_train_classifier).remote(extractor, images, classifier)
        awaited(training, "reference: the classifier has not been trained", run.config.cluster.task_timeout_s)
    return Extraction(extractor, classifier, sha256_of(classifier))


def _train_classifier(extractor: Classifier, images: RealImages, into: Path) -> None:
    """Runs as a task: learns the classes of the training images."""
    reader = images.reader("train")
    pixels = reader.read(np.arange(len(reader)))
    classes = len(ShardIndex.load(images.index_folder).class_names)
    save_classifier(train_classifier(extractor, pixels, reader.labels, classes), into)
