"""Fifth stage: the scores that compare drawn images with real ones, and the protocol that they were taken under.

The features of the drawn images lie beside them already, where they were drawn for this extractor; else they are taken
here.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from evaluation import ExtractorIdentity, Protocol
from model import default_label

from ..clusters.gauges import Gauges
from ..features.features import Batch, Extraction, FeatureFiles
from ..features.reference import RealFeatures, extraction_of, reference_key, reference_statistics, write_missing
from ..figures import score_words
from ..files import write_arrays, write_json
from ..runfile.keyroles import identity
from ..sampling.chunks import Chunks
from ..stage import Facts, Run, Stage
from .likelihood import measure

if TYPE_CHECKING:
    from evaluation.feature_set import FeatureSet
    from evaluation.moments import Statistics
    from evaluation.scores import Score, ScoreNames

PROTOCOL, CLOSEST = "protocol.json", "closest.npz"
_NEIGHBOURS = 3
"""Training images that are looked for beside each sample."""
_CLOSEST = 8  # samples that are shown beside their nearest training images


class Evaluate(Stage):
    """Scores the drawn images against the training images, and the held-out images in the same way beside them."""

    name = "evaluate"
    format = 2

    def identity(self, run: Run) -> Any:
        return {
            "samples": run.results["sample"].key,
            "device_type": run.results["sample"].facts["device_type"],
            "reference": run.results["reference"].key,
            "keep_features": run.config.evaluate.keep_features,
            "likelihoods": [identity(each) for each in run.config.evaluate.likelihoods],
        }

    def compute(self, run: Run, folder: Path) -> Facts:
        extraction, features = extraction_of(run), SampleFeatures.of(run)
        chunks, files = features.chunks, features.files
        write_missing(run, self.name, files, list(chunks.batches()), SampleFeatureWriter, extraction, chunks)
        facts = _score(run, features, folder)
        export_score(run.config.name, facts)
        return facts

    def needs_actors(self, run: Run) -> bool:
        """Whether actors have something to do before it can be scored: features do not all lie beside the images."""
        features = SampleFeatures.of(run)
        there = all(features.files.path(batch).exists() for batch in features.chunks.batches())
        return not there or bool(run.config.evaluate.likelihoods)

    def figure(self, facts: Facts) -> str:
        return f"{facts['primary_score']} {score_words(facts['scores'][facts['primary_score']])}"


def export_score(run: str, facts: Facts) -> None:
    """The score that decides, for Prometheus, where this process has a cluster. run: the run's name."""
    name = facts["primary_score"]
    if ray.is_initialized():
        Gauges("evaluate", run=run, score=name).set({"score": facts["scores"][name]})


class SampleFeatureWriter:
    """Runs as an actor: loads the extractor once and writes the features of chunks that were drawn without it."""

    def __init__(self, extraction: Extraction, chunks: Chunks, threads: int) -> None:
        torch.set_num_threads(threads)
        self.extractor, self.chunks = extraction.load(chunks.device_type), chunks

    def ready(self) -> None:
        """Returns once the extractor is loaded."""

    def write(self, batch: Batch) -> None:
        """Writes the features of one chunk."""
        features = self.extractor(self.chunks.read(batch.number))
        self.chunks.features(self.extractor.digest).write(batch, features)


