"""Scores of images that were not drawn here: `evaluate FILE --images ...`.

They are packed as any data set is, so whatever is wrong with them is refused there, and then compared with the training
images of the run file, or with statistics that are given.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..clusters.cluster import connected
from ..data.prepare import Prepare
from ..data.sources import Arrays, ImageFolder, Shards, Source
from ..errors import ConfigError, DataError
from ..features.features import FeatureFiles
from ..features.reference import (
    RealFeatures,
    RealImages,
    Reference,
    extraction_of,
    reference_key,
    reference_statistics,
    take_features,
)
from ..figures import score_words
from ..files import digest, read_json, write_json
from ..runfile.config import Config
from ..stage import Run, advance
from ..terminal import Terminal

if TYPE_CHECKING:
    from evaluation.reference import StoredReference

SCORES = "scores.json"


def run_outside(config: Config, images: Path, statistics: Path | None, terminal: Terminal) -> Path:
    """Scores the images in a folder, a webdataset tar or an array file. -> `scores.json`.

    statistics: an `.npz` of `mu` and `sigma`, ours or of pytorch-fid, clean-fid or EDM, in place of those of the
    training images.
    """
    from evaluation.reference import open_reference  # which brings torch-fidelity

    run, theirs = Run(config, terminal), Run(_of_images(config, images), terminal)
    stored = open_reference(statistics) if statistics else None  # refused before anything is spent
    with connected(config.cluster) as cluster:
        run.cluster = theirs.cluster = cluster
        cluster.require(min(config.sampler_range), "cluster.num_samplers")
        for each in (run, theirs):
            advance(each, Prepare())
        advance(run, Reference())
        with terminal.stage("evaluate", str(images)) as report:
            path = _score(run, theirs, statistics, stored)
            scored = read_json(path)
            report.figure = f"{scored['images']:,} images"
    rows = [(name, score_words(value)) for name, value in scored["scores"].items()]
    terminal.table([("score", "value"), *rows], "<>")
    terminal.facts({name: f"not available: {reason}" for name, reason in scored["reasons"].items()})
    terminal.facts({"scores": str(path)})
    return path


def _of_images(config: Config, images: Path) -> Config:
    """The same run file with these images as its data, none held out."""
    source = _source(images.expanduser().absolute())
    data = config.data.model_copy(update={"source": source, "heldout_fraction": 0.0, "base": None})
    return config.model_copy(update={"data": data})


def _source(images: Path) -> Source:
    if images.is_dir():
        return ImageFolder(path=images, classes="none", resize="none")
    if not images.exists():
        raise ConfigError(
            f"--images {images}: not there; name a folder of images, a webdataset tar, or an .npz or .npy"
        )
    if ".tar." in images.name or images.suffix == ".tgz":
        raise ConfigError(f"--images {images}: a compressed tar; unpack it, and name the .tar or the folder")
    if images.suffix == ".tar":
        return Shards(urls=(str(images),))
    return Arrays(images=images)


def _score(run: Run, theirs: Run, statistics: Path | None, stored: "StoredReference | None") -> Path:
    """Takes the features that are missing and writes the scores. stored: what is in the file of the statistics."""
    from evaluation import scores
    from evaluation.feature_set import FeatureSet
    from evaluation.reference import ReferenceKey, check_extractor

    prepared, reference = theirs.results["prepare"], run.results["reference"]
    images = prepared.facts["train_images"]
    if images < 2:
        raise DataError(f"{prepared.folder}: {images} image, a score needs at least 2")
    key = digest([prepared.facts["data_digest"], reference.key, statistics and str(statistics.absolute())])
    folder = run.output / f"outside-{key[:8]}"
    extraction = extraction_of(run)
    files = FeatureFiles(folder, extraction.digest, run.joined.device_type)
    features = RealFeatures(files, {"train": images, "heldout": 0})
    packed = RealImages(prepared.folder, theirs.config.data.shard_cache)
    take_features(run, "evaluate", extraction, features, packed)
    whole = FeatureSet.folded(images, features.parts("train"), run.config.evaluate.keep_features)
    against: ReferenceKey = reference_key(run)
    if statistics is None or stored is None:
        found = scores.score(against.extractor, whole, reference_statistics(run), RealFeatures.of(run).subset())
    else:
        check_extractor(statistics, stored, against.extractor, whole.statistics.mu.size)
        found = scores.score(against.extractor, whole, stored.statistics)
        against = ReferenceKey(reference=stored.key.reference, extractor=against.extractor)
    record: dict[str, Any] = {
        "images": images,
        "data_digest": prepared.facts["data_digest"],
        "against": against.model_dump(mode="json"),
        "scores": {name: score.value for name, score in found.items()},
        "reasons": {name: score.reason for name, score in found.items() if score.reason},
    }
    write_json(folder / SCORES, record)
    return folder / SCORES
