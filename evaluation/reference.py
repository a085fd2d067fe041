"""Statistics of a reference set in one file, which other tools read too, and theirs in ours.

The file is an `.npz` of `mu` and `sigma`, all that pytorch-fid, clean-fid and EDM look for in it, and of what makes the
score that is taken from it trustworthy: what was counted, by which network, and a digest of it all.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from model import Record

from .atomic import whole_file
from .errors import EvaluationError
from .extractors import ExtractorIdentity
from .moments import Statistics
from .npz import names_in_npz, read_npz
from .protocol import Reference, differing

UNKNOWN = "unknown"


class ReferenceKey(Record):
    """What the statistics are of; two files of the same key are of the same numbers, to rounding."""

    reference: Reference
    """The images."""
    extractor: ExtractorIdentity
    """The network whose features were counted."""


class StoredReference(NamedTuple):
    """What a file holds."""

    statistics: Statistics
    key: ReferenceKey


def write_reference(path: Path, statistics: Statistics, key: ReferenceKey) -> None:
    """Write the file whole or not at all. EvaluationError for statistics that no score could be taken from."""
    _check(path, statistics.mu, statistics.sigma)
    if statistics.images != key.reference.images:
        raise EvaluationError(
            f"{path}: statistics of {statistics.images} images under a key of {key.reference.images}; count them again"
        )
    text = key.model_dump_json()
    digest = _digest(statistics.mu, statistics.sigma, text)
    with whole_file(path) as draft, draft.open("wb") as file:
        np.savez(file, mu=statistics.mu, sigma=statistics.sigma, key=np.array(text), digest=np.array(digest))


def read_reference(path: Path, expected: ReferenceKey | None = None) -> StoredReference:
    """The file's statistics, verified. EvaluationError where it is missing, damaged, or not of what is expected.

    What is unknown of an imported reference is not compared: whoever names it answers for it.
    """
    mu, sigma, text, digest = _arrays(path, "mu", "sigma", "key", "digest")
    _check(path, mu, sigma)
    if str(digest) != _digest(mu, sigma, str(text)):
        raise EvaluationError(f"{path}: the content is not what its digest says; make the file anew, or copy it again")
    try:
        key = ReferenceKey.model_validate_json(str(text))
    except ValidationError as error:
        raise EvaluationError(f"{path}: the key is of another version of this program ({error})") from None
    if expected is not None:
        _check_key(path, key, expected)
    return StoredReference(Statistics(mu, sigma, key.reference.images), key)


def read_foreign(theirs: Path) -> StoredReference:
    """What pytorch-fid, clean-fid, EDM or ADM counted, where what they do not say is marked unknown.

    The statistics' own digest takes the place of the data's, so no two imported references pass for one another.
    """
    mu, sigma = _arrays(theirs, "mu", "sigma")
    _check(theirs, mu, sigma)
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    values = np.linalg.eigvalsh(sigma)
    if values[0] < -1e-4 * values[-1]:  # more than float32 rounds
        raise EvaluationError(
            f"{theirs}: sigma has eigenvalues from {values[0]:.3g} to {values[-1]:.3g}, and a covariance none below 0; "
            f"take the statistics again"
        )
    key = ReferenceKey(
        reference=Reference(
            data_digest=f"statistics:{_digest(mu, sigma, '')}", split=UNKNOWN, images=None, flipped=None
        ),
        extractor=ExtractorIdentity(kind=UNKNOWN, layer=str(mu.size), digest=UNKNOWN, resize="unknown"),
    )
    return StoredReference(Statistics(mu, sigma, None), key)


def open_reference(path: Path) -> StoredReference:
    """Ours, verified, or one that others made. EvaluationError where it is neither."""
    return read_reference(path) if _is_ours(path) else read_foreign(path)


def check_extractor(path: Path, stored: StoredReference, extractor: ExtractorIdentity, features: int) -> None:
    """EvaluationError unless the statistics of this file may be of this extractor, which makes so many features."""
    wrong = differing(extractor.model_dump(mode="json"), stored.key.extractor.model_dump(mode="json"))
    if wrong and stored.key.reference.split != UNKNOWN:
        raise EvaluationError(f"{path}: made by another extractor; expected against found: {'; '.join(wrong)}")
    if (size := stored.statistics.mu.size) != features:
        raise EvaluationError(
            f"{path}: statistics of {size} features, and {extractor.kind}, layer {extractor.layer}, makes {features}; "
            f"name a file of this extractor, or set evaluate.extractor to the one that made it"
        )


def _is_ours(path: Path) -> bool:
    """Whether the file says what it is of; what is wrong with one that cannot be read, reading it tells."""
    try:
        return "key" in names_in_npz(path)
    except (OSError, ValueError):
        return False


def _arrays(path: Path, *names: str) -> list[NDArray[Any]]:
    """The arrays of these names."""
    try:
        return read_npz(path, *names)
    except OSError as error:
        raise EvaluationError(f"{path}: the reference cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise EvaluationError(
            f"{path}: no whole .npz of {', '.join(names)} ({error}); make it anew, or import it where another tool "
            f"made it"
        ) from None


def _check(path: Path, mu: NDArray[Any], sigma: NDArray[Any]) -> None:
    """EvaluationError unless these are a mean and a covariance."""
    floating = mu.dtype.kind == sigma.dtype.kind == "f"
    if not floating or mu.ndim != 1 or mu.size == 0 or sigma.shape != (mu.size, mu.size):
        raise EvaluationError(
            f"{path}: mu is {mu.dtype} {list(mu.shape)} and sigma {sigma.dtype} {list(sigma.shape)}, expected floating "
            f"point [D] and [D, D]"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise EvaluationError(
            f"{path}: statistics are not finite: the weights that they were made with lack this layer"
        )
    if np.abs(sigma - sigma.T).max() > 1e-6 * np.abs(sigma).max() or (np.diagonal(sigma) < 0).any():
        raise EvaluationError(f"{path}: sigma is not symmetric with variances of at least 0, as a covariance is")


def _check_key(path: Path, found: ReferenceKey, expected: ReferenceKey) -> None:
    """EvaluationError where what is known of the reference is not as expected."""
    known = found.reference.split != UNKNOWN
    wrong = differing(expected.model_dump(mode="json"), found.model_dump(mode="json")) if known else []
    if wrong:
        raise EvaluationError(
            f"{path}: a reference of something else; expected against found: {'; '.join(wrong)}; give it another name, "
            f"or delete the file to make it anew"
        )


def _digest(mu: NDArray[np.float64], sigma: NDArray[np.float64], key: str) -> str:
    """sha256 of the key and of both arrays as little-endian float64."""
    content = hashlib.sha256(key.encode())
    for array in (mu, sigma):
        content.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
    return content.hexdigest()
