"""A stored reference is what was written, other tools read it, and nothing else passes for it."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from evaluation.errors import EvaluationError
from evaluation.extractors import ExtractorIdentity
from evaluation.feature_set import feature_statistics
from evaluation.moments import Statistics
from evaluation.protocol import Reference
from evaluation.reference import (
    ReferenceKey,
    StoredReference,
    check_extractor,
    open_reference,
    read_foreign,
    read_reference,
    write_reference,
)
from evaluation.scores import frechet_distance

EXTRACTOR = ExtractorIdentity(kind="inception", layer="768", digest="a" * 64, resize="tf1-bilinear-299")
KEY = ReferenceKey(reference=Reference(data_digest="d" * 64, split="train", images=50), extractor=EXTRACTOR)
STATISTICS = feature_statistics(np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "cifar10-train.npz"
    write_reference(path, STATISTICS, KEY)
    return path


def theirs(path: Path, **arrays: np.ndarray) -> Path:
    """A file as pytorch-fid, clean-fid and EDM write it."""
    np.savez(path, **{"mu": STATISTICS.mu, "sigma": STATISTICS.sigma, **arrays})  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
    return path


def test_a_reference_is_read_back_to_the_bit(path: Path) -> None:
    statistics, key = read_reference(path, KEY)
    np.testing.assert_array_equal(statistics.mu, STATISTICS.mu)
    np.testing.assert_array_equal(statistics.sigma, STATISTICS.sigma)
    assert (statistics.images, key) == (50, KEY)
    assert list(path.parent.iterdir()) == [path]


def test_same_statistics_make_the_same_file_content(path: Path) -> None:
    again = path.with_name("again.npz")
    write_reference(again, STATISTICS, KEY)
    with np.load(path) as one, np.load(again) as other:
        assert str(one["digest"]) == str(other["digest"])


def test_other_tools_find_float64_mu_and_sigma(path: Path) -> None:
    with np.load(path) as file:  # as all three of them do
        mu, sigma = file["mu"][:], file["sigma"][:]
    assert (mu.dtype, sigma.dtype, mu.shape, sigma.shape) == (np.float64, np.float64, (6,), (6, 6))
    distance = frechet_distance(Statistics(mu, sigma, 50), STATISTICS).value
    assert distance == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("expected", "difference"),
    [
        (
            KEY.model_copy(update={"reference": KEY.reference.model_copy(update={"data_digest": "e" * 64})}),
            "data digest",
        ),
        (
            KEY.model_copy(update={"reference": KEY.reference.model_copy(update={"images": 60})}),
            "images: 60 against 50",
        ),
        (KEY.model_copy(update={"reference": KEY.reference.model_copy(update={"split": "heldout"})}), "split: heldout"),
        (KEY.model_copy(update={"extractor": EXTRACTOR.model_copy(update={"digest": "b" * 64})}), "extractor digest"),
        (KEY.model_copy(update={"extractor": EXTRACTOR.model_copy(update={"layer": "64"})}), "layer: 64 against 768"),
        (KEY.model_copy(update={"extractor": EXTRACTOR.model_copy(update={"resize": "none"})}), "resize: none against"),
    ],
)
def test_other_data_or_another_network_under_the_same_name_are_refused(
    path: Path, expected: ReferenceKey, difference: str
) -> None:
    with pytest.raises(EvaluationError, match=rf"cifar10-train.npz: a reference of something else.*{difference}"):
        read_reference(path, expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_was_cut_short_is_refused(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(EvaluationError, match=r"cifar10-train.npz: no whole .npz of mu, sigma, key, digest"):
        read_reference(path, KEY)


def test_a_reference_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"none.npz: the reference cannot be read \(No such file"):
        read_reference(tmp_path / "none.npz")


def rewritten(path: Path, **changes: np.ndarray) -> None:
    with np.load(path) as file:
        arrays = dict(file) | changes
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options


def test_changed_numbers_and_a_changed_key_are_refused(path: Path) -> None:
    original = path.read_bytes()
    renamed = KEY.model_copy(update={"reference": KEY.reference.model_copy(update={"images": 60})})
    for change in ({"mu": STATISTICS.mu + 1e-9}, {"key": np.array(renamed.model_dump_json())}):
        path.write_bytes(original)
        rewritten(path, **change)
        with pytest.raises(EvaluationError, match="the content is not what its digest says"):
            read_reference(path)


def test_a_key_of_another_version_is_refused(path: Path) -> None:
    text = KEY.model_dump_json().replace("split", "part")
    content = hashlib.sha256(text.encode() + STATISTICS.mu.tobytes() + STATISTICS.sigma.tobytes())
    rewritten(path, key=np.array(text), digest=np.array(content.hexdigest()))
    with pytest.raises(EvaluationError, match="the key is of another version of this program"):
        read_reference(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": np.zeros(5)}, r"mu is float64 \[5\] and sigma float64 \[6, 6\], expected"),
        ({"mu": np.zeros((6, 1))}, r"mu is float64 \[6, 1\]"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu is float64 \[0\]"),
        ({"mu": np.array(["a"] * 6)}, "mu is <U1"),
        ({"sigma": np.full((6, 6), np.nan)}, "statistics are not finite"),
        ({"sigma": np.triu(np.ones((6, 6)))}, "sigma is not symmetric"),
        ({"sigma": -np.eye(6)}, "with variances of at least 0"),
        (
            {"sigma": 2 * np.ones((6, 6)) - np.eye(6)},
            "sigma has eigenvalues from -1 to 11, and a covariance none below",
        ),
        ({"mu": np.array([object()])}, "no whole .npz of mu, sigma"),
    ],
)
def test_arrays_that_are_no_mean_and_covariance_are_refused(
    tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        read_foreign(theirs(tmp_path / "theirs.npz", **changes))


def test_statistics_without_a_value_and_of_another_count_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "new.npz"
    missing = Statistics(np.full(6, np.nan), np.full((6, 6), np.nan), 50)
    with pytest.raises(EvaluationError, match="statistics are not finite"):
        write_reference(path, missing, KEY)
    with pytest.raises(EvaluationError, match="statistics of 49 images under a key of 50"):
        write_reference(path, Statistics(STATISTICS.mu, STATISTICS.sigma, 49), KEY)
    assert not path.exists()


def test_imported_statistics_are_used_and_what_they_do_not_say_is_unknown(tmp_path: Path) -> None:
    single = theirs(tmp_path / "theirs.npz", mu=STATISTICS.mu.astype(np.float32))
    imported = imported_as(single, tmp_path / "lsun.npz")
    statistics, key = read_reference(tmp_path / "lsun.npz", KEY)  # nothing known contradicts what is expected
    assert key == imported.key
    assert (key.reference.split, key.reference.images, key.reference.flipped) == ("unknown", None, None)
    assert (key.extractor.kind, key.extractor.digest, key.extractor.resize) == ("unknown",) * 3
    assert (statistics.images, statistics.mu.dtype) == (None, np.float64)
    np.testing.assert_allclose(statistics.mu, STATISTICS.mu, rtol=1e-6)


def test_two_imported_references_are_told_apart(tmp_path: Path) -> None:
    first = imported_as(theirs(tmp_path / "a.npz"), tmp_path / "one.npz").key
    again = imported_as(theirs(tmp_path / "b.npz"), tmp_path / "two.npz").key
    other = imported_as(theirs(tmp_path / "c.npz", mu=STATISTICS.mu + 1), tmp_path / "three.npz").key
    assert first == again
    assert first.reference.data_digest != other.reference.data_digest
    assert first.reference.data_digest.startswith("statistics:")


def test_statistics_of_another_tool_are_not_taken_for_ours(tmp_path: Path) -> None:
    with pytest.raises(
        EvaluationError, match=r"key is not a file in the archive.*import it where another tool made it"
    ):
        read_reference(theirs(tmp_path / "theirs.npz"))


def test_a_file_of_ours_is_taken_for_the_extractor_that_made_it_alone(path: Path, tmp_path: Path) -> None:
    stored = open_reference(path)
    assert stored.key == KEY
    check_extractor(path, stored, EXTRACTOR, 6)
    other = EXTRACTOR.model_copy(update={"layer": "2048"})
    says = r"cifar10-train.npz: made by another extractor; expected against found: layer: 2048 against 768"
    with pytest.raises(EvaluationError, match=says):
        check_extractor(path, stored, other, 6)
    foreign = theirs(tmp_path / "theirs.npz")
    check_extractor(foreign, open_reference(foreign), other, 6)
    with pytest.raises(EvaluationError, match=r"theirs.npz: statistics of 6 features, and inception, layer 2048"):
        check_extractor(foreign, open_reference(foreign), other, 2048)
    imported_as(foreign, tmp_path / "imported.npz")
    assert open_reference(tmp_path / "imported.npz").key.reference.split == "unknown"
    np.save(tmp_path / "mu.npy", STATISTICS.mu)
    with pytest.raises(EvaluationError, match=r"mu.npy: no whole .npz of mu, sigma \(a single array"):
        open_reference(tmp_path / "mu.npy")


def imported_as(foreign: Path, path: Path) -> StoredReference:
    """Another tool's statistics, kept in our form."""
    stored = read_foreign(foreign)
    write_reference(path, *stored)
    return stored
