"""Third stage: what the drawn images will be compared with. The features of the real images, and the classifier that
makes them, where one is to be trained on these data.

They depend on the data and the extractor only, so all runs on these data share them, whatever they train or draw.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from evaluation import (
    Classifier,
    Extractor,
    ExtractorIdentity,
    Features,
    WeightsFile,
    save_classifier,
    train_classifier,
)
from evaluation import Reference as ReferenceImages

from ..clusters.fan_out import awaited, finish_on_actors
from ..data.reader import ShardReader
from ..data.shard_cache import ShardCacheConfig
from ..data.shard_index import ShardIndex
from ..files import sha256_of, write_json
from ..stage import Facts, Run, Stage
from .features import Batch, Extraction, FeatureFiles, batches, extractor_identity

if TYPE_CHECKING:
    from evaluation.moments import Statistics
    from evaluation.reference import ReferenceKey

BATCH_IMAGES = 100
"""Real images whose features are taken together."""
STATISTICS = "statistics.npz"
"""`mu` and `sigma` of the training images' features, as pytorch-fid, clean-fid and EDM read them."""
_CLASSIFIER, _EXTRACTOR = "classifier.safetensors", "extractor.json"
Split = Literal["train", "heldout"]
_SPLITS: tuple[Split, ...] = ("train", "heldout")


class Reference(Stage):
    """Features of the training images, and of those held out."""

    name = "reference"
    shared = True

    def identity(self, run: Run) -> Any:
        evaluate = run.config.evaluate
        given = evaluate.reference_digest() if evaluate.statistics else None
        return {
            "extractor": extractor_identity(evaluate.extractor),
            "data": run.compared.digest,
            "batch_images": BATCH_IMAGES,
            "keep_features": evaluate.keep_features,
            **({} if given is None else {"given": given}),
        }

    def compute(self, run: Run, folder: Path) -> Facts:
        images = RealImages(run.compared.folder, run.config.data.shard_cache)
        extraction = _extraction(run, images, folder)
        files = FeatureFiles(folder, extraction.digest, run.joined.device_type)
        count: dict[Split, int] = {split: run.compared.count(split) for split in _SPLITS}
        given = run.config.evaluate.statistics
        if given is not None:  # then a few tell what the extractor makes
            count["train"] = min(count["train"], BATCH_IMAGES)
        real = RealFeatures(files, count)
        take_features(run, self.name, extraction, real, images)
        extractor = ExtractorIdentity.model_validate_json((folder / _EXTRACTOR).read_text())
        facts = {"extractor": extractor.model_dump(), "device_type": files.device_type, **_counts(count)}
        if given is not None:
            return facts | _counts({"train": 0}) | _keep_given(given, folder, real, extractor)
        return facts | _keep_statistics(run, folder, real, extractor)

    def figure(self, facts: Facts) -> str:
        found = (
            f"{facts['extractor']['kind']} features of {facts['train_images'] + facts['heldout_images']:,} real images"
        )
        return found if "given" not in facts else f"{found}, and the statistics of evaluate.reference"


def _counts(images: Mapping[Split, int]) -> Facts:
    return {f"{split}_images": count for split, count in images.items()}


def _keep_statistics(run: Run, folder: Path, real: "RealFeatures", extractor: ExtractorIdentity) -> Facts:
    """Of the training images' features; none are written where the extractor's weights lack them."""
    from evaluation.reference import write_reference  # which brings torch-fidelity

    statistics = real.statistics(run.config.evaluate.keep_features)
    if statistics.finite:
        write_reference(folder / STATISTICS, statistics, _key(run, extractor, real.images["train"]))
    return {"features": statistics.mu.size, "finite": statistics.finite}


def _keep_given(path: Path, folder: Path, real: "RealFeatures", extractor: ExtractorIdentity) -> Facts:
    """Statistics from elsewhere. EvaluationError unless they may be of this extractor."""
    from evaluation.reference import check_extractor, open_reference, write_reference

    stored, features = open_reference(path), next(real.pools("train")).shape[1]
    check_extractor(path, stored, extractor, features)
    write_reference(folder / STATISTICS, *stored)
    return {"features": features, "finite": True, "given": stored.key.reference.model_dump(mode="json")}


@dataclass(frozen=True)
class RealImages:
    """The packed images, as an actor finds them."""

    index_folder: Path
    shard_cache: ShardCacheConfig

    def reader(self, split: Split) -> ShardReader:
        """Of one part of the data."""
        return ShardReader(ShardIndex.load(self.index_folder), split, "none", self.shard_cache)


