"""Fourth stage: features of the drawn and of the real images, and the scores that compare them.

Features of real images depend on the data and the extractor only; they are kept apart, in a `reference` folder that
all runs on these data share, together with the classifier that was trained for them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from evaluation import (
    Classifier,
    Extractor,
    ExtractorIdentity,
    Features,
    Protocol,
    Reference,
    WeightsFile,
    joined,
    load_extractor,
    save_classifier,
    train_classifier,
)
from model import default_label

from .errors import DataError
from .fan_out import actor_pool, awaited, fan_out
from .files import digest, in_turn, read_arrays, read_json, sha256_of, write_arrays, write_json
from .keyroles import identity
from .likelihood import measure
from .reader import ShardReader
from .sample import Chunks
from .shard_cache import ShardCacheConfig
from .shard_index import ShardIndex
from .stage import Facts, Run, Stage

if TYPE_CHECKING:
    from evaluation.moments import Statistics
    from evaluation.scores import Score, ScoreNames

PROTOCOL = "protocol.json"
_CLASSIFIER, _EXTRACTOR = "classifier.safetensors", "extractor.json"

SetName = Literal["samples", "train", "heldout"]


class Evaluate(Stage):
    """Scores the drawn images against the training images, and the held-out images in the same way beside them."""

    name = "evaluate"

    def identity(self, run: Run) -> Any:
        return {
            "samples": run.results["sample"].key,
            "device_type": run.results["sample"].facts["device_type"],
            "extractor": _extractor_identity(run.config.evaluate.extractor),
            "data": run.results["prepare"].facts["data_digest"],
            "likelihoods": [identity(each) for each in run.config.evaluate.likelihoods],
        }

    def compute(self, run: Run, folder: Path) -> Facts:
        work = _work(run, folder)
        work.reference.mkdir(parents=True, exist_ok=True)
        # another run on these data waits here and finds the features made
        with in_turn(work.reference, "set of features", run.config.cluster.task_timeout_s):
            _make_classifier(run, work)
            digest_ = work.extractor_digest()
            _write_features(run, work, [batch for batch in work.batches() if work.read(batch, digest_) is None])
            return _score(run, work, folder)

    def figure(self, facts: Facts) -> str:
        value = facts["scores"][facts["primary_score"]]
        return f"{facts['primary_score']} " + ("not available" if value is None else f"{value:.4g}")


class Batch(NamedTuple):
    """Images whose features are taken together: always the same ones, since rounding may depend on the batch."""

    source: SetName
    number: int
    images: int


@dataclass(frozen=True)
class Work:
    """What the actors that extract features share."""

    extractor: Extractor
    chunks: Chunks
    index_folder: Path
    train_images: int
    heldout_images: int
    folder: Path
    """For features of the samples."""
    reference: Path
    """For the classifier and features of real images."""
    shard_cache: ShardCacheConfig

    @property
    def classifier(self) -> Path:
        """The weights of the classifier that was trained on these data."""
        return self.reference / _CLASSIFIER

    def count(self, source: SetName) -> int:
        """Number of images of this set."""
        return {
            "samples": self.chunks.config.images,
            "train": self.train_images,
            "heldout": self.heldout_images,
        }[source]

    def batches(self, source: SetName | None = None) -> Iterator[Batch]:
        """All batches in order; of one set, or of the three."""
        size = self.chunks.config.chunk_images
        for name in ("samples", "train", "heldout") if source is None else (source,):
            count = self.count(name)
            for number in range(-(-count // size)):
                yield Batch(name, number, min(size, count - number * size))

    def path(self, batch: Batch) -> Path:
        """Where the features of this batch are, or are to be."""
        folder = self.folder if batch.source == "samples" else self.reference
        return folder / f"{batch.source}-{batch.number:06d}-{self.chunks.device_type}.npz"

    def extractor_digest(self) -> str:
        """sha256 of the extractor's weights file."""
        if isinstance(self.extractor, WeightsFile):
            return self.extractor.file_digest()
        return sha256_of(self.classifier)

    def read(self, batch: Batch, extractor: str) -> Features | None:
        """The features of this batch; None unless there is a whole file, made by the extractor of this digest."""
        try:
            pool, logits, made_by = read_arrays(self.path(batch), "pool", "logits", "extractor")
        except DataError:
            return None
        return Features(pool, logits) if str(made_by) == extractor and len(pool) == batch.images else None

    def features(self, source: SetName, extractor: str) -> Features:
        """Features of a whole set, in order. DataError where they have gone since they were made."""
        parts = []
        for batch in self.batches(source):
            part = self.read(batch, extractor)
            if part is None:
                raise DataError(
                    f"{self.path(batch)}: no whole features of {batch.images} images by the extractor "
                    f"{extractor[:12]}; run the same command again, it makes them anew"
                )
            parts.append(part)
        return joined(parts)


