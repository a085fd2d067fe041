"""Images per second of one core: our reader in the order of training, against `webdataset.WebDataset` on the same tars.

    python tests/benchmarks/reader.py [--images N] [--rounds N] [--output FILE]

The tars hold 32x32 colour images, smooth ones with a little noise, of the size that photographs of CIFAR-10 have as PNG
(about 2.3 kB), in shards of 10,000. WebDataset reads them from first to last and decodes to NumPy arrays, in batches of
128; our reader gives batches of 128 of a permutation, and compares each image's checksum. All run in this process, by
one thread, and take turns; everything comes from the page cache. The host cache is timed once it is full. Ratios are
medians over the rounds.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image

from pipeline.data.feed import IndexedFeed
from pipeline.data.image_cache import Cache
from pipeline.data.order import Permutation
from pipeline.data.shard_cache import ShardCacheConfig
from pipeline.data.shard_images import ShardFormat
from pipeline.data.shard_index import ShardIndex
from pipeline.data.shards import pack
from pipeline.data.sources import Arrays
from pipeline.runfile.data_config import DataConfig
from records import Record, Speeds, ratio, take_turns

BATCH = 128
WEBDATASET = "webdataset, png"
GOALS = {"ours, png, cache none": 4.0}


def smooth_images(count: int) -> np.ndarray:
    """uint8 [count, 32, 32, 3]: 8x8 noise enlarged, and a little noise of each pixel."""
    random = np.random.default_rng(0)
    images = np.empty((count, 32, 32, 3), np.uint8)
    for image in images:
        coarse = Image.fromarray(np.clip(128 + 45 * random.normal(size=(8, 8, 3)), 0, 255).astype(np.uint8))
        fine = np.asarray(coarse.resize((32, 32), Image.Resampling.BICUBIC)) + random.normal(size=(32, 32, 3)) * 4
        image[:] = np.clip(fine, 0, 255)
    return images


def packed(folder: Path, count: int, form: ShardFormat) -> ShardIndex:
    source = Arrays(images=folder / "images.npy", labels=folder / "labels.npy")
    data = DataConfig(source=source, image_size=32, channels=3, heldout_fraction=0, shard_format=form)
    index = pack(data, folder / form, lambda *_: None)
    assert index.count("train") == count
    return index


def through_webdataset(index: ShardIndex) -> float:
    """Images per second of one pass."""
    tars = [str(index.shard_path(number)) for number in range(len(index.shards))]
    extension = "npy" if tars[0].split("/")[-2] == "npy" else "png"
    dataset = webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8").to_tuple(extension, "cls").batched(BATCH)
    began_s, images = time.perf_counter(), 0
    for pixels, _ in dataset:
        images += len(pixels)
    assert images == index.count("train")
    return images / (time.perf_counter() - began_s)


def through_feed(index: ShardIndex, cache: Cache) -> Callable[[int], float]:
    """Images per second of one epoch after another."""
    feed = IndexedFeed(index, cache, Permutation(), ShardCacheConfig(), 0, torch.device("cpu"))
    images = index.count("train") // BATCH * BATCH
    position = 0

    def epoch(_round: int) -> float:
        nonlocal position
        began_s = time.perf_counter()
        for start in range(position, position + images, BATCH):
            feed.read(start, start + BATCH)
        position += images
        return images / (time.perf_counter() - began_s)

    if cache != "none":
        feed.read(0, index.count("train"))
    return epoch


def measure(count: int, rounds: int, record: Record) -> Speeds:
    """Images per second of each contestant in each round."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / "images.npy", smooth_images(count))
        np.save(folder / "labels.npy", np.arange(count) % 10)
        png, npy = packed(folder, count, "png"), packed(folder, count, "npy")
        contestants: dict[str, Callable[[int], float]] = {
            WEBDATASET: lambda _: through_webdataset(png),
            "ours, png, cache none": through_feed(png, "none"),
            "webdataset, npy": lambda _: through_webdataset(npy),
            "ours, npy, cache none": through_feed(npy, "none"),
            "ours, cache host": through_feed(png, "host"),
        }
        speeds: Speeds = {}
        take_turns(contestants, rounds, record, speeds)
    return speeds


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    record = Record(options.output, torch.device("cpu"))
    record["threads"], record["webdataset"] = 1, webdataset.__version__
    speeds = measure(options.images, options.rounds, record)
    ratios = {name: ratio(speeds, name, WEBDATASET) for name in speeds}
    record["ratio_to_webdataset_png"] = ratios
    print(f"\n{'':<24}{'times webdataset, png':>22}{'goal':>7}")
    for name, value in ratios.items():
        print(f"{name:<24}{value:>22.1f}{GOALS.get(name, ''):>7}")


if __name__ == "__main__":
    main()
