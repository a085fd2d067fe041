"""torch-fidelity's semi-private functions are as we call them, and our way through them is its own."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from torch.utils.data import Dataset
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.defaults import DEFAULTS

from evaluation import fidelity, inception, scores
from evaluation.extractors import LoadedExtractor, extract
from evaluation.feature_set import FeatureSet, feature_statistics

from .conftest import Digits


class Images(Dataset[torch.Tensor]):
    """What torch-fidelity reads: uint8 [C, H, W] an item."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> torch.Tensor:
        return self.images[position]


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        (fidelity.fid_features_to_statistics, "(features)"),
        (fidelity.fid_statistics_to_metric, "(stat_1, stat_2, verbose)"),
        (fidelity.isc_features_to_metric, "(feature, splits=10, shuffle=True, rng_seed=2020)"),
        (fidelity.kid_features_to_metric, "(features_1, features_2, **kwargs)"),
        (fidelity.prc_features_to_metric, "(features_1, features_2, **kwargs)"),
        (fidelity.create_feature_extractor, "(name, list_features, cuda=True, **kwargs)"),
    ],
)
def test_semi_private_functions_have_the_signatures_of_0_4_0(function: Any, signature: str) -> None:
    assert str(inspect.signature(function)) == signature


def test_version_and_defaults_are_those_the_adapter_was_written_for() -> None:
    assert fidelity.VERSION == "0.4.0"
    assert (DEFAULTS["isc_splits"], DEFAULTS["samples_shuffle"], DEFAULTS["rng_seed"]) == (10, True, 2020)
    assert (fidelity.INCEPTION_SCORE_SPLITS, fidelity.SHUFFLE_SEED) == (10, 2020)
    assert DEFAULTS["kid_subsets"] == fidelity.KERNEL_DISTANCE_SUBSETS
    assert DEFAULTS["kid_subset_size"] == scores.LARGEST_KERNEL_SUBSET
    assert [DEFAULTS[f"kid_kernel{of}"] for of in ("", "_poly_degree", "_poly_gamma", "_poly_coef0")] == [
        "poly",
        3,
        None,
        1,
    ]
    assert DEFAULTS["prc_neighborhood"] == fidelity.NEIGHBOURHOOD
    assert inception.PUBLISHED_URL == feature_extractor_inceptionv3.URL_INCEPTION_V3


def test_scores_equal_calculate_metrics_to_the_last_bit_and_streamed_ones_to_rounding(
    classifier: LoadedExtractor, classifier_file: Path, digits: Digits
) -> None:
    expected = torch_fidelity.calculate_metrics(
        input1=Images(digits.heldout),
        input2=Images(digits.train),
        feature_extractor=fidelity.CLASSIFIER,
        feature_extractor_weights_path=classifier_file,
        fid=True,
        isc=True,
        kid=True,
        prc=True,
        kid_subset_size=len(digits.heldout),
        batch_size=100,
        cuda=False,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    generated, reference = (
        extract(classifier, np.split(images, range(100, len(images), 100))) for images in (digits.heldout, digits.train)
    )
    statistics = feature_statistics(reference.pool)
    kept, streamed = (
        scores.score(classifier.identity, FeatureSet.of(generated, 100, keep), statistics, reference.pool)
        for keep in (True, False)
    )
    for ours, theirs in {
        "fid_classifier": "frechet_inception_distance",
        "inception_score_classifier_mean": "inception_score_mean",
        "inception_score_classifier_std": "inception_score_std",
        "kid_classifier": "kernel_inception_distance_mean",
        "kid_classifier_std": "kernel_inception_distance_std",
        "precision_classifier": "precision",
        "recall_classifier": "recall",
    }.items():
        assert kept[ours].value == expected[theirs], ours
        tolerance = 1e-12 if ours.startswith("inception") else 1e-9
        assert streamed[ours].value == pytest.approx(expected[theirs], rel=tolerance), ours


def test_inception_at_layer_64_equals_calculate_metrics(inception_file: Path, digits: Digits) -> None:
    images = digits.heldout[:4].repeat(3, axis=3), digits.train[:4].repeat(3, axis=3)
    expected = torch_fidelity.calculate_metrics(
        input1=Images(images[0]),
        input2=Images(images[1]),
        feature_extractor=fidelity.INCEPTION,
        feature_extractor_weights_path=inception_file,
        feature_layer_fid="64",
        fid=True,
        cuda=False,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )["frechet_inception_distance"]
    state, _ = inception.Inception(layer="64", weights=str(inception_file)).read()
    module = fidelity.inception_module(state, ["64"])
    statistics = [feature_statistics(module(torch.from_numpy(part).permute(0, 3, 1, 2))[0].numpy()) for part in images]
    # torch-fidelity's mean of float32 features is float32, ours float64.
    assert scores.frechet_distance(*statistics).value == pytest.approx(expected, rel=1e-4)


def test_mean_of_float32_features_is_taken_in_float64() -> None:
    features = (1000 + np.random.default_rng(0).normal(size=(5000, 3))).astype(np.float32)
    mu, _ = fidelity.statistics(features)
    exact = features.astype(np.float64).mean(axis=0)
    single = fidelity.fid_features_to_statistics(torch.from_numpy(features))["mu"]
    assert np.abs(mu - exact).max() == 0
    assert np.abs(single - exact).max() > 1e-6  # what the conversion avoids


def test_loading_a_second_time_does_not_register_twice(classifier_file: Path) -> None:
    for _ in range(2):
        module = fidelity.classifier_module(classifier_file, ["logits", "pool"])
    logits, pool = module(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    assert (logits.shape, pool.shape) == ((1, 10), (1, 64))


def test_extractor_cannot_be_compiled_and_names_its_layers() -> None:
    extractor = fidelity.ClassifierExtractor
    assert extractor.get_provided_features_list() == ("pool", "logits")
    assert [extractor.get_default_feature_layer_for_metric(m) for m in ("fid", "isc")] == ["pool", "logits"]
    assert not extractor.can_be_compiled()
