"""Packing: what is written, that it is written whole or not at all, and that others can read it."""

import gc
import hashlib
import itertools
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.data.index_builder import heldout_mask
from pipeline.data.reader import ShardReader
from pipeline.data.shard_index import ShardIndex
from pipeline.data.shards import pack
from pipeline.data.sources import Arrays, Digits
from pipeline.errors import DataError
from pipeline.runfile.data_config import DataConfig

DIGITS = DataConfig(source=Digits(), image_size=8, channels=1, heldout_fraction=0.2, shard_images=500)

# webdataset leaves a shard to the garbage collector to close.
LEAVES_FILES_OPEN = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def quiet(done: int, total: int) -> None: ...


def arrays(folder: Path, count: int = 20, size: int = 8, channels: int = 3, labelled: bool = True) -> Arrays:
    """A source of random images, the same at each call."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    path = folder / "source.npz"
    pixels = random.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    np.savez(path, images=pixels, labels=random.integers(0, 3, count))
    return Arrays(images=path, labels=path if labelled else None)


def config(source: Arrays, **changes: Any) -> DataConfig:
    base = {"image_size": 8, "channels": 3, "heldout_fraction": 0.2, "shard_images": 7}
    return DataConfig(source=source, **(base | changes))


def tars(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return pack(DIGITS, tmp_path_factory.mktemp("digits"), quiet)


def test_digits_split_into_1437_and_360_in_shards_of_500(digits: ShardIndex) -> None:
    assert [(entry.location, entry.samples) for entry in digits.shards] == [
        ("train-000000.tar", 500),
        ("train-000001.tar", 500),
        ("train-000002.tar", 437),
        ("heldout-000000.tar", 360),
    ]
    assert digits.count("train") == 1437
    assert digits.count("heldout") == 360
    assert digits.class_names == tuple("0123456789")
    digits.check_shards(full=True)


def test_every_packed_image_is_the_one_of_the_source(digits: ShardIndex) -> None:
    source = Digits().open(8, 1)
    mask = heldout_mask(len(source), 0.2, seed=0)
    train, heldout = ShardReader(digits, "train", "none"), ShardReader(digits, "heldout", "none")
    for reader, ids in ((train, np.flatnonzero(~mask)), (heldout, np.flatnonzero(mask))):
        np.testing.assert_array_equal(reader.labels, source.labels[ids])
        expected = np.stack([source.read(number) for number in ids.tolist()])
        np.testing.assert_array_equal(reader.read(np.arange(len(reader))), expected)


@LEAVES_FILES_OPEN
@pytest.mark.parametrize(("channels", "mode"), [(1, "l8"), (3, "rgb8")])
def test_plain_webdataset_reads_the_same_values(tmp_path: Path, channels: int, mode: str) -> None:
    index = pack(config(arrays(tmp_path, channels=channels), channels=channels), tmp_path / "packed", quiet)
    reader = ShardReader(index, "train", "none")
    urls = [str(tmp_path / "packed" / f"train-00000{number}.tar") for number in range(3)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode(mode).to_tuple("__key__", "png", "cls"))
    gc.collect()  # its files, here and not in another test
    images = np.stack([image for _, image, _ in samples]).reshape(-1, 8, 8, channels)
    np.testing.assert_array_equal(images, reader.read(np.arange(len(reader))))
    assert [label for _, _, label in samples] == reader.labels.tolist()
    in_source = np.flatnonzero(~heldout_mask(20, 0.2, seed=0))
    assert [int(key) for key, _, _ in samples] == in_source.tolist()


def test_packing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    data = config(arrays(tmp_path))
    first, second = (pack(data, tmp_path / name, quiet) for name in ("a", "b 100%"))
    assert tars(tmp_path / "a") == tars(tmp_path / "b 100%")
    assert len(tars(tmp_path / "a")) == 4
    assert first.digest == second.digest


def test_the_digest_is_of_the_images_and_not_of_their_packing(tmp_path: Path) -> None:
    source = arrays(tmp_path)
    digests = {
        pack(config(source, shard_images=images), tmp_path / str(images), quiet).digest for images in (3, 5, 100)
    }
    assert len(digests) == 1


def test_the_digest_changes_with_anything_that_decides_the_content(tmp_path: Path) -> None:
    source = arrays(tmp_path)
    with np.load(source.images) as file:
        pixels, labels = file["images"], file["labels"]
    other_pixels, other_labels = pixels.copy(), labels.copy()
    other_pixels[3, 0, 0, 0] ^= 1
    other_labels[3] = (other_labels[3] + 1) % 3
    contents = [
        (pixels, labels),
        (other_pixels, labels),
        (pixels, other_labels),
        (pixels[::-1], labels[::-1]),
    ]
    configs = []
    for number, (some_pixels, some_labels) in enumerate(contents):
        path = tmp_path / f"{number}.npz"
        np.savez(path, images=some_pixels, labels=some_labels)
        configs.append(config(Arrays(images=path, labels=path)))
    first = configs[0].source
    assert isinstance(first, Arrays)
    configs += [
        config(first, split_seed=1),
        config(first, heldout_fraction=0.3),
        config(first.model_copy(update={"class_names": ("a", "b", "c")})),
        config(arrays(tmp_path, labelled=False)),
    ]
    digests = {pack(data, tmp_path / f"packed-{number}", quiet).digest for number, data in enumerate(configs)}
    assert len(digests) == len(configs) == 8


@LEAVES_FILES_OPEN
def test_images_without_labels_are_packed_without_classes(tmp_path: Path) -> None:
    index = pack(config(arrays(tmp_path, labelled=False)), tmp_path / "packed", quiet)
    assert index.class_names == ()
    assert set(index.labels("train").tolist()) == {-1}
    samples = list(webdataset.WebDataset(str(index.shard_path(0)), shardshuffle=False))
    gc.collect()
    assert {"png"} == {name for sample in samples for name in sample if not name.startswith("__")}


def test_progress_counts_every_image_once(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pack(config(arrays(tmp_path)), tmp_path / "packed", lambda done, total: seen.append((done, total)))
    assert seen == [(done, 20) for done in range(1, 21)]


def test_packing_again_replaces_what_was_there(tmp_path: Path) -> None:
    source = arrays(tmp_path)
    pack(config(source, shard_images=2), tmp_path / "packed", quiet)
    index = pack(config(source, heldout_fraction=0.0), tmp_path / "packed", quiet)
    names = {path.name for path in (tmp_path / "packed").iterdir()}
    assert names == {"index", "index.json", "train-000000.tar", "train-000001.tar", "train-000002.tar"}
    assert len(list((tmp_path / "packed/index").iterdir())) == 3
    assert ShardIndex.load(tmp_path / "packed").digest == index.digest


def test_an_error_while_packing_leaves_no_index_and_no_shard(tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    data = config(arrays(tmp_path))
    pack(data, folder, quiet)

    def stop(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(data, folder, stop)
    assert [path.name for path in folder.iterdir()] == ["index"]
    with pytest.raises(DataError, match="no index; prepare the data first"):
        ShardIndex.load(folder)


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.data.shards import pack
from pipeline.runfile.data_config import DataConfig
data = DataConfig.model_validate_json(sys.argv[1])
pack(data, Path(sys.argv[2]), lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == 9 else None)
"""