@dataclass(frozen=True)
class SampleFeatures:
    """Features of the drawn images, read from their files when they are needed."""

    chunks: Chunks
    files: FeatureFiles

    @classmethod
    def of(cls, run: Run) -> "SampleFeatures":
        """By the extractor that the images of this run are scored with."""
        chunks = Chunks.of(run)
        return cls(chunks, chunks.features(extraction_of(run).digest))

    @property
    def images(self) -> int:
        """Of the whole set."""
        return self.chunks.config.images

    def gathered(self, keep: bool) -> "FeatureSet":
        """What the scores need of the whole set. keep: all features, in memory."""
        from evaluation.feature_set import FeatureSet

        return FeatureSet.folded(self.images, self.files.parts(self.chunks.batches()), keep)

    def first(self, images: int) -> NDArray[np.float32]:
        """Features of the first images of the set. -> [images, D]."""
        chunks = -(-images // self.chunks.config.chunk_images)
        return self.files.joined(islice(self.chunks.batches(), chunks)).pool[:images]

    def blank_share(self) -> float:
        """Share of the images that are of one colour throughout, as those of a network that broke are."""
        blank = 0
        for chunk in range(self.chunks.count):
            pixels = self.chunks.read(chunk)
            blank += int((pixels == pixels[:, :1, :1]).all(axis=(1, 2, 3)).sum())
        return blank / self.images

    @cached_property
    def logits(self) -> NDArray[np.float32]:
        """What a classifier says of all images. -> [N, K]."""
        return np.concatenate([part.logits for part in self.files.parts(self.chunks.batches())])


def _score(run: Run, samples: SampleFeatures, folder: Path) -> Facts:
    """All scores, what the same measure says of real images, and the protocol that they were measured under."""
    from evaluation import fidelity, scores

    real = RealFeatures.of(run)
    extractor = reference_key(run).extractor
    names, stored = scores.score_names(extractor), reference_statistics(run)
    generated = samples.gathered(run.config.evaluate.keep_features)
    found = scores.score(extractor, generated, stored, real.subset())
    found[names.copy_rate] = _copy_rate(real, generated, folder)
    found["blank_images"] = scores.Score(samples.blank_share())
    if real.images["heldout"]:
        found |= _beside_real_images(extractor, names, samples, real, stored)
    spec = run.config.spec
    seeds = run.config.sample.seed + torch.arange(samples.images)
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
        reference=reference_key(run).reference,
        device_type=run.results["sample"].facts["device_type"],
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


def _copy_rate(real: RealFeatures, generated: "FeatureSet", folder: Path) -> "Score":
    """How many samples are copies of training images; those nearest to one are written down with what they are near."""
    from evaluation.feature_set import subset_of
    from evaluation.neighbours import copy_rate, nearest
    from evaluation.scores import Score

    if not generated.statistics.finite:
        return Score(None, "features are not finite: the weights lack this layer")
    if not real.images["train"]:
        return Score(None, "the features of the training images were not taken: evaluate.reference stands in for them")
    neighbours = min(_NEIGHBOURS, real.images["train"])
    of_samples = nearest(generated.subset, real.pools("train"), neighbours)
    closest = np.argsort(of_samples.distances[:, 0], kind="stable")[:_CLOSEST]
    write_arrays(
        folder / CLOSEST,
        samples=subset_of(generated.images)[closest],
        training=of_samples.indices[closest],
        distances=of_samples.distances[closest],
    )
    if not real.images["heldout"]:
        return Score(None, "no images were held out, and how near they are is the measure; raise data.heldout_fraction")
    heldout = real.joined("heldout").pool
    return copy_rate(of_samples, nearest(heldout[subset_of(len(heldout))], real.pools("train")))


def _beside_real_images(
    extractor: ExtractorIdentity,
    names: "ScoreNames",
    samples: SampleFeatures,
    real: RealFeatures,
    reference: "Statistics",
) -> dict[str, "Score"]:
    """The same measures of real images that were held out, and of as many samples: what a perfect model would reach.

    The Frechet distance falls with the number of images, so only equal numbers are set side by side.
    """
    from evaluation import scores
    from evaluation.feature_set import FEWEST_IMAGES, feature_statistics

    heldout = real.joined("heldout")
    distance, count = names.frechet_distance, len(heldout.pool)
    if count < FEWEST_IMAGES:
        return {}
    found = {f"{distance}_heldout": scores.frechet_distance(feature_statistics(heldout.pool), reference)}
    if count <= samples.images:
        as_many = feature_statistics(samples.first(count))
        found[f"{distance}_as_many_samples"] = scores.frechet_distance(as_many, reference)
    if extractor.kind == "classifier":
        drawn, held = scores.class_report(samples.logits), scores.class_report(heldout.logits)
        found["confidence_samples"] = scores.Score(drawn.mean_confidence)
        found["confidence_heldout"] = scores.Score(held.mean_confidence)
        found["classes_present"] = scores.Score(float(drawn.classes_present))
    return found
