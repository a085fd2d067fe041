"""`python -m pipeline index`: tars that someone else wrote become an index that a run file names."""

import io
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.__main__ import main
from pipeline.data.existing_tars import Tars, index_tars
from pipeline.data.index_builder import heldout_mask
from pipeline.data.reader import ShardReader
from pipeline.data.shard_cache import ShardCacheConfig
from pipeline.data.shard_index import ShardIndex
from pipeline.data.shards import pack
from pipeline.data.sources import Arrays, Shards
from pipeline.errors import DataError
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load
from pipeline.runfile.data_config import DataConfig

from .conftest import Served

DIGITS = Path(__file__).parents[2] / "pipeline/runs/digits.yaml"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)


def quiet(*counts: int) -> None: ...


def packed(folder: Path, into: Path, heldout_fraction: float = 0.0) -> ShardIndex:
    """40 grey images of 3 classes in 4 tars."""
    np.savez(folder / "a.npz", images=PIXELS, labels=np.arange(40) % 3)
    source = Arrays(images=folder / "a.npz", labels=folder / "a.npz")
    data = DataConfig(source=source, image_size=8, channels=1, heldout_fraction=heldout_fraction, shard_images=10)
    return pack(data, into, quiet)


def from_index(folder: Path, **changes: Any) -> DataConfig:
    return DataConfig(**{"source": Shards(index=folder), "image_size": 8, "channels": 1} | changes)


def test_the_command_writes_an_index_and_says_how_to_use_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tars = packed(tmp_path, tmp_path / "it's here")
    assert main(["index", f"{tars.folder}/train-{{000000..000003}}.tar", "--into", str(tmp_path / "my index")]) == 0
    printed = capsys.readouterr().out
    assert "40 of 8x8 pixels, grey" in printed
    assert "4, 122,880 bytes" in printed
    assert ShardIndex.load(tmp_path / "my index").digest == tars.digest
    (use,) = [line for line in printed.splitlines() if line.startswith("use it")]
    config = load(DIGITS, shlex.split(use.removeprefix("use it")), Config)
    made = pack(config.data, tmp_path / "run", quiet)
    mask = heldout_mask(40, 0.2, seed=0)
    np.testing.assert_array_equal(ShardReader(made, "train", "none").read(np.arange(32)), PIXELS[~mask])
    np.testing.assert_array_equal(ShardReader(made, "heldout", "none").labels, np.flatnonzero(mask) % 3)


def test_without_held_out_images_the_digest_is_that_of_packing(tmp_path: Path) -> None:
    tars = packed(tmp_path, tmp_path / "tars")
    index_tars(Tars(tuple(map(str, sorted(tars.folder.glob("*.tar"))))), tmp_path / "i", ShardCacheConfig(), quiet)
    digests = {
        fraction: pack(from_index(tmp_path / "i", heldout_fraction=fraction), tmp_path / str(fraction), quiet).digest
        for fraction in (0.0, 0.1, 0.2)
    }
    assert digests[0.0] == tars.digest
    assert len(set(digests.values())) == 3


def test_an_index_with_held_out_images_can_be_split_anew(tmp_path: Path) -> None:
    tars = packed(tmp_path, tmp_path / "tars", heldout_fraction=0.25)
    none, same_number = (
        pack(from_index(tars.folder, heldout_fraction=fraction), tmp_path / str(fraction), quiet)
        for fraction in (0.0, 0.25)
    )
    assert (none.count("train"), same_number.count("train")) == (40, 30)
    assert len({tars.digest, none.digest, same_number.digest}) == 3


def test_an_index_beside_its_tars_can_be_moved_with_them(tmp_path: Path) -> None:
    tars = packed(tmp_path, tmp_path / "tars")
    index_tars(Tars(tuple(map(str, sorted(tars.folder.glob("*.tar"))))), tars.folder, ShardCacheConfig(), quiet)
    tars.folder.rename(tmp_path / "moved")
    made = pack(from_index(tmp_path / "moved", heldout_fraction=0), tmp_path / "run", quiet)
    np.testing.assert_array_equal(ShardReader(made, "train", "none").read(np.arange(40)), PIXELS)


