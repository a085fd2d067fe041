"""What an extractor takes, what it gives, and that neither batch order nor threads change it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from evaluation.classifier import Architecture, Classifier
from evaluation.dinov2 import DINOv2
from evaluation.errors import EvaluationError
from evaluation.extractors import Extractor, ExtractorIdentity, LoadedExtractor, extract, load_extractor
from evaluation.inception import Inception
from evaluation.protocol import Protocol, Reference
from model import Record

from .conftest import Digits


def test_kind_chooses_the_extractor() -> None:
    parse = TypeAdapter(Extractor).validate_python
    assert parse({"kind": "classifier"}) == Classifier()
    assert parse({"kind": "inception", "layer": "768"}) == Inception(layer="768")
    assert parse({"kind": "dinov2", "weights": "a.pth"}) == DINOv2(weights="a.pth")
    with pytest.raises(ValidationError, match="'classifier', 'inception', 'dinov2'"):
        parse({"kind": "vgg"})


@pytest.mark.parametrize(
    "record", [Classifier, Inception, DINOv2, Architecture, ExtractorIdentity, Protocol, Reference]
)
def test_every_field_but_kind_has_a_help_text(record: type[Record]) -> None:
    assert [
        n for n, f in record.model_fields.items() if not f.description and f.default != record.__name__.lower()
    ] == []


def test_classifier_gives_float32_features_and_logits(classifier: LoadedExtractor, digits: Digits) -> None:
    features = classifier(digits.heldout[:5])
    assert (features.pool.shape, features.logits.shape) == ((5, 64), (5, 10))
    assert (features.pool.dtype, features.logits.dtype) == (np.float32, np.float32)
    assert (classifier.name, classifier.identity.layer, classifier.identity.resize) == (
        "classifier",
        "64",
        "none",
    )


def test_digest_is_that_of_the_weights_file(
    classifier: LoadedExtractor, classifier_file: Path, network: object
) -> None:
    from evaluation.classifier import ClassifierNetwork, save_classifier

    assert isinstance(network, ClassifierNetwork)
    assert save_classifier(network, classifier_file.with_name("again.safetensors")) == classifier.digest


def test_chunks_are_joined_in_the_order_given(classifier: LoadedExtractor, digits: Digits) -> None:
    chunks = [digits.heldout[:7], digits.heldout[7:9], digits.heldout[9:20]]
    together = extract(classifier, chunks)
    for part, chunk in zip(np.split(together.pool, [7, 9]), chunks, strict=True):
        np.testing.assert_array_equal(part, classifier(chunk).pool)
    np.testing.assert_allclose(together.logits, classifier(digits.heldout[:20]).logits, atol=1e-4)


def test_number_of_threads_does_not_change_the_features(classifier: LoadedExtractor, digits: Digits) -> None:
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(classifier(digits.heldout))
    torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0].pool, found[1].pool)
    np.testing.assert_array_equal(found[0].logits, found[1].logits)


def test_images_that_are_views_give_the_same_features(classifier: LoadedExtractor, digits: Digits) -> None:
    flipped = digits.heldout[:4, :, ::-1]  # negative strides, which torch does not take
    np.testing.assert_array_equal(classifier(flipped).pool, classifier(flipped.copy()).pool)


def test_images_in_floating_point_are_refused_with_their_range(classifier: LoadedExtractor) -> None:
    images = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8, 1)
    with pytest.raises(EvaluationError, match=r"images are float32 in -1..1, expected uint8 in 0..255"):
        classifier(images)  # type: ignore[arg-type]  # the mistake


@pytest.mark.parametrize("shape", [(8, 8, 1), (0, 8, 8, 1), (2, 1, 8, 8), (2, 8, 8, 4)])
def test_images_of_the_wrong_shape_are_refused(classifier: LoadedExtractor, shape: tuple[int, ...]) -> None:
    with pytest.raises(EvaluationError, match=r"expected \[B, H, W, 1 or 3\], B >= 1"):
        classifier(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 16, 16, 1)])
def test_classifier_refuses_images_unlike_those_it_knows(classifier: LoadedExtractor, shape: tuple[int, ...]) -> None:
    with pytest.raises(EvaluationError, match=r"trained on \[8, 8, 1\]; score images of the same data set"):
        classifier(np.zeros(shape, dtype=np.uint8))


def test_a_classifier_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no classifier there"):
        load_extractor(Classifier(), tmp_path / "classifier.safetensors")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_repeats_itself_to_the_bit_and_the_cpu_to_rounding(
    classifier: LoadedExtractor, classifier_file: Path, digits: Digits
) -> None:
    on_gpu = load_extractor(Classifier(), classifier_file, "cuda")
    first, second = on_gpu(digits.heldout), on_gpu(digits.heldout)
    np.testing.assert_array_equal(first.pool, second.pool)
    np.testing.assert_allclose(first.pool, classifier(digits.heldout).pool, atol=1e-4)
