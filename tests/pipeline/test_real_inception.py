"""The full-size Inception on real images, through the command line; the environment names both.

DIFFUSION_INCEPTION_WEIGHTS: a state dict in torch-fidelity's naming, true up to the layer of 768 features at least;
DIFFUSION_CIFAR10_IMAGES: an `.npy` of CIFAR-10's images, uint8 [N, 32, 32, 3], of which 400 are taken. A core manages
five images a second. A distance at 768 features is of another scale than any published FID.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation import Inception, load_extractor
from evaluation.feature_set import feature_statistics
from evaluation.scores import frechet_distance

from .test_outside import saved, scores_of

NAMED = {"DIFFUSION_INCEPTION_WEIGHTS", "DIFFUSION_CIFAR10_IMAGES"} <= os.environ.keys()
pytestmark = [
    pytest.mark.skipif(not NAMED, reason="DIFFUSION_INCEPTION_WEIGHTS and DIFFUSION_CIFAR10_IMAGES name what it needs"),
    pytest.mark.usefixtures("head"),
]
HALF_IMAGES = 200
RUN_FILE = """\
version: 1
name: real
data: {{source: {{kind: arrays, images: {images}}}, image_size: 32, channels: 3, heldout_fraction: 0}}
network: {{kind: ddpm_unet}}
path: {{kind: vp_linear}}
train: {{images: 1_000}}
sample: {{images: 200, sampler: {{kind: ddim, steps: 50}}}}
evaluate: {{extractor: {{kind: inception, layer: "{layer}", weights: {weights}}}}}
register: {{model_name: real}}
cluster: {{address: auto, num_samplers: 2}}
"""


@pytest.fixture(scope="module")
def halves() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two sets that have no image in common."""
    images = np.load(os.environ["DIFFUSION_CIFAR10_IMAGES"], mmap_mode="r")
    chosen = np.random.default_rng(0).permutation(len(images))[: 2 * HALF_IMAGES]
    first, second = np.split(images[np.sort(chosen)], 2)
    return first, second


def weights() -> str:
    return os.environ["DIFFUSION_INCEPTION_WEIGHTS"]


def folder_of(tmp_path: Path, real: NDArray[np.uint8], layer: str) -> Path:
    """With a run file whose images are these."""
    images = saved(tmp_path / f"real-{layer}.npz", real)
    (tmp_path / "tiny.yaml").write_text(RUN_FILE.format(images=images, layer=layer, weights=weights()))
    return tmp_path


def test_halves_of_a_set_are_near_each_other_and_noise_raises_the_distance(
    halves: tuple[NDArray[np.uint8], NDArray[np.uint8]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, others = halves
    output = folder_of(tmp_path, real, "768")
    noise = np.random.default_rng(1).normal(0, 10, others.shape)
    noisy = np.clip(np.round(others + noise), 0, 255).astype(np.uint8)
    near, far = (
        scores_of(output, saved(tmp_path / f"{name}.npz", images), capsys)["scores"]
        for name, images in (("others", others), ("noisy", noisy))
    )
    assert 0 < near["fid_768"] < far["fid_768"] / 1.5
    assert near["kid_768"] < far["kid_768"]
    assert near["precision_768"] > far["precision_768"]


def test_batches_of_another_size_give_the_same_distance(
    halves: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    extractor = load_extractor(Inception(layer="768", weights=weights()), Path("unused"))
    real, others = (images[:40] for images in halves)
    reference = feature_statistics(extractor(real).pool)
    together, apart = (
        np.concatenate([extractor(batch).pool for batch in np.split(others, range(size, 40, size))]) for size in (40, 7)
    )
    np.testing.assert_allclose(apart, together, atol=1e-5)
    expected = frechet_distance(feature_statistics(together), reference).value
    assert frechet_distance(feature_statistics(apart), reference).value == pytest.approx(expected, rel=1e-6)


def test_layers_that_the_weights_lack_give_null_with_the_reason(
    halves: tuple[NDArray[np.uint8], NDArray[np.uint8]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, _ = Inception(weights=weights()).read()
    if all(bool(torch.isfinite(value).all()) for value in state.values()):
        pytest.skip("these weights lack no layer")
    real, others = (images[:20] for images in halves)
    found = scores_of(folder_of(tmp_path, real, "2048"), saved(tmp_path / "others.npz", others), capsys)
    assert set(found["scores"].values()) == {None}
    assert "features of the generated images are not finite: the weights lack" in found["reasons"]["fid_2048"]
    assert "class probabilities are not finite" in found["reasons"]["inception_score_2048_mean"]
