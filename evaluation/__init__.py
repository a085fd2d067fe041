"""Scores, protocols and pictures of images; no cluster, no registry.

Here stands what a configuration needs. `scores` and `pictures` are imported by name: they bring
torch-fidelity and matplotlib, and `pipeline check` should not wait for them.
"""

from .classifier import Classifier, save_classifier, train_classifier
from .dinov2 import DINOv2
from .errors import EvaluationError
from .extractors import (
    Extractor,
    ExtractorIdentity,
    Features,
    LoadedExtractor,
    extract,
    joined,
    load_extractor,
)
from .inception import Inception
from .likelihoods import Likelihood, ODELikelihood, Results, VariationalBound, check_likelihoods
from .protocol import Protocol, Reference, differences
from .weights_file import WeightsFile

__all__ = [
    "Classifier",
    "DINOv2",
    "EvaluationError",
    "Extractor",
    "ExtractorIdentity",
    "Features",
    "Inception",
    "Likelihood",
    "LoadedExtractor",
    "ODELikelihood",
    "Protocol",
    "Reference",
    "Results",
    "VariationalBound",
    "WeightsFile",
    "check_likelihoods",
    "differences",
    "extract",
    "joined",
    "load_extractor",
    "save_classifier",
    "train_classifier",
]
