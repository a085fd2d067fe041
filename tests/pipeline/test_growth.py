"""A set that grows: what was packed stays as it is, what is new comes after it, and what has changed is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.prepare import Prepare, check_prepared
from pipeline.data.reader import ShardReader
from pipeline.data.shard_index import ShardIndex
from pipeline.errors import ConfigError, DataError
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load
from pipeline.stage import Result, Run
from pipeline.terminal import Terminal

from .conftest import Served

RUNS = Path(__file__).parents[2] / "pipeline/runs"


def add(images: Path, numbers: range, name: str = "cats") -> None:
    """Grey images whose pixels say their number."""
    (images / name).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(images / name / f"{name}-{number:03d}.png")


def config_of(output: Path, source: str, *overrides: str) -> Config:
    given = [f"output={output}", f"data.source={source}", "data.image_size=8", "data.heldout_fraction=0.25"]
    return load(RUNS / "digits.yaml", [*given, "train.batch_size=2", *overrides], Config)


def prepared(output: Path, source: str, base: Path | None = None) -> Result:
    more = [f"data.base={base}"] if base else []
    return Prepare().finish(Run(config_of(output, source, *more), Terminal(brief=True)))


def numbers(folder: Path, split: Any) -> list[int]:
    """Of the images of one part of a set, in their order."""
    reader = ShardReader(ShardIndex.load(folder), split, "none")
    return [int(image[0, 0, 0]) for image in reader.read(np.arange(len(reader)))]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    add(tmp_path / "images", range(0, 40, 2))
    return tmp_path / "images"


def test_new_images_are_packed_and_the_old_stay_where_they_are(images: Path, tmp_path: Path) -> None:
    source = f"{{kind: image_folder, path: {images}}}"
    first = prepared(tmp_path / "out", source)
    add(images, range(1, 40, 2))  # between the old ones, by their names
    second = prepared(tmp_path / "out", source, first.folder)
    for split in ("train", "heldout"):
        before, after = numbers(first.folder, split), numbers(second.folder, split)
        assert after[: len(before)] == before
        assert all(number % 2 for number in after[len(before) :])
    assert second.facts["train_images"] == 30
    assert second.facts["heldout_images"] == 10
    assert second.facts["data_digest"] != first.facts["data_digest"]
    add(images, range(100, 104))
    third = prepared(tmp_path / "out", source, second.folder)
    assert numbers(third.folder, "train")[:30] == numbers(second.folder, "train")
    assert third.facts["train_images"] == 33


def test_a_set_that_has_not_grown_is_the_same(images: Path, tmp_path: Path) -> None:
    source = f"{{kind: image_folder, path: {images}}}"
    first = prepared(tmp_path / "out", source)
    again = prepared(tmp_path / "out", source, first.folder)
    assert again.folder != first.folder
    assert again.facts["data_digest"] == first.facts["data_digest"]
    assert numbers(again.folder, "train") == numbers(first.folder, "train")


def test_new_tars_are_indexed_and_the_old_ones_are_not_read(images: Path, tmp_path: Path) -> None:
    packed = prepared(tmp_path / "packed", f"{{kind: image_folder, path: {images}}}").folder
    tars = tmp_path / "tars"
    tars.mkdir()
    (packed / "train-000000.tar").rename(tars / "a.tar")
    source = f"{{kind: shards, urls: ['{tars}/*.tar']}}"
    first = prepared(tmp_path / "out", source)
    (packed / "heldout-000000.tar").rename(tars / "b.tar")
    second = prepared(tmp_path / "out", source, first.folder)
    entries = ShardIndex.load(second.folder).shards
    assert [Path(entry.location).name for entry in entries] == ["a.tar", "b.tar"]
    assert numbers(second.folder, "train")[: first.facts["train_images"]] == numbers(first.folder, "train")
    assert second.facts["train_images"] + second.facts["heldout_images"] == 20


def test_what_has_changed_is_refused(images: Path, tmp_path: Path) -> None:
    source = f"{{kind: image_folder, path: {images}}}"
    first = prepared(tmp_path / "out", source)
    (images / "cats/cats-004.png").unlink()
    with pytest.raises(DataError, match=r"1 of its 20 files are gone or have changed, such as .*cats-004.png"):
        prepared(tmp_path / "out", source, first.folder)
    add(images, range(4, 5))
    with pytest.raises(DataError, match=r"1 of its 20 files are gone or have changed"):
        prepared(tmp_path / "out", source, first.folder)


def test_new_classes_are_refused(images: Path, tmp_path: Path) -> None:
    source = f"{{kind: image_folder, path: {images}}}"
    first = prepared(tmp_path / "out", source)
    add(images, range(3), "dogs")
    with pytest.raises(DataError, match="its classes are cats, and those of the source are now cats, dogs"):
        prepared(tmp_path / "out", source, first.folder)


def test_a_base_of_another_shape_or_of_no_known_files_is_refused(images: Path, tmp_path: Path) -> None:
    source = f"{{kind: image_folder, path: {images}}}"
    first = prepared(tmp_path / "out", source)
    config = config_of(
        tmp_path / "out", source, f"data.base={first.folder}", "data.image_size=16", "network.attention_sizes=[]"
    )
    with pytest.raises(DataError, match=r"images of size 8 with 1 channels, but data\.image_size is 16"):
        Prepare().finish(Run(config, Terminal(brief=True)))
    (first.folder / "files.json").unlink()
    with pytest.raises(DataError, match=r"no files.json, which says of which files stage prepare has made it"):
        prepared(tmp_path / "out", source, first.folder)
    with pytest.raises(DataError, match="no index; prepare the data first"):
        prepared(tmp_path / "out", source, tmp_path)


def test_a_source_that_cannot_grow_takes_no_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="base: nothing can be added to source digits"):
        config_of(tmp_path, "{kind: digits}", f"data.base={tmp_path}")


def test_images_to_compare_with_must_be_alike(images: Path, tmp_path: Path) -> None:
    source = f"{{kind: image_folder, path: {images}}}"
    first = prepared(tmp_path / "out", source)
    add(images, range(3), "dogs")
    run = Run(config_of(tmp_path / "out", source, f"evaluate.reference={first.folder}"), Terminal(brief=True))
    run.results["prepare"] = Prepare().finish(run)
    message = r"images of size 8 with 1 channels and classes cats, and data has 8, 1 and cats, dogs"
    with pytest.raises(DataError, match=message):
        check_prepared(run)
    assert run.compared.digest == first.facts["data_digest"]


def test_remote_tars_are_known_again_under_another_signature(images: Path, tmp_path: Path, served: Served) -> None:
    packed = prepared(tmp_path / "packed", f"{{kind: image_folder, path: {images}}}").folder
    (packed / "train-000000.tar").rename(served.folder / "a.tar")
    cache = f"data.shard_cache.folder={tmp_path / 'cache'}"

    def source(signature: str, tars: str) -> str:
        return f"{{kind: shards, urls: ['{served.url}/{tars}.tar?signature={signature}']}}"

    first = Prepare().finish(Run(config_of(tmp_path, source("one", "a"), cache), Terminal(brief=True)))
    assert "one" not in (first.folder / "files.json").read_text()
    (packed / "heldout-000000.tar").rename(served.folder / "b.tar")
    more = config_of(tmp_path, source("two", "{a,b}"), cache, f"data.base={first.folder}")
    second = Prepare().finish(Run(more, Terminal(brief=True)))
    assert [entry.samples for entry in ShardIndex.load(second.folder).shards] == [15, 5]
