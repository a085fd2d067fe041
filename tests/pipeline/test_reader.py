"""Reading through the index: any order, exactly, and never a wrong image in silence."""

import os
import pickle
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.data.index_builder import heldout_mask
from pipeline.data.reader import Cache, ShardReader
from pipeline.data.shard_images import decode, encode
from pipeline.data.shard_index import ShardIndex
from pipeline.data.shards import pack
from pipeline.data.sources import Arrays
from pipeline.errors import DataError
from pipeline.runfile.data_config import DataConfig

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
TRAIN = PIXELS[~heldout_mask(40, 0.25, seed=0)]


def quiet(done: int, total: int) -> None: ...


def packed(folder: Path) -> ShardIndex:
    """40 images in 3 training shards and one of held-out ones."""
    np.savez(folder / "a.npz", images=PIXELS, labels=np.arange(40) % 3)
    source = Arrays(images=folder / "a.npz", labels=folder / "a.npz")
    data = DataConfig(source=source, image_size=8, channels=3, heldout_fraction=0.25, shard_images=12)
    return pack(data, folder / "packed", quiet)


@pytest.fixture(scope="module", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Beside those that other tests, or another run of these, have on this machine."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("tmp"))
    yield
    tempfile.tempdir = before


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return packed(tmp_path_factory.mktemp("reader"))


@pytest.fixture
def own(tmp_path: Path) -> ShardIndex:
    """One that the test may damage."""
    return packed(tmp_path)


@settings(deadline=None)
@given(
    positions=arrays(np.int64, st.integers(0, 60), elements=st.integers(0, 29)),
    cache=st.sampled_from(["none", "host"]),
)
def test_positions_in_any_order_give_their_images(
    shared: ShardIndex, positions: npt.NDArray[np.int64], cache: Cache
) -> None:
    reader = ShardReader(shared, "train", cache)
    for _ in range(2):
        images = reader.read(positions)
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, TRAIN[positions])


def test_length_and_labels_are_those_of_the_split(shared: ShardIndex) -> None:
    heldout = heldout_mask(40, 0.25, seed=0)
    for split, mask in (("train", ~heldout), ("heldout", heldout)):
        reader = ShardReader(shared, split, "none")  # type: ignore[arg-type]  # one of the two
        assert len(reader) == mask.sum()
        np.testing.assert_array_equal(reader.labels, np.flatnonzero(mask) % 3)


@pytest.mark.parametrize("cache", ["none", "host"])
@pytest.mark.parametrize("position", [30, -31])
def test_a_position_outside_the_split_is_an_error(shared: ShardIndex, cache: Cache, position: int) -> None:
    with pytest.raises(IndexError):
        ShardReader(shared, "train", cache).read(np.array([0, position]))


def test_the_host_cache_reads_each_image_from_disk_once(own: ShardIndex) -> None:
    reader = ShardReader(own, "train", "host")
    reader.read(np.arange(20))
    reader.read(np.arange(10, 30))
    for number in range(len(own.shards)):
        own.shard_path(number).unlink()
    np.testing.assert_array_equal(reader.read(np.arange(30)), TRAIN)


def test_a_batch_is_the_callers_to_change(shared: ShardIndex) -> None:
    reader = ShardReader(shared, "train", "host")
    reader.read(np.arange(30))[:] = 0
    np.testing.assert_array_equal(reader.read(np.arange(30)), TRAIN)


def test_a_pickled_reader_reads_and_leaves_its_cache_behind(shared: ShardIndex) -> None:
    reader = ShardReader(shared, "train", "host")
    empty_bytes = len(pickle.dumps(reader))
    reader.read(np.arange(30))
    assert len(pickle.dumps(reader)) == empty_bytes
    copy = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(copy.read(np.arange(30)), TRAIN)


@pytest.mark.parametrize("cache", ["none", "host"])
def test_threads_may_read_at_once(shared: ShardIndex, cache: Cache) -> None:
    reader = ShardReader(shared, "train", cache)
    orders = [np.random.default_rng(seed).permutation(30) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for order, images in zip(orders, pool.map(reader.read, orders), strict=True):
            np.testing.assert_array_equal(images, TRAIN[order])


def test_no_file_stays_open(shared: ShardIndex) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = ShardReader(shared, "train", "none")
    reader.read(np.arange(30))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_missing_shard_is_named(own: ShardIndex) -> None:
    own.shard_path(0).unlink()
    with pytest.raises(DataError, match=r"train-000000.tar: cannot be read \(No such file or directory\); restore"):
        ShardReader(own, "train", "host").read(np.arange(3))


def test_a_shard_cut_inside_an_image_is_named(own: ShardIndex) -> None:
    os.truncate(own.shard_path(0), int(own.table(0).block[0]) * 512 + 20)
    with pytest.raises(
        DataError, match=r"train-000000.tar: image 0 of train, at byte \d+: 20 bytes, the index says \d+"
    ):
        ShardReader(own, "train", "none").read(np.arange(3))


def read_or_refusal(reader: ShardReader) -> npt.NDArray[np.uint8] | str:
    try:
        return reader.read(np.arange(len(reader)))
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("cache", ["none", "host"])
def test_a_changed_byte_is_refused_or_is_not_of_an_image(own: ShardIndex, cache: Cache) -> None:
    shard = own.shard_path(0)
    content = shard.read_bytes()
    refused = 0
    for place in range(0, len(content), len(content) // 200):
        shard.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        outcome = read_or_refusal(ShardReader(own, "train", cache))
        if isinstance(outcome, str):
            assert f"{shard}: image " in outcome
            assert "not the bytes that were indexed" in outcome
            refused += 1
        else:
            np.testing.assert_array_equal(outcome, TRAIN)
    assert refused > 20


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (encode(np.zeros((9, 8, 3), np.uint8)), "a 8x9 image of mode RGB, expected 8x8 of mode RGB"),
        (encode(np.zeros((8, 8, 1), np.uint8)), "a 8x8 image of mode L, expected 8x8 of mode RGB"),
        (b"not an image", "not a readable image"),
    ],
)
def test_bytes_that_decode_to_something_else_than_indexed_are_refused(
    own: ShardIndex, encoded: bytes, message: str
) -> None:
    """An index that is itself wrong, so that its checksum cannot tell."""
    with own.shard_path(0).open("r+b") as file:
        file.seek(int(own.table(0).block[0]) * 512)
        file.write(encoded)
    table = own.table(0)
    size, crc32 = table.size.copy(), table.crc32.copy()
    size[0], crc32[0] = len(encoded), zlib.crc32(encoded)
    wrong = replace(own, _tables={0: replace(table, size=size, crc32=crc32)})
    with pytest.raises(DataError, match=rf"train-000000.tar: image 0 of train, at byte \d+: {message}"):
        ShardReader(wrong, "train", "none").read(np.arange(1))


@given(side=st.integers(1, 20), channels=st.sampled_from([1, 3]), data=st.data())
def test_png_keeps_every_pixel(side: int, channels: int, data: st.DataObject) -> None:
    pixels = data.draw(arrays(np.uint8, (side, side, channels)))
    np.testing.assert_array_equal(decode(encode(pixels), side, channels), pixels)
