"""Decoded images are kept once on a node: whole or absent, whatever is killed, and never those of another set."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from filelock import FileLock

from pipeline.data.feed import IndexedFeed
from pipeline.data.image_cache import Cache, DeviceCache, HostCache, NoRoomError
from pipeline.data.order import Blocks, Permutation
from pipeline.data.reader import ShardReader
from pipeline.data.shard_cache import ShardCacheConfig
from pipeline.data.shard_images import ShardFormat
from pipeline.data.shard_index import ShardIndex
from pipeline.data.shards import pack
from pipeline.data.sources import Arrays
from pipeline.runfile.data_config import DataConfig

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
SHAPE = (60, 8, 8, 3)
Indices = npt.NDArray[np.int64]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of each test's own, in which caches are made."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)  # so that it looks anew
    yield tmp_path / "tmp" / f"diffusion-pipeline-{os.getuid()}"
    tempfile.tempdir = None


def packed(folder: Path, form: ShardFormat) -> ShardIndex:
    np.savez(folder / "a.npz", images=IMAGES, labels=np.arange(60) % 3)
    source = Arrays(images=folder / "a.npz", labels=folder / "a.npz")
    data = DataConfig(source=source, image_size=8, channels=3, shard_images=12, shard_format=form)
    return pack(data, folder / form, lambda *_: None)


def decoded(positions: Indices) -> npt.NDArray[np.uint8]:
    return IMAGES[positions]


def never(positions: Indices) -> npt.NDArray[np.uint8]:
    raise AssertionError(f"{positions} should be there")


def test_batches_are_the_same_from_every_cache_and_format(tmp_path: Path) -> None:
    digests, batches = set(), []
    for form in ("png", "npy"):
        index = packed(tmp_path, form)
        digests.add(index.digest)
        for order in (Permutation(), Blocks(shards=2)):
            caches: tuple[Cache, ...] = ("none", "host", "device")
            for cache in caches:
                feed = IndexedFeed(index, cache, order, ShardCacheConfig(), 7, torch.device("cpu"))
                found = [feed.read(start, start + 16) for start in range(0, 128, 16)]
                batches.append((order.kind, *(torch.cat(parts).numpy() for parts in zip(*found, strict=True))))
    assert len(digests) == 1
    for kind, images, labels in batches:
        (_, first_images, first_labels) = next(batch for batch in batches if batch[0] == kind)
        np.testing.assert_array_equal(images, first_images)
        np.testing.assert_array_equal(labels, first_labels)


def test_a_device_cache_gives_the_images_and_reads_each_once() -> None:
    asked: list[int] = []

    def read(positions: Indices) -> npt.NDArray[np.uint8]:
        asked.extend(positions.tolist())
        return IMAGES[positions]

    cache = DeviceCache(SHAPE, torch.device("cpu"), read)
    for seed in range(6):
        positions = np.random.default_rng(seed).integers(0, 60, 32)
        assert torch.equal(cache.read(positions), torch.from_numpy(IMAGES[positions]))
    assert len(asked) == len(set(asked))


CHILD = """
import os, signal, sys
import numpy as np
from pipeline.data.image_cache import HostCache

images = np.load(sys.argv[1])
cache = HostCache("set", images.shape)
cache.read(np.arange(30), lambda positions: images[positions])
print("filled", flush=True)
if sys.argv[2] == "die":
    cache._images[30:40] = images[30:40] + 1  # as when it is killed before it says that they are there
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


def start(tmp_path: Path, what: str) -> subprocess.Popen[str]:
    np.save(tmp_path / "images.npy", IMAGES)
    command = [sys.executable, "-c", CHILD, str(tmp_path / "images.npy"), what]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "filled\n"
    return child


def test_two_processes_share_one_copy_and_the_last_removes_it(tmp_path: Path, folder: Path) -> None:
    with start(tmp_path, "wait") as child:
        cache = HostCache("set", SHAPE)
        np.testing.assert_array_equal(cache.read(np.arange(30), never), IMAGES[:30])
        assert not cache.is_full
        np.testing.assert_array_equal(cache.read(np.arange(20, 60), lambda new: IMAGES[new]), IMAGES[20:])
        assert cache.is_full
        assert [path.stat().st_size for path in folder.glob("*.images")] == [60 * 193]
        path = cache.path
        del cache
        assert path.exists()
        child.communicate(timeout=60)
    assert child.returncode == 0
    assert not path.exists()