class FeatureWriter:
    """Runs as an actor: loads the extractor once and writes the features of batches."""

    def __init__(self, work: Work, threads: int) -> None:
        torch.set_num_threads(threads)
        self.work = work
        self.extractor = load_extractor(work.extractor, work.classifier, work.chunks.device_type)
        write_json(work.reference / _EXTRACTOR, self.extractor.identity.model_dump())
        index = ShardIndex.load(work.index_folder)
        self.readers = {split: ShardReader(index, split, "none", work.shard_cache) for split in ("train", "heldout")}

    def ready(self) -> None:
        """Returns once the extractor is loaded."""

    def write(self, batch: Batch) -> None:
        """Writes the features of one batch."""
        pool, logits = self.extractor(self._images(batch))
        write_arrays(self.work.path(batch), pool=pool, logits=logits, extractor=np.array(self.extractor.digest))

    def _images(self, batch: Batch) -> NDArray[np.uint8]:
        if batch.source == "samples":
            return self.work.chunks.read(batch.number)
        start = batch.number * self.work.chunks.config.chunk_images
        return self.readers[batch.source].read(np.arange(start, start + batch.images))


def _extractor_identity(extractor: Extractor) -> Any:
    """What decides the features: of weights in a file, what they are and not where."""
    if isinstance(extractor, WeightsFile):
        chosen = extractor.model_dump(mode="json", exclude={"weights", "weights_sha256"})
        return chosen | {"weights": extractor.file_digest()}
    return identity(extractor)


def _make_classifier(run: Run, work: Work) -> None:
    """Trains the classifier where one is asked for and there is none yet."""
    needed = isinstance(work.extractor, Classifier) and not work.classifier.exists()
    if needed:
        training = ray.remote(num_cpus=run.threads)(_train_classifier).remote(work)
    from evaluation import scores  # noqa: F401  # torch-fidelity takes seconds to import: do it meanwhile

    if needed:
        awaited(training, "evaluate: the classifier has not been trained", run.config.cluster.task_timeout_s)


def _write_features(run: Run, work: Work, missing: list[Batch]) -> None:
    total = sum(batch.images for batch in work.batches())
    done = total - sum(batch.images for batch in missing)
    with (
        run.terminal.progress(total, "images") as progress,
        actor_pool(run.joined, min(run.processes, len(missing)), FeatureWriter, work, run.threads) as actors,
    ):
        progress.update(done)
        for batch in fan_out(actors, missing, "write", "evaluate", run.config.cluster.task_timeout_s):
            done += batch.images
            progress.update(done)


def _work(run: Run, folder: Path) -> Work:
    config, data = run.config, run.results["prepare"].facts
    sampled = run.results["sample"]
    extractor = config.evaluate.extractor
    key = digest([_extractor_identity(extractor), data["data_digest"], config.sample.chunk_images])
    return Work(
        extractor=extractor.absolute() if isinstance(extractor, WeightsFile) else extractor,
        chunks=Chunks(sampled.folder, config.sample, sampled.facts["device_type"]),
        index_folder=run.results["prepare"].folder,
        train_images=data["train_images"],
        heldout_images=data["heldout_images"],
        folder=folder,
        reference=run.output / "stages" / f"reference-{key[:12]}",
        shard_cache=config.data.shard_cache,
    )


