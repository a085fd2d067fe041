"""Peak memory of scoring sets of growing size: of the process that scores, in both modes, and of an actor that draws.

    python tests/benchmarks/scoring_memory.py [--images N [N ...]] [--features D] [--output FILE]

Each figure is of a process of its own, after its imports: what it grew by at most (resident set size, Linux). The one
that scores reads files of features as the stage `evaluate` does, here normal numbers, and gives all scores; KID,
precision, recall and the nearest neighbours are of 10,000 images at most, so up to that number they grow in either
mode. The actor is the class that Ray runs, with a small network of 8x8 pixels: it draws chunks and takes features.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from evaluation import Classifier, ExtractorIdentity, Features, Reference, save_classifier, train_classifier
from evaluation.feature_set import FeatureSet
from evaluation.neighbours import nearest
from evaluation.reference import ReferenceKey, read_reference, write_reference
from evaluation.scores import score
from model import DDIM, DDPMUNet, ModelSpec, VPCosine
from pipeline.features.features import Extraction, FeatureFiles
from pipeline.features.reference import STATISTICS, RealFeatures
from pipeline.files import sha256_of
from pipeline.runfile.config import SampleConfig
from pipeline.sampling.chunks import Chunks, ChunkTask
from pipeline.sampling.drawer import Drawer, Equipment
from pipeline.scoring.evaluate import SampleFeatures
from pipeline.training.checkpoint import SPEC, WEIGHTS
from pipeline.training.trained_model import ModelFolders
from records import Record, growth

CHUNK_IMAGES = 250
REAL_IMAGES, CLASSES = 10_000, 10
DIGEST = "0" * 64
CLASSIFIER = "classifier.safetensors"
MODEL = ModelSpec(
    image_size=8,
    channels=1,
    network=DDPMUNet(base_channels=8, channel_multipliers=(1,), blocks_per_level=1, attention_sizes=()),
    path=VPCosine(),
)


def chunks_of(folder: Path, images: int) -> Chunks:
    """A set of so many images."""
    return Chunks(folder, SampleConfig(images=images, chunk_images=CHUNK_IMAGES, sampler=DDIM(steps=1)), "cpu")


def real_features(folder: Path) -> RealFeatures:
    """Those that the stage `reference` would have left."""
    return RealFeatures(FeatureFiles(folder, DIGEST, "cpu"), {"train": REAL_IMAGES, "heldout": 0})


def write_features(folder: Path, images: int, features: int) -> None:
    """The files of a set of so many images, and those of the real ones, with their statistics."""
    random, drawn, real = np.random.default_rng(0), chunks_of(folder, images), real_features(folder)
    for files, batches in ((drawn.features(DIGEST), drawn.batches()), (real.files, real.batches("train"))):
        for batch in batches:
            shape = (batch.images, features + CLASSES)
            pool, logits = np.split(random.normal(size=shape).astype(np.float32), [features], axis=1)
            files.write(batch, Features(pool, logits))
    statistics = FeatureSet.folded(REAL_IMAGES, real.parts("train"), keep_features=False).statistics
    write_reference(folder / STATISTICS, statistics, key_of(features))


def key_of(features: int) -> ReferenceKey:
    """What the real features pass for."""
    return ReferenceKey(
        reference=Reference(data_digest=DIGEST, split="train", images=REAL_IMAGES),
        extractor=ExtractorIdentity(kind="classifier", layer=str(features), digest=DIGEST, resize="none"),
    )


def write_model(folder: Path) -> None:
    """A network with random weights, and a classifier that has learned from noise."""
    torch.manual_seed(0)
    save_file(MODEL.build().state_dict(), folder / WEIGHTS)
    (folder / SPEC).write_text(MODEL.model_dump_json())
    images = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), dtype=np.uint8)
    network = train_classifier(Classifier(images=64), images, np.arange(100) % CLASSES, CLASSES)
    save_classifier(network, folder / CLASSIFIER)


def scores_of(folder: Path, images: int, keep_features: bool) -> None:
    """What the driver does: gathers the features, and takes all scores."""
    chunks, real = chunks_of(folder, images), real_features(folder)
    generated = SampleFeatures(chunks, chunks.features(DIGEST)).gathered(keep_features)
    reference, key = read_reference(folder / STATISTICS)
    found = score(key.extractor, generated, reference, real.subset())
    assert found["fid_classifier"].value is not None
    nearest(generated.subset, real.pools("train"), 3)


def draw(folder: Path, images: int) -> None:
    """What an actor does, of all chunks."""
    extraction = Extraction(Classifier(), folder / CLASSIFIER, sha256_of(folder / CLASSIFIER))
    chunks = chunks_of(folder / "drawn", images)
    model = ModelFolders(folder, None, folder / WEIGHTS)
    actor = Drawer(Equipment.of(chunks.config, model, "cpu", extraction), threads=1)
    for chunk in range(chunks.count):
        actor.draw(ChunkTask(chunks, chunk))


WORK: dict[str, Callable[[Path, int], None]] = {
    "features kept": lambda folder, images: scores_of(folder, images, keep_features=True),
    "moments": lambda folder, images: scores_of(folder, images, keep_features=False),
    "an actor": draw,
}


def measured(folder: Path, work: str, images: int) -> dict[str, float]:
    """Of this process."""
    grown_mb, began = growth(), time.perf_counter()
    WORK[work](folder, images)
    return {"grown_mb": grown_mb(), "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "WORK", "IMAGES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, work, images = options.measure
        print(json.dumps(measured(Path(folder), work, int(images))))
        return
    record = Record(options.output, torch.device("cpu"))
    record["features"], record["chunk_images"], record["real_images"] = options.features, CHUNK_IMAGES, REAL_IMAGES
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_features(folder, max(options.images), options.features)
        write_model(folder)
        for work in WORK:
            figures = {}
            for images in sorted(options.images):
                command = [sys.executable, __file__, "--measure", str(folder), work, str(images)]
                figures[str(images)] = json.loads(subprocess.check_output(command))
                record[work] = figures
                print(f"{work:<16}{images:>8,} images: {figures[str(images)]}", flush=True)


if __name__ == "__main__":
    main()