def test_what_a_killed_process_had_decoded_is_used_and_the_rest_decoded_anew(tmp_path: Path, folder: Path) -> None:
    with start(tmp_path, "die") as child:
        assert child.wait(timeout=60) == -signal.SIGKILL
    assert len(list(folder.glob("*.images"))) == 1
    cache = HostCache("set", SHAPE)
    np.testing.assert_array_equal(cache.read(np.arange(30), never), IMAGES[:30])
    np.testing.assert_array_equal(cache.read(np.arange(60), decoded), IMAGES)


def test_what_killed_processes_left_goes_when_another_set_comes(tmp_path: Path) -> None:
    with start(tmp_path, "die") as child:
        child.wait(timeout=60)
    with start(tmp_path, "wait") as child:
        used = HostCache("set", SHAPE).path
        other = HostCache("another set", SHAPE)
        assert used.exists()
        assert used != other.path
        child.kill()
    third = HostCache("a third set", SHAPE)
    assert not used.exists()
    assert other.path.exists()
    assert third.path.exists()


def test_the_file_of_a_process_that_was_killed_while_it_took_room_is_made_anew() -> None:
    path = HostCache("set", SHAPE).path
    path.write_bytes(b"\1" * 1000)
    np.testing.assert_array_equal(HostCache("set", SHAPE).read(np.arange(60), decoded), IMAGES)


def test_changed_shards_are_another_set(tmp_path: Path) -> None:
    index = packed(tmp_path, "png")
    before = ShardReader(index, "train", "host")
    before.read(np.arange(len(before)))
    global_first, IMAGES[0] = IMAGES[0].copy(), 255 - IMAGES[0]
    try:
        (tmp_path / "changed").mkdir()
        after = ShardReader(packed(tmp_path / "changed", "png"), "train", "host")
        plain = ShardReader(packed(tmp_path / "changed", "npy"), "train", "none")
        np.testing.assert_array_equal(after.read(np.arange(len(after))), plain.read(np.arange(len(after))))
    finally:
        IMAGES[0] = global_first


def test_too_little_room_is_said_and_images_are_decoded_anew(folder: Path) -> None:
    with pytest.raises(NoRoomError, match=r"data.cache=host: [\d,]+ bytes of decoded images find no room: of [\d,]+"):
        HostCache("huge", (10**9, 64, 64, 3))
    assert not list(folder.glob("*.images"))
    with pytest.raises(NoRoomError, match=r"data.cache=device: [\d,]+ bytes of images are more than half of the"):
        DeviceCache((10**9, 64, 64, 3), torch.device("cpu"), decoded)


def test_a_cache_that_another_process_does_not_let_go_of_is_done_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.image_cache._LOCK_S", 0.1)
    folder.mkdir(mode=0o700)
    with FileLock(folder / "lock"), pytest.raises(NoRoomError, match=r"data.cache=host: .*lock.* could not be acq"):
        HostCache("set", SHAPE)


def test_a_split_without_images_needs_no_cache(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGES)
    data = DataConfig(source=Arrays(images=tmp_path / "a.npy"), image_size=8, channels=3, heldout_fraction=0)
    reader = ShardReader(pack(data, tmp_path / "packed", lambda *_: None), "heldout", "host")
    assert reader.read(np.arange(0)).shape == (0, 8, 8, 3)
    assert reader.shortage == ""


def test_a_folder_that_others_may_enter_is_not_used_and_that_is_said(tmp_path: Path, folder: Path) -> None:
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    index = packed(tmp_path, "png")
    feed = IndexedFeed(index, "host", Permutation(), ShardCacheConfig(), 7, torch.device("cpu"))
    (shortage,) = feed.shortages
    assert f"{folder} is not a folder that this user alone may enter" in shortage
    plain = IndexedFeed(index, "none", Permutation(), ShardCacheConfig(), 7, torch.device("cpu"))
    assert plain.shortages == []
    assert torch.equal(feed.read(0, 32)[0], plain.read(0, 32)[0])
