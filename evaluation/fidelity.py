"""The one door to torch-fidelity 0.4.0.

The functions that take features are not part of its public interface, so nothing else in this project calls
them and `tests/evaluation/test_fidelity.py` holds their signatures and their results.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_fidelity
from numpy.typing import NDArray
from torch import Tensor, nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from .classifier import load_classifier

VERSION: str = torch_fidelity.__version__
CLASSIFIER = "diffusion-classifier"  # our extractor's name inside torch-fidelity
INCEPTION = "inception-v3-compat"
INCEPTION_SCORE_SPLITS = 10
SHUFFLE_SEED = 2020  # torch-fidelity's default, so that its own command gives the same scores
KERNEL_DISTANCE_SUBSETS = 100
NEIGHBOURHOOD = 3
_BLOCK_IMAGES = 1000  # whose distances to 10,000 others are 80 MB


def statistics(features: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [D] and unbiased covariance [D, D] of features [N, D].

    Given float32 features torch-fidelity would take the mean in float32, hence the conversion.
    """
    found = fid_features_to_statistics(_float64(features))
    return found["mu"], np.atleast_2d(found["sigma"])


def frechet_distance(
    mu_a: NDArray[np.float64],
    sigma_a: NDArray[np.float64],
    mu_b: NDArray[np.float64],
    sigma_b: NDArray[np.float64],
) -> float:
    """Heusel et al. 2017, eq. 6: |mu_a - mu_b|^2 + tr(sigma_a + sigma_b - 2 sqrt(sigma_a sigma_b))."""
    found = fid_statistics_to_metric({"mu": mu_a, "sigma": sigma_a}, {"mu": mu_b, "sigma": sigma_b}, verbose=False)
    return float(found[torch_fidelity.KEY_METRIC_FID])


def inception_score(logits: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Mean and standard deviation over ten splits of shuffled images. Salimans et al. 2016. [N, K]."""
    found = isc_features_to_metric(_float64(logits), splits=INCEPTION_SCORE_SPLITS, shuffle=True, rng_seed=SHUFFLE_SEED)
    return float(found[torch_fidelity.KEY_METRIC_ISC_MEAN]), float(found[torch_fidelity.KEY_METRIC_ISC_STD])


def kernel_distance(
    generated: NDArray[np.floating[Any]], real: NDArray[np.floating[Any]], subset_size: int
) -> tuple[float, float]:
    """KID: mean and standard deviation over 100 subsets of so many images. Binkowski et al. 2018, sections 3 and 4.

    Squared maximum mean discrepancy, unbiased, for the kernel (a b / D + 1)^3. [N, D] and [M, D].
    """
    found = kid_features_to_metric(
        _float64(generated),
        _float64(real),
        kid_subsets=KERNEL_DISTANCE_SUBSETS,
        kid_subset_size=subset_size,
        rng_seed=SHUFFLE_SEED,
        verbose=False,
    )
    return float(found[torch_fidelity.KEY_METRIC_KID_MEAN]), float(found[torch_fidelity.KEY_METRIC_KID_STD])


def precision_recall(generated: NDArray[np.floating[Any]], real: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Shares of generated images among the real ones, and of real ones among the generated. [N, D] and [M, D].

    Kynkaanniemi et al. 2019, eq. 1 and 2: among a set is what is within the distance of one of its images to the third
    nearest of the others.
    """
    found = prc_features_to_metric(
        _float64(generated),
        _float64(real),
        prc_neighborhood=NEIGHBOURHOOD,
        prc_batch_size=_BLOCK_IMAGES,
        save_cpu_ram=True,
        verbose=False,
    )
    return float(found[torch_fidelity.KEY_METRIC_PRECISION]), float(found[torch_fidelity.KEY_METRIC_RECALL])


class ClassifierExtractor(torch_fidelity.FeatureExtractorBase):  # type: ignore[misc]  # torch-fidelity has no types
    """Our classifier as torch-fidelity wants an extractor; float64 so that its means are taken in float64."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: Path, **_others: object
    ) -> None:
        super().__init__(name, features_list)
        self.network = load_classifier(feature_extractor_weights_path)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "pool", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "pool"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pool, logits = self.network(images)
        found = {"pool": pool.double(), "logits": logits.double()}
        return tuple(found[layer] for layer in self.features_list)


def classifier_module(weights: Path, layers: list[str]) -> nn.Module:
    """The classifier saved at `weights` as a torch-fidelity extractor of `layers`."""
    if CLASSIFIER not in FEATURE_EXTRACTORS_REGISTRY:  # the registry is one per process and refuses a second time
        torch_fidelity.register_feature_extractor(CLASSIFIER, ClassifierExtractor)
    return _create(CLASSIFIER, layers, weights)


def inception_module(state: dict[str, Tensor], layers: list[str]) -> nn.Module:
    """torch-fidelity's Inception with these weights.

    Its constructor reads a file without `weights_only`, so it is given one that was written here, in memory.
    """
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return _create(INCEPTION, layers, file)


def _float64(features: NDArray[np.floating[Any]]) -> Tensor:
    return torch.from_numpy(features.astype(np.float64))


def _create(name: str, layers: list[str], weights: Path | io.BytesIO) -> nn.Module:
    module: nn.Module = create_feature_extractor(
        name, layers, cuda=False, verbose=False, feature_extractor_weights_path=weights
    )
    return module
