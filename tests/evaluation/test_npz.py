"""Whatever has happened to an `.npz`, reading it gives its arrays or an error that says so."""

import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from evaluation.npz import names_in_npz, read_npz


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "some.npz"
    np.savez(path, mu=np.arange(4.0), sigma=np.eye(4))
    return path


def test_arrays_come_in_the_order_asked_for(path: Path) -> None:
    sigma, mu = read_npz(path, "sigma", "mu")
    assert (sigma.shape, mu.shape) == ((4, 4), (4,))
    assert names_in_npz(path) == ["mu", "sigma"]


def test_what_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="key is not a file in the archive"):
        read_npz(path, "mu", "key")
    with pytest.raises(FileNotFoundError):
        read_npz(path.with_name("none.npz"), "mu")


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.eye(4))
    with pytest.raises(ValueError, match="a single array, not an archive of them"):
        names_in_npz(tmp_path / "one.npy")


def test_what_is_no_array_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("mu.npy", "no array")
    with pytest.raises(ValueError, match="no array but bytes: mu"):
        read_npz(tmp_path / "text.zip", "mu")


def test_damage_anywhere_is_an_error_or_none(path: Path) -> None:
    whole, chance = path.read_bytes(), random.Random(0)
    expected = read_npz(path, "mu")[0]
    for _ in range(1000):
        damaged = bytearray(whole)
        for place in chance.sample(range(len(whole)), 4):
            damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            (found,) = read_npz(path, "mu")
        except (OSError, ValueError):
            continue
        np.testing.assert_array_equal(found, expected)
