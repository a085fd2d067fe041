"""Real digits, one classifier of them and one Inception with random weights, made once for all tests here."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from evaluation.classifier import Classifier, ClassifierNetwork, save_classifier, train_classifier
from evaluation.extractors import LoadedExtractor, load_extractor


class Digits(NamedTuple):
    train: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    heldout: NDArray[np.uint8]
    heldout_labels: NDArray[np.int64]


@pytest.fixture(scope="session")
def digits() -> Digits:
    """1437 training and 360 held-out images, uint8 [N, 8, 8, 1]."""
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    heldout, train = order[:360], order[360:]
    return Digits(images[train], labels[train], images[heldout], labels[heldout])


@pytest.fixture(scope="session")
def network(digits: Digits) -> ClassifierNetwork:
    return train_classifier(Classifier(), digits.train, digits.train_labels, 10)


@pytest.fixture(scope="session")
def classifier_file(network: ClassifierNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    save_classifier(network, path)
    return path


@pytest.fixture(scope="session")
def classifier(classifier_file: Path) -> LoadedExtractor:
    return load_extractor(Classifier(), classifier_file)


class _Untrained(FeatureExtractorInceptionV3):
    """torch-fidelity's Inception with the weights it is born with; its constructor would load some."""

    def load_state_dict(self, state_dict: object) -> None:  # type: ignore[override]  # theirs says what was missing
        """Keep the random weights."""


@pytest.fixture(scope="session")
def inception_state() -> dict[str, torch.Tensor]:
    """Random weights under the published file's names, which lack batch normalisation's counters."""
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = _Untrained("untrained", ["64"], feature_extractor_weights_path=nothing).state_dict()
    return {name: value for name, value in state.items() if "num_batches" not in name}


@pytest.fixture(scope="session")
def inception_file(inception_state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(inception_state, path)
    return path