def _train_classifier(work: Work) -> None:
    """Runs as a task: learns the classes of the training images."""
    index = ShardIndex.load(work.index_folder)
    reader = ShardReader(index, "train", "none", work.shard_cache)
    images = reader.read(np.arange(len(reader)))
    assert isinstance(work.extractor, Classifier)
    network = train_classifier(work.extractor, images, reader.labels, len(index.class_names))
    save_classifier(network, work.classifier)


def _score(run: Run, work: Work, folder: Path) -> Facts:
    """All scores, what the same measure says of real images, and the protocol that they were measured under."""
    from evaluation import fidelity, scores
    from evaluation.feature_set import FEWEST_IMAGES, FeatureSet, feature_statistics

    extractor = ExtractorIdentity.model_validate(read_json(work.reference / _EXTRACTOR))
    samples, train = work.features("samples", extractor.digest), work.features("train", extractor.digest)
    reference = feature_statistics(train.pool)
    generated = FeatureSet.of(samples, run.config.sample.chunk_images)
    found = scores.score(extractor, generated, reference, train.pool)
    names = scores.score_names(extractor)
    if work.heldout_images >= FEWEST_IMAGES:
        heldout = work.features("heldout", extractor.digest)
        found |= _beside_real_images(work, names, samples, heldout, reference)
    spec = run.config.spec
    seeds = run.config.sample.seed + torch.arange(len(samples.logits))
    asked = default_label(spec, run.config.sample.guidance, seeds)
    if asked is not None and extractor.kind == "classifier":
        found["class_agreement"] = scores.class_agreement(samples.logits, asked)
    likelihoods = run.config.evaluate.likelihoods
    found |= {name: scores.Score(value) for name, value in measure(run, likelihoods, folder).items()}
    protocol = Protocol(
        images=run.config.sample.images,
        first_seed=run.config.sample.seed,
        chunk_images=run.config.sample.chunk_images,
        sampler=run.config.sample.sampler.model_dump(mode="json"),
        guidance=run.config.sample.guidance.model_dump(mode="json"),
        precision=run.config.sample.precision,
        compile=run.config.sample.compile,
        codec_digest=spec.codec.digest,
        extractor=extractor,
        reference=Reference(
            data_digest=run.results["prepare"].facts["data_digest"], split="train", images=work.train_images
        ),
        device_type=work.chunks.device_type,
        torch_fidelity=fidelity.VERSION,
        network_evaluations=run.results["sample"].facts["network_evaluations"],
    )
    write_json(folder / PROTOCOL, protocol.model_dump(mode="json"))
    return {
        "primary_score": names.frechet_distance,
        "scores": {name: score.value for name, score in found.items()},
        "reasons": {name: score.reason for name, score in found.items() if score.reason},
        "protocol_digest": protocol.digest,
        "extractor": extractor.model_dump(),
    }


def _beside_real_images(
    work: Work, names: "ScoreNames", samples: Features, heldout: Features, reference: "Statistics"
) -> dict[str, "Score"]:
    """The same measures of real images that were held out, and of as many samples: what a perfect model would reach.

    The Frechet distance falls with the number of images, so only equal numbers are set side by side.
    """
    from evaluation import scores
    from evaluation.feature_set import feature_statistics

    distance = names.frechet_distance
    count = len(heldout.pool)
    found = {f"{distance}_heldout": scores.frechet_distance(feature_statistics(heldout.pool), reference)}
    if count <= len(samples.pool):
        as_many = feature_statistics(samples.pool[:count])
        found[f"{distance}_as_many_samples"] = scores.frechet_distance(as_many, reference)
    if work.extractor.kind == "classifier":
        drawn, real = scores.class_report(samples.logits), scores.class_report(heldout.logits)
        found["confidence_samples"] = scores.Score(drawn.mean_confidence)
        found["confidence_heldout"] = scores.Score(real.mean_confidence)
        found["classes_present"] = scores.Score(float(drawn.classes_present))
    return found