def take_features(run: Run, stage: str, extraction: Extraction, features: "RealFeatures", images: RealImages) -> None:
    """Takes the features of packed images that have no file yet. stage: the name of who asks."""
    wanted = [batch for split in _SPLITS for batch in features.batches(split)]
    write_missing(run, stage, features.files, wanted, RealFeatureWriter, extraction, features.files, images)


def write_missing(
    run: Run, stage: str, files: FeatureFiles, wanted: Sequence[Batch], writer: type, *arguments: Any
) -> None:
    """Has actors write the features of those batches that have no whole file yet.

    writer: the actors' class, which is made with these arguments and the number of threads.
    """
    missing = [batch for batch in wanted if files.read(batch) is None]
    images = sum(batch.images for batch in wanted)
    finish_on_actors(run, stage, "write", missing, images, writer, *arguments)


class RealFeatureWriter:
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


@dataclass(frozen=True)
class RealFeatures:
    """Features of the real images, read from their files when they are needed."""

    files: FeatureFiles
    images: Mapping[Split, int]
    """How many, by part of the data."""

    @classmethod
    def of(cls, run: Run) -> "RealFeatures":
        """Those that the reference stage has left."""
        reference = run.results["reference"]
        facts = reference.facts
        files = FeatureFiles(reference.folder, facts["extractor"]["digest"], facts["device_type"])
        return cls(files, {split: facts[f"{split}_images"] for split in _SPLITS})

    def batches(self, split: Split) -> Iterator[Batch]:
        """Of one part of the data, in order."""
        return batches(split, self.images[split], BATCH_IMAGES)

    def parts(self, split: Split) -> Iterator[Features]:
        """Batch by batch, in order."""
        return self.files.parts(self.batches(split))

    def joined(self, split: Split) -> Features:
        """As one set."""
        return self.files.joined(self.batches(split))

    def pools(self, split: Split) -> Iterator[NDArray[np.float32]]:
        """Those that distances are taken of, batch by batch. Each [n, D]."""
        return (part.pool for part in self.parts(split))

    def subset(self) -> NDArray[np.float32] | None:
        """Of the training images that stand for all where a score takes too long otherwise. -> [M, D].

        None where `evaluate.reference` stands in for them.
        """
        from evaluation.feature_set import subset_of

        if not self.images["train"]:
            return None
        chosen, start, found = subset_of(self.images["train"]), 0, []
        for pool in self.pools("train"):
            first, last = np.searchsorted(chosen, [start, start + len(pool)])
            found.append(pool[chosen[first:last] - start])
            start += len(pool)
        return np.concatenate(found)

    def statistics(self, keep_features: bool) -> "Statistics":
        """Mean and covariance of the training images'."""
        from evaluation.feature_set import FeatureSet

        return FeatureSet.folded(self.images["train"], self.parts("train"), keep_features).statistics


def reference_key(run: Run) -> "ReferenceKey":
    """What the statistics are of: the whole set compared with, not mirrored, or what `evaluate.reference` says."""
    from evaluation.reference import ReferenceKey

    facts = run.results["reference"].facts
    extractor = ExtractorIdentity.model_validate(facts["extractor"])
    if "given" in facts:
        return ReferenceKey(reference=ReferenceImages.model_validate(facts["given"]), extractor=extractor)
    return _key(run, extractor, facts["train_images"])


def reference_statistics(run: Run) -> "Statistics":
    """Mean and covariance of the training images' features, verified; NaN where the extractor's weights lack them."""
    from evaluation.moments import Statistics
    from evaluation.reference import read_reference

    reference = run.results["reference"]
    if reference.facts["finite"]:
        return read_reference(reference.folder / STATISTICS, reference_key(run)).statistics
    size, images = int(reference.facts["features"]), reference.facts["train_images"]
    return Statistics(np.full(size, np.nan), np.full((size, size), np.nan), images)


def _key(run: Run, extractor: ExtractorIdentity, images: int) -> "ReferenceKey":
    from evaluation.reference import ReferenceKey

    reference = ReferenceImages(data_digest=run.compared.digest, split="train", images=images)
    return ReferenceKey(reference=reference, extractor=extractor)


def _absolute(extractor: Extractor) -> Extractor:
    return extractor.absolute() if isinstance(extractor, WeightsFile) else extractor


def _extraction(run: Run, images: RealImages, folder: Path) -> Extraction:
    """Trains the classifier where one is asked for and there is none yet."""
    extractor = _absolute(run.config.evaluate.extractor)
    if isinstance(extractor, WeightsFile):
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
