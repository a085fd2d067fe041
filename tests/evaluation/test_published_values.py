"""Published figures of CIFAR-10, for whoever has the true weights and the true images; the environment says where.

DIFFUSION_INCEPTION_WEIGHTS: the published weights file; DIFFUSION_CIFAR10: the folder in which torchvision keeps
CIFAR-10. Where either is another one than was published, its digest fails the tests. The images are those that
torch-fidelity's own tests choose (`utils/util_dump_dataset_as_images.py` of its repository), in the order of their
numbers. 15,000 images take about an hour on one core; the whole set is for a GPU.
"""

import os

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation.extractors import Features, LoadedExtractor, extract, load_extractor
from evaluation.feature_set import FeatureSet, feature_statistics
from evaluation.inception import PUBLISHED_SHA256, Inception
from evaluation.scores import frechet_distance, inception_score, kernel_distance

from .test_inception import UNUSED

Images = NDArray[np.uint8]
NAMED = {"DIFFUSION_INCEPTION_WEIGHTS", "DIFFUSION_CIFAR10"} <= os.environ.keys()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.skipif(not NAMED, reason="DIFFUSION_INCEPTION_WEIGHTS and DIFFUSION_CIFAR10 name what it needs"),
    pytest.mark.timeout(0),
]
whole_set = pytest.mark.skipif(DEVICE == "cpu", reason="60,000 images take hours on a CPU")


@pytest.fixture(scope="module")
def extractor() -> LoadedExtractor:
    weights = os.environ["DIFFUSION_INCEPTION_WEIGHTS"]
    return load_extractor(Inception(weights=weights, weights_sha256=PUBLISHED_SHA256), UNUSED, DEVICE)


def cifar10(*, train: bool) -> Images:
    """All images of a part, uint8 [N, 32, 32, 3]; torchvision compares the files' digests."""
    from torchvision.datasets import CIFAR10

    return np.asarray(CIFAR10(os.environ["DIFFUSION_CIFAR10"], train=train).data)


def chosen(images: Images, count: int) -> Images:
    return images[np.sort(np.random.RandomState(2020).choice(len(images), count, replace=False))]


def chosen_with_noise(images: Images, count: int) -> Images:
    """With normal noise of 64 grey levels, drawn in the order of the choice; beyond 0..255 it wraps around."""
    random = np.random.RandomState(2020)
    choice = random.choice(len(images), count, replace=False)
    noisy = images[choice].astype(np.float32)
    noisy += random.randn(*noisy.shape) * 64
    return noisy[np.argsort(choice)].astype(np.int64).astype(np.uint8)


def features_of(extractor: LoadedExtractor, images: Images) -> Features:
    return extract(extractor, np.split(images, range(100, len(images), 100)))


@pytest.fixture(scope="module")
def train_5000(extractor: LoadedExtractor) -> Features:
    return features_of(extractor, chosen(cifar10(train=True), 5000))


def test_inception_score_of_a_hundred_training_images(extractor: LoadedExtractor) -> None:
    """tests/tf1/numerical_precision/test_metric_isc_fidelity.py of torch-fidelity."""
    found = features_of(extractor, chosen(cifar10(train=True), 100))
    assert inception_score(FeatureSet.of(found, 100))[0].value == pytest.approx(4.51089784587268, abs=1e-4)


def test_distance_of_5000_training_images_to_5000_of_the_test_set(
    extractor: LoadedExtractor, train_5000: Features
) -> None:
    """tests/tf1/numerical_precision/test_metric_fid_fidelity.py of torch-fidelity."""
    valid = features_of(extractor, chosen(cifar10(train=False), 5000))
    found = frechet_distance(feature_statistics(train_5000.pool), feature_statistics(valid.pool))
    assert found.value == pytest.approx(10.3233274, abs=1e-4)


def test_kernel_distance_of_5000_noisy_images_to_5000_training_images(
    extractor: LoadedExtractor, train_5000: Features
) -> None:
    """tests/tf1/numerical_precision/test_metric_kid_fidelity.py of torch-fidelity, which takes it in float32."""
    noisy = features_of(extractor, chosen_with_noise(cifar10(train=False), 5000))
    assert kernel_distance(noisy.pool, train_5000.pool)[0].value == pytest.approx(0.4718520, rel=1e-3)


@whole_set
def test_scores_of_the_whole_training_set(extractor: LoadedExtractor) -> None:
    """Inception Score: torch-fidelity's README. Distance to the test set: pytorch-image-generation-metrics' README,
    which has 3.1508 by TensorFlow's network and 3.1525 by a port of it.
    """
    train, test = (features_of(extractor, cifar10(train=train)) for train in (True, False))
    mean, std = inception_score(FeatureSet.of(train, 100))
    assert (mean.value, std.value) == pytest.approx((11.23678, 0.09514), abs=1e-3)
    found = frechet_distance(feature_statistics(train.pool), feature_statistics(test.pool))
    assert found.value == pytest.approx(3.1515, abs=3e-3)
