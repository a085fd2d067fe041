"""Sixth stage: the scores that compare drawn images with real ones, and the protocol that they were taken under.

The features of the drawn images lie beside them already, where they were drawn for this extractor; else they are taken
here.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evaluation import ExtractorIdentity, Features, Protocol
from evaluation import Reference as ReferenceIdentity
from model import default_label

from .fan_out import actor_pool, fan_out
from .features import Batch, Extraction
from .files import write_json
from .keyroles import identity
from .likelihood import measure
from .reference import extraction_of, real_features
from .sample import Chunks
from .stage import Facts, Run, Stage

if TYPE_CHECKING:
    from evaluation.scores import Score, ScoreNames, Statistics

PROTOCOL = "protocol.json"


class Evaluate(Stage):
    """Scores the drawn images against the training images, and the held-out images in the same way beside them."""

    name = "evaluate"
    format = 2

    def identity(self, run: Run) -> Any:
        return {
            "samples": run.results["sample"].key,
            "device_type": run.results["sample"].facts["device_type"],
            "reference": run.results["reference"].key,
            "likelihoods": [identity(each) for each in run.config.evaluate.likelihoods],
        }

    def compute(self, run: Run, folder: Path) -> Facts:
        return _score(run, _sample_features(run), folder)

    def figure(self, facts: Facts) -> str:
        value = facts["scores"][facts["primary_score"]]
        return f"{facts['primary_score']} " + ("not available" if value is None else f"{value:.4g}")


class FeatureWriter:
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


def _sample_features(run: Run) -> Features:
    """Features of the whole sample set, in order; those that are missing are taken first."""
    sampled, extraction = run.results["sample"], extraction_of(run)
    chunks = Chunks(sampled.folder, run.config.sample, sampled.facts["device_type"])
    files = chunks.features(extraction.digest)
    missing = [batch for batch in chunks.batches() if files.read(batch) is None]
    total = chunks.config.images
    done = total - sum(batch.images for batch in missing)
    with (
        run.terminal.progress(total, "images") as progress,
        actor_pool(run.joined, run.samplers(len(missing)), FeatureWriter, extraction, chunks, run.threads) as pool,
    ):
        progress.update(done)
        for batch in fan_out(pool, missing, "write", "evaluate", run.config.cluster.task_timeout_s):
            done += batch.images
            progress.update(done)
    return files.joined(chunks.batches())


def _score(run: Run, samples: Features, folder: Path) -> Facts:
    """All scores, what the same measure says of real images, and the protocol that they were measured under."""
    from evaluation import fidelity, scores

    real = run.results["reference"].facts
    extractor = ExtractorIdentity.model_validate(real["extractor"])
    train = real_features(run, "train")
    reference = scores.feature_statistics(train.pool)
    found = scores.score(extractor, samples, reference)
    names = scores.score_names(extractor)
    if real["heldout_images"] >= scores.FEWEST_IMAGES:
        found |= _beside_real_images(extractor, names, samples, real_features(run, "heldout"), reference)
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
        reference=ReferenceIdentity(
            data_digest=run.results["prepare"].facts["data_digest"], split="train", images=real["train_images"]
        ),
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


def _beside_real_images(
    extractor: ExtractorIdentity, names: "ScoreNames", samples: Features, heldout: Features, reference: "Statistics"
) -> dict[str, "Score"]:
    """The same measures of real images that were held out, and of as many samples: what a perfect model would reach.

    The Frechet distance falls with the number of images, so only equal numbers are set side by side.
    """
    from evaluation import scores

    distance = names.frechet_distance
    count = len(heldout.pool)
    found = {f"{distance}_heldout": scores.frechet_distance(scores.feature_statistics(heldout.pool), reference)}
    if count <= len(samples.pool):
        as_many = scores.feature_statistics(samples.pool[:count])
        found[f"{distance}_as_many_samples"] = scores.frechet_distance(as_many, reference)
    if extractor.kind == "classifier":
        drawn, real = scores.class_report(samples.logits), scores.class_report(heldout.logits)
        found["confidence_samples"] = scores.Score(drawn.mean_confidence)
        found["confidence_heldout"] = scores.Score(real.mean_confidence)
        found["classes_present"] = scores.Score(float(drawn.classes_present))
    return found
