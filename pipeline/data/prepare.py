"""First stage: images become webdataset shards with an index."""

from pathlib import Path
from typing import Any

import numpy as np

from evaluation import WeightsFile

from ..errors import DataError
from ..runfile.keyroles import identity
from ..stage import Facts, Run, Stage
from .remote import is_remote
from .shards import pack
from .sources import Stream
from .stream import StreamPlan


class Prepare(Stage):
    """Packs the source, or indexes shards that exist already."""

    name = "prepare"
    format = 2
    uses_cluster = False

    def identity(self, run: Run) -> Any:
        data = {name: value for name, value in identity(run.config.data).items() if name != "order"}
        base = {"base": run.base_digest} if run.base else {}
        return {"data": data, "source": run.config.data.source.fingerprint(), **base}

    def compute(self, run: Run, folder: Path) -> Facts:
        with run.terminal.progress(0, "images") as progress:

            def show(done: int, total: int) -> None:
                progress.total = total
                progress.update(done)

            index = pack(run.config.data, folder, show)
        streamed = StreamPlan.of(run.config.data.source)
        return {
            "data_digest": index.digest,
            "train_images": index.count("train"),
            "heldout_images": index.count("heldout"),
            "shards": len(index.shards),
            "bytes": sum(shard.bytes for shard in index.shards),
            **({"streamed_shards": len(streamed.locations)} if streamed else {}),
        }

    def figure(self, facts: Facts) -> str:
        if "streamed_shards" in facts:
            return (
                f"{facts['train_images']:,} images to compare with, {facts['heldout_images']:,} held out; "
                f"{facts['streamed_shards']:,} tars to train on"
            )
        return f"{facts['train_images']:,} images to train on, {facts['heldout_images']:,} held out"


def check_prepared(run: Run) -> None:
    """DataError or EvaluationError, before training begins, where the images or the extractor's weights will not do."""
    index, config = run.index, run.config
    index.check_shards()
    images = index.count("train")
    if config.train.images and images < config.train.batch_size and not isinstance(config.data.source, Stream):
        raise DataError(
            f"data: {images:,} images to train on are fewer than train.batch_size {config.train.batch_size:,}; "
            f"lower train.batch_size or data.heldout_fraction, or add images"
        )
    if images < 2:
        raise DataError(f"data: {images} image to train on; scores need at least 2")
    _check_shard_cache(run)
    _check_classes(run)
    _check_extractor(run)
    if config.evaluate.frozen is not None:
        _check_frozen(run)
    elif config.evaluate.statistics is not None:
        from evaluation.reference import open_reference  # which brings torch-fidelity

        open_reference(config.evaluate.statistics)
    for likelihood in config.evaluate.likelihoods:
        images = index.count(likelihood.split)
        if likelihood.images > images:
            raise DataError(
                f"evaluate.likelihoods: {likelihood.kind} asks for {likelihood.images:,} {likelihood.split} images, "
                f"and there are {images:,}; ask for fewer, for another split, or raise data.heldout_fraction"
            )


def _check_classes(run: Run) -> None:
    """Refuses classes that network or guidance are told of unless all images to train on have them, and no others."""
    config, index = run.config, run.index
    classes, section, key = config.conditioning.classes, "conditioning", "conditioning.classes"
    if not classes:
        classes = config.sample.guidance.classes
        section, key = "sample.guidance", "sample.guidance.classifier.classes"
    if not classes:
        return
    found = len(index.class_names)
    if classes != found:
        raise DataError(
            f"{key}: {classes}, but the images have {found or 'no'} classes; set it to their number, or "
            f"{section}.kind to none"
        )
    missing = sorted(set(range(classes)) - set(np.unique(index.labels("train")).tolist()))
    if missing:
        raise DataError(
            f"{section}: no image to train on has class {', '.join(map(str, missing))} of {classes}, so the network "
            f"would not know it; leave it out of the labels, or hold out fewer images"
        )


def _check_extractor(run: Run) -> None:
    """Refuses weights that are not there, and a classifier where it has no labels to learn."""
    extractor = run.config.evaluate.extractor
    if isinstance(extractor, WeightsFile):
        extractor.read()
    elif not run.index.class_names:
        raise DataError(
            "evaluate.extractor.kind=classifier learns from labels, and these images have none; "
            "add labels to the source, or use evaluate.extractor.kind=inception"
        )


def _check_frozen(run: Run) -> None:
    """Refuses other images to compare with than of the same shape and classes."""
    frozen, index = run.compared, run.index
    frozen.check_shards()
    shapes = [(each.image_size, each.channels, each.class_names) for each in (frozen, index)]
    if shapes[0] != shapes[1]:
        (size, channels, names), (asked, asked_channels, asked_names) = shapes
        raise DataError(
            f"evaluate.reference: {frozen.folder} has images of size {size} with {channels} channels and classes "
            f"{', '.join(names) or 'none'}, and data has {asked}, {asked_channels} and "
            f"{', '.join(asked_names) or 'none'}; name a folder of like images"
        )


def _check_shard_cache(run: Run) -> None:
    """Refuses a cache of remote shards that would have to fetch them over and over within an epoch."""
    data = run.config.data
    sizes = np.array([entry.bytes for entry in run.index.shards if is_remote(entry.location)], np.int64)
    needed_bytes = data.order.most_bytes(sizes) if len(sizes) else 0
    if needed_bytes > data.shard_cache.limit_bytes:
        raise DataError(
            f"data.order.kind={data.order.kind} reads {needed_bytes:,} bytes of remote shards at a time, more than "
            f"data.shard_cache.limit_bytes {data.shard_cache.limit_bytes:,}; raise that, or use smaller blocks of "
            f'shards, such as data.order="{{kind: blocks, shards: 8}}"'
        )
