"""Only the weights that were asked for are read, and nothing but tensors is read from them."""

import contextlib
import hashlib
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from evaluation import inception
from evaluation.errors import EvaluationError
from evaluation.extractors import load_extractor
from evaluation.feature_set import FeatureSet, feature_statistics
from evaluation.inception import PUBLISHED_SHA256, Inception
from evaluation.scores import frechet_distance, score

State = dict[str, torch.Tensor]
UNUSED = Path("unused")
IMAGES = np.random.default_rng(0).integers(0, 256, size=(2, 16, 16, 3), dtype=np.uint8)


def test_random_weights_load_by_path_and_give_every_layer(inception_file: Path) -> None:
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    spec = Inception(layer="64", weights=str(inception_file), weights_sha256=digest)
    extractor = load_extractor(spec, UNUSED)
    features = extractor(IMAGES)
    assert (features.pool.shape, features.logits.shape) == ((2, 64), (2, 1008))
    assert (features.pool.dtype, features.logits.dtype) == (np.float32, np.float32)
    assert np.isfinite(features.logits).all()
    assert (extractor.name, extractor.digest, extractor.identity.resize) == (
        "inception",
        digest,
        "tf1-bilinear-299",
    )


def test_grey_images_are_the_same_as_three_equal_channels(inception_file: Path) -> None:
    extractor = load_extractor(Inception(layer="64", weights=str(inception_file)), UNUSED)
    grey = IMAGES[:1, :, :, :1]
    np.testing.assert_array_equal(extractor(grey).pool, extractor(grey.repeat(3, axis=3)).pool)


def test_partial_weights_score_what_they_have_and_say_what_they_lack(inception_state: State, tmp_path: Path) -> None:
    late = ("Mixed_7", "fc")
    partial = {
        name: torch.full_like(value, torch.nan) if name.startswith(late) else value
        for name, value in inception_state.items()
    }
    path = tmp_path / "to-768.pth"
    torch.save(partial, path)
    extractor = load_extractor(Inception(layer="768", weights=str(path)), UNUSED)
    features = extractor(IMAGES)
    assert features.pool.shape == (2, 768)
    found = score(extractor.identity, FeatureSet.of(features, 2), feature_statistics(features.pool))
    assert found["fid_768"].value == pytest.approx(0, abs=1e-6)
    assert found["inception_score_768_mean"].value is None

    complete = load_extractor(Inception(layer="2048", weights=str(path)), UNUSED)
    features = complete(IMAGES)
    found = score(complete.identity, FeatureSet.of(features, 2), feature_statistics(features.pool))
    assert found["fid_2048"].value is None
    assert "weights lack this layer" in str(found["fid_2048"].reason)


@pytest.mark.parametrize("zipped", [True, False])
def test_both_of_torchs_file_formats_are_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.arange(3)}, path, _use_new_zipfile_serialization=zipped)
    state, _ = Inception(weights=str(path)).read()
    assert state["weight"].tolist() == [0, 1, 2]


def test_wrong_digest_is_refused_before_the_file_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"whatever")
    with pytest.raises(EvaluationError, match=f"sha256 {hashlib.sha256(b'whatever').hexdigest()}, expected 00"):
        Inception(weights=str(path), weights_sha256="0" * 64).read()


def test_missing_weights_are_refused_with_their_address(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"none.pth: weights cannot be read \(No such file"):
        Inception(weights=str(tmp_path / "none.pth")).read()


class Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "harmful.pth", tmp_path / "mark"
    torch.save({"weight": Harmful(mark)}, path)
    with pytest.raises(EvaluationError, match=r"harmful.pth: not a file of plain tensors"):
        Inception(weights=str(path)).read()
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"not a state dict", b"PK\x03\x04 cut"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.pth"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=r"text.pth: not a file of plain tensors"):
        Inception(weights=str(path)).read()


@pytest.mark.parametrize("zipped", [True, False])
def test_damage_anywhere_in_a_weights_file_is_one_kind_of_error(tmp_path: Path, zipped: bool) -> None:
    path, chance = tmp_path / "weights.pth", random.Random(0)
    torch.save({"weight": torch.arange(3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(EvaluationError):  # where the flipped bit says nothing
            Inception(weights=str(path)).read()


@pytest.mark.parametrize(("value", "found"), [([1, 2], "list"), ({"epoch": 3}, "dict")])
def test_tensors_in_another_form_are_refused(tmp_path: Path, value: object, found: str) -> None:
    path = tmp_path / "other.pth"
    torch.save(value, path)
    with pytest.raises(EvaluationError, match=f"holds a {found}, expected a state dict of tensors"):
        Inception(weights=str(path)).read()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(EvaluationError, match=r"other.pth: not the weights of torch-fidelity's InceptionV3"):
        load_extractor(Inception(weights=str(path)), UNUSED)


def test_a_digest_without_a_file_is_refused() -> None:
    with pytest.raises(ValidationError, match="weights_sha256 needs weights"):
        Inception(weights_sha256="0" * 64)
    assert Inception(weights_sha256=PUBLISHED_SHA256).weights is None


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def test_a_damaged_download_is_refused(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = torch_home / "weights.pth"
    served.write_bytes(b"half a download")
    monkeypatch.setattr(inception, "PUBLISHED_URL", served.as_uri())
    for _ in range(2):  # downloaded, then found in the cache
        with pytest.raises(EvaluationError, match=f"expected {PUBLISHED_SHA256}; .* replace it"):
            Inception().read()
    assert (torch_home / "hub" / "checkpoints" / "weights.pth").read_bytes() == b"half a download"


def test_no_network_is_one_clear_message(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "PUBLISHED_URL", (torch_home / "absent.pth").as_uri())
    with pytest.raises(EvaluationError, match=r"cannot be downloaded .* use the extractor `classifier`"):
        Inception().read()
    assert not list(torch_home.glob("hub/checkpoints/*"))


@pytest.mark.skipif("DIFFUSION_INCEPTION_WEIGHTS" not in os.environ, reason="names a weights file to try")
def test_real_weights_tell_noise_from_images() -> None:
    spec = Inception(layer="64", weights=os.environ["DIFFUSION_INCEPTION_WEIGHTS"])
    extractor = load_extractor(spec, UNUSED)
    smooth = np.kron(IMAGES[:, :4, :4], np.ones((1, 8, 8, 1), dtype=np.uint8))
    pools = [extractor(images).pool for images in (smooth, smooth[:, ::-1], IMAGES)]
    smooth_ones, mirrored, noise = (feature_statistics(pool) for pool in pools)
    near, far = (frechet_distance(smooth_ones, other).value for other in (mirrored, noise))
    assert near is not None
    assert far is not None
    assert near < far
