"""The index on disk, and the check of the shards it describes."""

import json
import runpy
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.shard_index import MANIFEST, ShardIndex
from pipeline.data.shard_table import ShardTable
from pipeline.data.shards import pack
from pipeline.data.sources import Arrays
from pipeline.errors import DataError
from pipeline.runfile.data_config import DataConfig


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
        if field.name != "_tables":
            assert getattr(index, field.name) == getattr(loaded, field.name)
    for shard in range(len(index.shards)):
        for column in fields(ShardTable):
            before, after = getattr(index.table(shard), column.name), getattr(loaded.table(shard), column.name)
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)


def test_opening_reads_no_table(index: ShardIndex) -> None:
    for table in (index.folder / "index").iterdir():
        table.unlink()
    assert ShardIndex.load(index.folder).counts("train").tolist() == [10, 10, 10, 0]


def test_a_folder_of_packed_shards_can_be_moved(index: ShardIndex, tmp_path: Path) -> None:
    index.folder.rename(tmp_path / "elsewhere")
    ShardIndex.load(tmp_path / "elsewhere").check_shards(full=True)


def test_the_splits_part_the_samples(index: ShardIndex) -> None:
    assert (index.count("train"), index.count("heldout")) == (30, 10)
    labels = np.concatenate([index.labels("train"), index.labels("heldout")])
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(np.sort(labels), np.sort(np.arange(40) % 3))


def test_saving_again_leaves_one_table_for_each_shard(index: ShardIndex) -> None:
    (index.folder / "index/000000-0000000000000000.table").touch()
    index.save()
    assert len(list((index.folder / "index").iterdir())) == 4
    ShardIndex.load(index.folder).labels("train")


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(-1, 99_999), st.booleans()), max_size=40))
def test_a_table_takes_17_bytes_for_each_sample_and_comes_back(rows: list[tuple[int, int, bool]]) -> None:
    words, labels, heldout = ([row[column] for row in rows] for column in range(3))
    table = ShardTable.of(block=words, size=words, crc32=words, label=labels, split=heldout)
    content = table.to_bytes()
    assert len(content) == 16 + 17 * len(rows)
    again = ShardTable.from_bytes(content, Path("here"))
    for column in fields(ShardTable):
        np.testing.assert_array_equal(getattr(table, column.name), getattr(again, column.name))
    assert again.rows[0].tolist() == [row for row, out in enumerate(heldout) if not out]
    assert again.rows[1].tolist() == [row for row, out in enumerate(heldout) if out]


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"0", lambda c: c[:9], lambda c: b"x" + c[1:]])
def test_bytes_that_are_no_table_are_refused(change: Callable[[bytes], bytes]) -> None:
    content = change(ShardTable.of(block=[1], size=[2], crc32=[3], label=[4], split=[0]).to_bytes())
    with pytest.raises(DataError, match=rf"here: {len(content)} bytes that are no table of a shard; prepare"):
        ShardTable.from_bytes(content, Path("here"))


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


def test_a_shard_of_a_name_that_no_disk_takes_is_missing(index: ShardIndex) -> None:
    manifest = index.folder / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b"train-000000.tar", b"9" * 400 + b".tar"))
    with pytest.raises(DataError, match=r"9\.tar: the shard is missing; restore the shard or prepare"):
        ShardIndex.load(index.folder).check_shards()


@pytest.mark.parametrize("key", ["heldout", "image_size"])
def test_a_number_that_no_array_takes_is_refused(index: ShardIndex, key: str) -> None:
    manifest = index.folder / MANIFEST
    content = json.loads(manifest.read_bytes())
    (content["shards"][0] if key == "heldout" else content)[key] = 10**30
    manifest.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"(?s)index.json: not an index .*{key}"):
        ShardIndex.load(index.folder)


def changed(**values: object) -> Callable[[bytes], bytes]:
    return lambda manifest: json.dumps(json.loads(manifest) | values).encode()


def replaced(content: bytes) -> Callable[[bytes], bytes]:
    return lambda _: content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(format=3), r"index.json: format 3, this code reads format 2; update it"),
        (changed(format=1), r"index.json: format 1, this code reads format 2; remove it or prepare the data again"),
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


def test_a_table_that_is_not_the_one_of_the_manifest_is_refused_when_it_is_read(index: ShardIndex) -> None:
    (table,) = index.folder.glob("index/000001-*.table")
    content = table.read_bytes()
    table.write_bytes(content[:-1] + b"x")
    loaded = ShardIndex.load(index.folder)
    loaded.table(0)
    with pytest.raises(DataError, match=rf"{table}: sha256 \w+, index.json says \w+; prepare the data again"):
        loaded.table(1)
    table.unlink()
    with pytest.raises(DataError, match=rf"{table}: cannot be read \(No such file"):
        loaded.table(1)


def test_a_million_samples_open_at_once_and_take_18_bytes_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times as many, in tests/benchmarks/index.py: 0.01 s and 2 MB to open, 0.6 s and 360 MB with every table."""
    benchmarks = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))  # as of a script that is run
    benchmark = runpy.run_path(str(benchmarks / "index.py"))
    benchmark["synthetic"](tmp_path, 100, 10_000)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 18e6
    opened = benchmark["measure"](tmp_path, "open")
    assert opened["seconds"] < 2
    assert opened["grown_mb"] < 50
    assert benchmark["measure"](tmp_path, "labels")["grown_mb"] < 100
