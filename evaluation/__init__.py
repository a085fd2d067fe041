"""Scores, protocols and pictures of images; no cluster, no registry.

Here stands what a configuration needs. `scores` and `pictures` are imported by name: they bring
torch-fidelity and matplotlib, and `pipeline check` should not wait for them.
"""

from .classifier import Classifier, save_classifier, train_classifier
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

__all__ = [
    "Classifier",
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
    "check_likelihoods",
    "differences",
    "extract",
    "joined",
    "load_extractor",
    "save_classifier",
    "train_classifier",
]
