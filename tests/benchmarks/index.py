"""The index of ten million samples: time and memory of opening it, and of what training asks of it.

    python tests/benchmarks/index.py [--shards N] [--samples N] [--output FILE]

A synthetic set of N shards of N samples each; the tables are real files, the tars are not there. Each figure is of a
process of its own, and memory is what that process grew by at most (resident set size, Linux).
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.data.index_builder import entry_of
from pipeline.data.order import Blocks, Permutation
from pipeline.data.shard_index import ShardIndex
from pipeline.data.shard_table import ShardTable
from records import Record, growth

WORK = ("open", "labels", "batches_blocks", "batches_permutation")


def synthetic(folder: Path, shards: int, samples: int) -> None:
    """Writes an index of images of about 2 kB each in 1,000 classes, one in a hundred held out."""
    random = np.random.default_rng(0)
    entries, tables = [], {}
    for number in range(shards):
        blocks = np.cumsum(random.integers(5, 9, samples))
        tables[number] = ShardTable.of(
            block=blocks,
            size=random.integers(1500, 2500, samples),
            crc32=random.integers(0, 2**32, samples),
            label=random.integers(0, 1000, samples),
            split=random.random(samples) < 0.01,
        )
        sha256 = hashlib.sha256(b"%d" % number).hexdigest()
        entries.append(entry_of(tables[number], f"s3://bucket/{number:06d}.tar", int(blocks[-1]) * 512, sha256))
    names = tuple(map(str, range(1000)))
    ShardIndex(folder, tuple(entries), 32, 3, names, "0" * 64, tables).save()


def measure(folder: Path, work: str) -> dict[str, float]:
    """Seconds and growth in MB of one piece of work in this process."""
    grown_mb, began_s = growth(), time.perf_counter()
    index = ShardIndex.load(folder)
    if work == "labels":
        assert len(index.labels("train")) == index.count("train")
    elif work != "open":
        kind = Permutation() if work == "batches_permutation" else Blocks(shards=16)
        order = kind.open(index.counts("train"), seed=0)
        for step in range(100):
            assert len(order.samples(step * 256, step * 256 + 256)) == 256
    return {"seconds": round(time.perf_counter() - began_s, 3), "grown_mb": grown_mb()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "WORK"))
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Path(options.measure[0]), options.measure[1])))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        synthetic(folder, options.shards, options.samples)
        size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        found = {
            work: json.loads(subprocess.check_output([sys.executable, __file__, "--measure", folder, work]))
            for work in WORK
        }
    record = Record(options.output, torch.device("cpu"))
    figures = {
        "shards": options.shards,
        "samples": options.shards * options.samples,
        "index_mb": round(size_bytes / 1e6, 1),
        "what": "open: the manifest; labels: every table, verified; batches: 100 batches of 256 numbers of the order",
        **found,
    }
    for name, value in figures.items():
        record[name] = value
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
