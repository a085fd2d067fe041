"""Features that were made before are used again only where they are whole and of the same extractor."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation import Features, Inception
from pipeline.errors import DataError
from pipeline.features.features import Batch, FeatureFiles, batches, extractor_identity


@pytest.fixture
def files(tmp_path: Path) -> FeatureFiles:
    return FeatureFiles(tmp_path, "0123456789abcdef", "cpu")


def write(files: FeatureFiles, batch: Batch) -> None:
    pool = np.full((batch.images, 2), batch.number, np.float32)
    files.write(batch, Features(pool, pool))


def test_every_image_is_in_one_batch() -> None:
    assert [batch.images for batch in batches("train", 5, 2)] == [2, 2, 1]
    assert [batch.images for batch in batches("heldout", 4, 2)] == [2, 2]
    assert not list(batches("heldout", 0, 2))


def test_sets_devices_and_extractors_have_files_of_their_own(files: FeatureFiles) -> None:
    other_device, other_extractor = replace(files, device_type="cuda"), replace(files, digest="fedcba9876543210")
    found = {each.path(batch) for each in (files, other_device, other_extractor) for batch in batches("train", 5, 2)}
    assert len(found | {files.path(batch) for batch in batches("heldout", 5, 2)}) == 12


def test_features_are_joined_in_order(files: FeatureFiles) -> None:
    for batch in reversed(list(batches("samples", 5, 2))):
        write(files, batch)
    assert files.joined(batches("samples", 5, 2)).pool[:, 0].tolist() == [0, 0, 1, 1, 2]


def test_features_of_another_extractor_or_damaged_ones_are_made_anew(files: FeatureFiles) -> None:
    first, second, last = batches("samples", 5, 2)
    for batch in (first, second, last):
        write(files, batch)
    same_beginning = replace(files, digest="0123456789abcdee")
    assert same_beginning.path(first) == files.path(first)
    assert same_beginning.read(first) is None
    files.path(second).write_bytes(files.path(last).read_bytes())  # of one image
    assert files.read(second) is None
    files.path(last).write_bytes(files.path(last).read_bytes()[:-9])
    assert files.read(last) is None
    message = rf"{files.path(second)}: no whole features of 2 images by the extractor 0123456789ab; run the same"
    with pytest.raises(DataError, match=message):
        files.joined(batches("samples", 5, 2))


def test_inception_is_known_by_what_its_weights_are_and_not_by_where(tmp_path: Path) -> None:
    for name, content in (("a.pth", b"1"), ("b.pth", b"1"), ("c.pth", b"2")):
        (tmp_path / name).write_bytes(content)
    first, copy, other = (
        extractor_identity(Inception(layer="768", weights=str(tmp_path / name))) for name in ("a.pth", "b.pth", "c.pth")
    )
    assert first == copy
    assert first != other
    assert extractor_identity(Inception(layer="768")) != first


def test_actors_in_another_folder_find_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Inception(weights="a.pth").absolute().weights == str(tmp_path / "a.pth")
    assert Inception().absolute().weights is None
    assert Inception(weights="a.pth").file_digest() == ""