def test_packing_after_a_kill_gives_what_an_undisturbed_run_gives(tmp_path: Path) -> None:
    data = config(arrays(tmp_path))
    undisturbed = pack(data, tmp_path / "undisturbed", quiet)
    folder = tmp_path / "killed"
    killed = subprocess.run([sys.executable, "-c", KILLED, data.model_dump_json(), str(folder)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".packing-")] == []
    assert pack(data, folder, quiet).digest == undisturbed.digest
    assert tars(folder) == tars(tmp_path / "undisturbed")
    assert list(folder.glob(".packing-*")) == []


def test_a_source_that_cannot_be_read_costs_nothing_already_there(tmp_path: Path) -> None:
    source = arrays(tmp_path)
    pack(config(source), tmp_path / "packed", quiet)
    source.images.unlink()
    with pytest.raises(DataError, match=r"source.npz: cannot be read"):
        pack(config(source), tmp_path / "packed", quiet)
    ShardIndex.load(tmp_path / "packed").check_shards(full=True)


def test_a_source_without_enough_images_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 images, of which heldout_fraction 0.2 leaves none to train on"):
        pack(config(arrays(tmp_path, count=1)), tmp_path / "packed", quiet)


@example(count=100, percent=7, seed=0)  # 100 * 0.07 is above 7 in binary
@given(count=st.integers(1, 400), percent=st.integers(0, 50), seed=st.integers(0, 2**63 - 1))
def test_the_split_holds_out_the_named_share_rounded_up(count: int, percent: int, seed: int) -> None:
    mask = heldout_mask(count, percent / 100, seed)
    assert mask.sum() == -(-count * percent // 100)
    np.testing.assert_array_equal(mask, heldout_mask(count, percent / 100, seed))


def test_the_split_is_the_same_for_ever() -> None:
    assert np.flatnonzero(heldout_mask(20, 0.2, seed=0)).tolist() == [2, 3, 11, 13]


def test_another_seed_holds_out_other_images() -> None:
    masks = [heldout_mask(1000, 0.3, seed) for seed in range(5)]
    for one, other in itertools.combinations(masks, 2):
        assert 40 < (one & other).sum() < 140  # 90 expected by chance
