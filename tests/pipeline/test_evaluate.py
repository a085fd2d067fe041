"""Features that were made before are used again only where they are whole and of the same extractor."""

from pathlib import Path

import numpy as np
import pytest

from evaluation import Classifier, DINOv2, Inception
from model import DDIM
from pipeline.config import SampleConfig
from pipeline.errors import DataError
from pipeline.evaluate import Batch, Work, _extractor_identity
from pipeline.files import write_arrays
from pipeline.sample import Chunks
from pipeline.shard_cache import DEFAULT


@pytest.fixture
def work(tmp_path: Path) -> Work:
    chunks = Chunks(tmp_path, SampleConfig(images=5, chunk_images=2, sampler=DDIM(steps=2)), "cpu")
    for name in ("samples", "reference"):
        (tmp_path / name).mkdir()
    return Work(Classifier(), chunks, tmp_path, 4, 3, tmp_path / "samples", tmp_path / "reference", DEFAULT)


def write(work: Work, batch: Batch, extractor: str = "mine") -> None:
    pool = np.full((batch.images, 2), batch.number, np.float32)
    write_arrays(work.path(batch), pool=pool, logits=pool, extractor=np.array(extractor))


def test_every_image_of_the_three_sets_is_in_one_batch(work: Work) -> None:
    assert [batch.images for batch in work.batches()] == [2, 2, 1, 2, 2, 2, 1]
    assert len({work.path(batch) for batch in work.batches()}) == 7


def test_features_are_joined_in_order(work: Work) -> None:
    for batch in work.batches("samples"):
        write(work, batch)
    assert work.features("samples", "mine").pool[:, 0].tolist() == [0, 0, 1, 1, 2]


def test_features_of_another_extractor_or_damaged_ones_are_made_anew(work: Work) -> None:
    first, second, last = work.batches("samples")
    for batch in (first, second, last):
        write(work, batch)
    assert work.read(first, "another") is None
    write(work, second._replace(images=1))
    assert work.read(second, "mine") is None
    work.path(last).write_bytes(work.path(last).read_bytes()[:-9])
    assert work.read(last, "mine") is None
    message = rf"{work.path(second)}: no whole features of 2 images by the extractor mine; run the same command"
    with pytest.raises(DataError, match=message):
        work.features("samples", "mine")


def test_the_digest_of_the_classifier_is_that_of_its_file(work: Work) -> None:
    work.classifier.write_bytes(b"abc")
    assert work.extractor_digest().startswith("ba7816bf")


def test_inception_is_known_by_what_its_weights_are_and_not_by_where(tmp_path: Path) -> None:
    for name, content in (("a.pth", b"1"), ("b.pth", b"1"), ("c.pth", b"2")):
        (tmp_path / name).write_bytes(content)
    first, copy, other = (
        _extractor_identity(Inception(layer="768", weights=str(tmp_path / name)))
        for name in ("a.pth", "b.pth", "c.pth")
    )
    assert first == copy
    assert first != other
    assert _extractor_identity(Inception(layer="768")) != first


def test_dinov2_is_known_by_its_weights_alone(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"abc")
    found = _extractor_identity(DINOv2(weights=str(tmp_path / "a.pth"), weights_sha256="0" * 64))
    assert found == {"kind": "dinov2", "weights": DINOv2(weights=str(tmp_path / "a.pth")).file_digest()}
    assert found["weights"].startswith("ba7816bf")


def test_actors_in_another_folder_find_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Inception(weights="a.pth").absolute().weights == str(tmp_path / "a.pth")
    assert Inception().absolute().weights is None
    assert Inception(weights="a.pth").file_digest() == ""
