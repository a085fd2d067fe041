"""After the fourth stage, where `sample.shards` asks for it: the drawn images as webdataset tars, to share or train on.

One tar for each chunk, and an index of them all beside them, so that the folder is a data source and can be moved. Each
sample is named for its seed and holds the image as PNG, the class that was asked for, if any, and the seed as JSON.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from model import default_label

from ..data.existing_tars import Tars, index_tars
from ..data.image_files import in_order
from ..data.shard_images import encode
from ..data.tar_writer import write_tar
from ..runfile.config import Config
from ..stage import Facts, Run, Stage
from .chunks import Chunks


class SampleShards(Stage):
    """Writes a tar for each chunk; those that are there already are kept."""

    name = "shards"
    uses_cluster = False

    def wanted(self, config: Config) -> bool:
        return config.sample.shards

    def identity(self, run: Run) -> Any:
        return {
            "samples": run.results["sample"].key,
            "device_type": run.results["sample"].facts["device_type"],
            "class_names": run.index.class_names,
        }

    def compute(self, run: Run, folder: Path) -> Facts:
        chunks, data = Chunks.of(run), run.config.data
        tars = [folder / f"samples-{chunk:06d}.tar" for chunk in range(chunks.count)]
        with run.terminal.progress(chunks.config.images, "images") as progress:
            for chunk, tar in enumerate(tars):
                if not tar.exists():
                    write_tar(tar, _samples(run, chunks, chunk))
                progress.update(progress.done + chunks.images_of(chunk))
        names = run.index.class_names if _classes(run) else ()
        found = Tars([str(tar) for tar in tars], names, data.image_size, data.channels)
        index = index_tars(found, folder, data.shard_cache, lambda _: None)
        return {
            "images": index.count("train"),
            "shards": len(index.shards),
            "bytes": sum(entry.bytes for entry in index.shards),
            "data_digest": index.digest,
        }

    def figure(self, facts: Facts) -> str:
        return f"{facts['images']:,} images in {facts['shards']:,} tars, {facts['bytes']:,} bytes"


def _classes(run: Run) -> int:
    """Of which images were asked to be; 0: of none."""
    return run.config.spec.classes or run.config.sample.guidance.classes


def _samples(run: Run, chunks: Chunks, chunk: int) -> Iterator[dict[str, str | bytes]]:
    """The images of one chunk, in the order of their seeds."""
    pixels = chunks.read(chunk)
    seeds = torch.from_numpy(chunks.seeds(chunk)[: len(pixels)])
    asked = default_label(run.config.spec, run.config.sample.guidance, seeds)
    for number, (seed, image) in enumerate(zip(seeds.tolist(), in_order(encode, list(pixels)), strict=True)):
        classes = {} if asked is None else {"cls": str(int(asked[number])).encode()}
        yield {"__key__": f"{seed:012d}", "png": image, **classes, "json": json.dumps({"seed": seed}).encode()}
