"""The index on disk, and the check of the shards it describes."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.shard_index import ShardIndex
from pipeline.shards import pack
from pipeline.sources import Arrays, DataConfig


def quiet(done: int, total: int) -> None: ...


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    """40 random images of 3 classes in 4 shards."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(40) % 3)
    source = Arrays(images=tmp_path / "a.npz", labels=tmp_path / "a.npz")
    data = DataConfig(source=source, image_size=8, channels=1, heldout_fraction=0.25, shard_images=10)
    return pack(data, tmp_path / "packed", quiet)


def test_an_index_is_loaded_as_it_was_saved(index: ShardIndex) -> None:
    loaded = ShardIndex.load(index.folder)
    for field in fields(ShardIndex):
        before, after = getattr(index, field.name), getattr(loaded, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
        else:
            assert before == after


def test_a_folder_of_packed_shards_can_be_moved(index: ShardIndex, tmp_path: Path) -> None:
    index.folder.rename(tmp_path / "elsewhere")
    ShardIndex.load(tmp_path / "elsewhere").check_shards(full=True)


def test_ids_part_the_samples(index: ShardIndex) -> None:
    train, heldout = index.ids("train"), index.ids("heldout")
    assert (len(train), len(heldout)) == (30, 10)
    assert train.dtype == np.int64
    np.testing.assert_array_equal(np.sort(np.concatenate([train, heldout])), np.arange(40))


def test_saving_again_leaves_one_file_of_arrays(index: ShardIndex) -> None:
    (index.folder / "index-0000000000000000.npz").touch()
    index.save()
    assert len(list(index.folder.glob("index*"))) == 2
    ShardIndex.load(index.folder)


def test_a_shard_cut_at_any_byte_is_found_with_its_name(index: ShardIndex) -> None:
    shard = index.shard_path(1)
    content = shard.read_bytes()
    for cut in range(0, len(content), len(content) // 100):
        shard.write_bytes(content[:cut])
        with pytest.raises(DataError, match=rf"train-000001.tar: {cut} bytes, the index says {len(content)}"):
            index.check_shards()


def test_a_changed_byte_anywhere_is_found_by_a_full_check(index: ShardIndex) -> None:
    shard = index.shard_path(2)
    content = shard.read_bytes()
    for place in range(0, len(content), len(content) // 100):
        shard.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        index.check_shards()
        with pytest.raises(DataError, match=r"train-000002.tar: sha256 \w{12}, the index says \w{12}; restore"):
            index.check_shards(full=True)


def test_a_missing_shard_is_named(index: ShardIndex) -> None:
    index.shard_path(0).unlink()
    with pytest.raises(DataError, match=r"train-000000.tar: the shard is missing; restore the shard or prepare"):
        index.check_shards()


def changed(**values: object) -> Callable[[bytes], bytes]:
    return lambda manifest: json.dumps(json.loads(manifest) | values).encode()


def replaced(content: bytes) -> Callable[[bytes], bytes]:
    return lambda _: content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(format=2), r"index.json: format 2, this code reads up to 1; update it"),
        (changed(format="one"), r"index.json: not an index .*format"),
        (changed(channels=2), r"index.json: not an index .*channels"),
        (changed(colour="red"), r"index.json: not an index .*colour"),
        (lambda manifest: manifest[:-9], "index.json: not an index"),
        (replaced(b"\xff"), "index.json: not an index"),
        (replaced(b"[]"), "index.json: not an index"),
        (replaced(b"{}"), "index.json: not an index .*format"),
    ],
)
def test_a_manifest_that_cannot_be_understood_is_refused(
    index: ShardIndex, change: Callable[[bytes], bytes], message: str
) -> None:
    path = index.folder / "index.json"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=f"(?s){message}"):
        ShardIndex.load(index.folder)


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}/index.json: no index; prepare the data first"):
        ShardIndex.load(tmp_path)


def test_arrays_that_are_not_those_of_the_manifest_are_refused(index: ShardIndex) -> None:
    (arrays,) = index.folder.glob("index-*.npz")
    content = arrays.read_bytes()
    arrays.write_bytes(content[:-1] + b"x")
    with pytest.raises(DataError, match=rf"{arrays}: sha256 \w+, index.json says \w+; prepare the data again"):
        ShardIndex.load(index.folder)
    arrays.unlink()
    with pytest.raises(DataError, match=rf"{arrays}: cannot be read \(No such file"):
        ShardIndex.load(index.folder)
