"""The classifier learns real digits well, makes the same weights every time, and comes back from its file."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation.classifier import (
    Classifier,
    ClassifierNetwork,
    _batches,
    _shifted,
    load_classifier,
    save_classifier,
    train_classifier,
)
from evaluation.errors import EvaluationError
from evaluation.extractors import LoadedExtractor
from evaluation.feature_set import feature_statistics
from evaluation.scores import class_report, frechet_distance

from .conftest import Digits

SHORT = Classifier(images=640)


def some_images(size: int, channels: int, count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, size=(count, size, size, channels), dtype=np.uint8)
    return images, np.arange(count, dtype=np.int64) % 3


def test_heldout_digits_are_recognised_with_confidence(classifier: LoadedExtractor, digits: Digits) -> None:
    logits = classifier(digits.heldout).logits
    assert (logits.argmax(axis=1) == digits.heldout_labels).mean() >= 0.975
    report = class_report(logits)
    assert report.mean_confidence >= 0.98
    assert report.classes_present == 10


def test_distance_grows_with_noise_on_the_images(classifier: LoadedExtractor, digits: Digits) -> None:
    reference = feature_statistics(classifier(digits.train).pool)
    noise = np.random.default_rng(0).normal(size=digits.heldout.shape)

    def distance(noise_levels: int) -> float:
        noisy = np.clip(digits.heldout + noise * noise_levels, 0, 255).astype(np.uint8)
        value = frechet_distance(feature_statistics(classifier(noisy).pool), reference).value
        assert value is not None
        return value

    clean, some, much = distance(0), distance(32), distance(64)
    assert 0 < 1.5 * clean < some < much


def test_training_twice_gives_the_same_file_whatever_the_threads(digits: Digits, tmp_path: Path) -> None:
    digests = set()
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.rand(threads)  # the caller's random state is nothing to the classifier
        trained = train_classifier(SHORT, digits.train, digits.train_labels, 10)
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
        digests.add(save_classifier(trained, tmp_path / f"{threads}.safetensors"))
    assert len(digests) == 1


def test_training_leaves_the_callers_random_state_alone(digits: Digits) -> None:
    before = torch.get_rng_state()
    train_classifier(SHORT, digits.train, digits.train_labels, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_other_weights(digits: Digits, tmp_path: Path) -> None:
    digests = {
        save_classifier(
            train_classifier(Classifier(images=64, seed=seed), digits.train, digits.train_labels, 10),
            tmp_path / "classifier.safetensors",
        )
        for seed in (0, 1)
    }
    assert len(digests) == 2


def test_images_that_may_not_be_written_are_learned_from(digits: Digits, tmp_path: Path) -> None:
    digests = set()
    for images, labels in (
        (digits.train, digits.train_labels),
        (digits.train[::-1].copy()[::-1], digits.train_labels[::-1].copy()[::-1]),
    ):
        images.flags.writeable = labels.flags.writeable = False
        digests.add(save_classifier(train_classifier(SHORT, images, labels, 10), tmp_path / "c.safetensors"))
        images.flags.writeable = labels.flags.writeable = True
    assert len(digests) == 1


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (8, 3), (9, 1), (32, 3)])
def test_any_size_from_8_pixels_grey_or_rgb(size: int, channels: int) -> None:
    images, labels = some_images(size, channels)
    trained = train_classifier(Classifier(images=64, width=4, features=6), images, labels, 3)
    pool, logits = trained(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert (pool.shape, logits.shape) == ((24, 6), (24, 3))
    assert torch.isfinite(logits).all()


def test_every_image_comes_once_before_any_comes_again() -> None:
    torch.manual_seed(0)
    seen = torch.cat(list(_batches(100, 4)))
    assert [sorted(seen[start : start + 100].tolist()) for start in (0, 100)] == [list(range(100))] * 2


def test_shifts_move_whole_images_by_one_pixel_and_repeat_the_edge() -> None:
    torch.manual_seed(0)
    image = torch.arange(36, dtype=torch.uint8).reshape(1, 1, 6, 6)
    shifts = {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}
    rows = {shift: (torch.arange(6) + shift[0]).clamp(0, 5) for shift in shifts}
    columns = {shift: (torch.arange(6) + shift[1]).clamp(0, 5) for shift in shifts}
    expected = {tuple(image[0, 0][rows[s]][:, columns[s]].flatten().tolist()) for s in shifts}
    moved = _shifted(image.expand(200, -1, -1, -1))
    assert {tuple(one.flatten().tolist()) for one in moved} == expected


def test_loaded_network_is_the_saved_one(network: ClassifierNetwork, classifier_file: Path, digits: Digits) -> None:
    loaded = load_classifier(classifier_file)
    images = torch.from_numpy(digits.heldout).permute(0, 3, 1, 2)
    assert loaded.architecture == network.architecture
    assert torch.equal(loaded(images)[1], network(images)[1])


def test_missing_file_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no classifier there; run the evaluate stage"):
        load_classifier(tmp_path / "classifier.safetensors")


def test_truncated_file_is_refused(classifier_file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(classifier_file.read_bytes()[:-1])
    with pytest.raises(EvaluationError, match=r"cut.safetensors: not a whole safetensors file .* delete it"):
        load_classifier(cut)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    with pytest.raises(EvaluationError, match="weights of something else"):
        load_classifier(other)


@pytest.mark.parametrize("described", ['{"image_size": 8}', None])
def test_weights_that_do_not_fit_their_architecture_are_refused(
    network: ClassifierNetwork, classifier_file: Path, tmp_path: Path, described: str | None
) -> None:
    wider = network.architecture.model_copy(update={"width": 32}).model_dump_json()
    wrong = tmp_path / "wrong.safetensors"
    save_file(load_file(classifier_file), wrong, metadata={"classifier": described or wider})
    with pytest.raises(EvaluationError, match="do not fit the architecture beside them"):
        load_classifier(wrong)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((4, 8, 8, 1), dtype=np.float32), "float32 [4, 8, 8, 1]"),
        (np.zeros((4, 8, 8), dtype=np.uint8), "uint8 [4, 8, 8]"),
        (np.zeros((4, 8, 8, 4), dtype=np.uint8), "uint8 [4, 8, 8, 4]"),
        (np.zeros((4, 8, 9, 1), dtype=np.uint8), "uint8 [4, 8, 9, 1]"),
    ],
)
def test_training_images_of_the_wrong_kind_are_refused(images: np.ndarray, found: str) -> None:
    with pytest.raises(EvaluationError, match=re.escape(f"training images are {found}, expected square")):
        train_classifier(SHORT, images, np.zeros(4, dtype=np.int64), 2)


def test_images_below_8_pixels_are_refused() -> None:
    images, labels = some_images(7, 1)
    with pytest.raises(EvaluationError, match="images of 7x7 pixels, it needs at least 8x8"):
        train_classifier(SHORT, images, labels, 3)


@pytest.mark.parametrize("labels", [np.zeros(5, dtype=np.int64), np.zeros(24, dtype=np.float32)])
def test_labels_that_do_not_go_with_the_images_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(EvaluationError, match=r"labels are .* expected int64 \[24\]"):
        train_classifier(SHORT, some_images(8, 1)[0], labels, 3)


@pytest.mark.parametrize(("label", "classes"), [(-1, 3), (3, 3), (0, 1), (0, 25)])
def test_labels_outside_the_classes_are_refused(label: int, classes: int) -> None:
    images, _ = some_images(8, 1)
    with pytest.raises(EvaluationError, match=f"labels in {label}..{label}, expected at least one image for"):
        train_classifier(SHORT, images, np.full(24, label, dtype=np.int64), classes)


def test_no_images_at_all_are_refused() -> None:
    with pytest.raises(EvaluationError, match="0 labels absent"):
        train_classifier(SHORT, np.zeros((0, 8, 8, 1), dtype=np.uint8), np.zeros(0, dtype=np.int64), 2)