def test_remote_tars_are_read_once(tmp_path: Path, served: Served) -> None:
    tars = packed(tmp_path, served.folder)
    cache = ShardCacheConfig(folder=tmp_path / "cache", limit_bytes=tars.shards[0].bytes)
    urls = tuple(f"{served.url}/train-{number:06d}.tar" for number in range(4))
    found = index_tars(Tars(urls), tmp_path / "i", cache, quiet)
    assert found.digest == tars.digest
    assert sorted(served.requests) == [f"/train-{number:06d}.tar" for number in range(4)]


def tar_of(folder: Path, image: Image.Image) -> Tars:
    from webdataset import TarWriter

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    with TarWriter(str(folder / "a.tar"), encoder=False) as writer:
        writer.write({"__key__": "0", "png": buffer.getvalue()})
    return Tars((str(folder / "a.tar"),))


def test_size_and_channels_are_those_of_the_first_image(tmp_path: Path) -> None:
    found = index_tars(tar_of(tmp_path, Image.new("RGB", (12, 12))), tmp_path / "i", ShardCacheConfig(), quiet)
    assert (found.image_size, found.channels, found.class_names) == (12, 3, ())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            Image.new("RGB", (12, 9)),
            r"a.tar: member 0.png: a 12x9 image, expected as many pixels in height",
        ),
        (Image.new("RGBA", (9, 9)), r"a.tar: member 0.png: an image of mode RGBA, expected L \(grey\) or RGB; convert"),
    ],
)
def test_a_first_image_that_cannot_be_trained_on_is_refused(tmp_path: Path, image: Image.Image, message: str) -> None:
    with pytest.raises(DataError, match=message):
        index_tars(tar_of(tmp_path, image), tmp_path / "i", ShardCacheConfig(), quiet)
    assert not (tmp_path / "i/index.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pipe:cat a.tar"], 2, "error: pipe:cat a.tar: a command, which is never run"),
        (["absent.tar"], 1, "error: absent.tar: no such shard; correct the command"),
        (["train-000000.tar", "train-*.tar"], 1, "listed twice in the command; list each shard once"),
        (["train-*.tar", "--class-names", "a,b"], 1, "(--class-names): labels from 0 to 2, expected 0 to 1"),
        (["train-*.tar", "--image-size", "9"], 1, "member 00000000.png: a 8x8 image of mode L, expected 9x9 of mode L"),
    ],
)
def test_what_cannot_be_indexed_is_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    packed(tmp_path, tmp_path / "tars")
    monkeypatch.chdir(tmp_path / "tars")
    assert main(["index", *arguments, "--into", str(tmp_path / "i")]) == code
    assert message in capsys.readouterr().err


def test_an_index_of_other_images_than_the_run_expects_is_refused(tmp_path: Path) -> None:
    packed(tmp_path, tmp_path / "tars")
    with pytest.raises(DataError, match=r"tars: images of size 8 with 1 channels, but data.image_size is 9"):
        pack(from_index(tmp_path / "tars", image_size=9), tmp_path / "run", quiet)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "give either urls .* or index"),
        ({"urls": ("a.tar",), "index": "i"}, "give either urls .* or index"),
        ({"index": "i", "class_names": ("a",)}, "class_names beside index, which has names already; leave one out"),
    ],
)
def test_tars_are_named_in_one_way(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shards(**keys)


def test_the_fingerprint_changes_with_the_index(tmp_path: Path) -> None:
    packed(tmp_path, tmp_path / "tars")
    source = Shards(index=tmp_path / "tars")
    first = source.fingerprint()
    assert source.fingerprint() == first
    packed(tmp_path, tmp_path / "tars", heldout_fraction=0.5)
    assert source.fingerprint() != first
    with pytest.raises(DataError, match=r"absent/index.json: no index"):
        Shards(index=tmp_path / "absent").fingerprint()
