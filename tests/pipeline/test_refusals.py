"""Bad input on the command line: one clear message, the right exit code, no traceback, nothing lost."""

import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from pydantic import ValidationError

from model import IdentityCodec
from pipeline.__main__ import main
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load

pytestmark = pytest.mark.usefixtures("head")

RUNS = Path(__file__).parents[2] / "pipeline/runs"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(arguments)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, " ".join(printed.err.split())


@pytest.fixture
def digits(tmp_path: Path, empty_store: bytes) -> list[str]:
    """Arguments of a quick run whose output is nowhere else."""
    run_file, output = str(RUNS / "digits.yaml"), tmp_path / "out"
    output.mkdir()
    (output / "mlflow.db").write_bytes(empty_store)
    return [run_file, f"output={output}", "train.images=256", "sample.images=20", "cluster.address=auto"]


def test_a_typo_in_a_key_names_the_key_that_was_meant(digits: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, message = refused(capsys, "run", *digits, "train.batchsize=64", "sample.sampler.stepz=3")
    assert code == 2
    assert "2 mistakes" in message
    assert "train.batchsize: unknown key; did you mean batch_size?" in message
    assert "sample.sampler.stepz: unknown key; did you mean steps?" in message


def test_parts_that_do_not_fit_are_named_with_their_numbers(
    digits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = refused(capsys, "check", *digits, "train.batch_size=1", "sample.sampler.steps=2000")
    assert code == 2
    assert "train.batch_size 1 is less than train.num_workers 2; some would have no image to learn from" in message
    assert "sample.sampler: a path of T = 1000 steps has no grid of 2000; ask for 1 to 1000 steps" in message


def test_ranges_of_processes_begin_with_the_least(digits: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, message = refused(capsys, "check", *digits, "train.num_workers=[3,2]", "cluster.num_samplers=[2,1]")
    assert code == 2
    assert "train.num_workers: [3, 2], expected the least first" in message
    assert "cluster.num_samplers: [2, 1], expected the least first" in message


def test_choices_that_contradict_each_other_are_refused_at_check(
    digits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    choices = ["path.kind=rectified_flow", "sample.sampler.grid=karras"]
    code, message = refused(capsys, "check", *digits, *choices)
    assert code == 2
    assert "2 mistakes" in message
    assert "target: the noise (eps) does not tell the image where alpha = 0" in message
    assert "sample.sampler: grid karras is even in the noise level" in message
    assert "use uniform" in message


def test_guidance_without_classes_is_refused(digits: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, message = refused(capsys, "check", *digits, "sample.guidance.kind=classifier_free")
    assert code == 2
    assert "sample.guidance: classifier_free follows the class of an image" in message
    assert 'set conditioning="{kind: class_label, classes: N}"' in message


def test_cross_attention_to_nothing_is_refused(digits: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, message = refused(capsys, "check", *digits, "network.cross_attention={heads: 4}")
    assert code == 2
    assert "network.cross_attention: attends to the class of an image, and the network is not told of any" in message


def test_guidance_away_from_a_prediction_that_was_never_trained_is_refused(
    digits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    conditioning = "conditioning={kind: class_label, classes: 10, dropout: 0}"
    code, message = refused(capsys, "check", *digits, conditioning, "sample.guidance.kind=classifier_free")
    assert code == 2
    assert "conditioning.dropout 0 never withholds it; set dropout to 0.1 or so" in message


def test_parts_of_improved_ddpm_that_do_not_fit_are_refused_together(
    digits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sampler = "sample.sampler={kind: ancestral, steps: 5, variance: learned}"
    code, message = refused(capsys, "check", *digits, sampler)
    assert code == 2
    assert "sample.sampler.variance: learned, but the network predicts none; set variance.kind=learned_range" in message
    code, message = refused(capsys, "check", *digits, "path.kind=vp_sde", "variance.kind=learned_range")
    assert code == 2
    assert "variance: learned_range learns the variance of a chain's steps, which a path in continuous time" in message


def test_a_guiding_classifier_that_does_not_fit_is_refused_with_all_that_is_wrong(
    digits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    guidance = "sample.guidance={kind: classifier, classifier: {classes: 9, batch_size: 1}}"
    classes = "conditioning={kind: class_label, classes: 10}"
    code, message = refused(
        capsys, "check", *digits, guidance, classes, "data.image_size=6", "data.source={kind: shards, urls: [a.tar]}"
    )
    assert code == 2
    assert "sample.guidance.classifier.classes: 9, but conditioning.classes is 10; make them equal" in message
    assert "sample.guidance.classifier.batch_size 1 is less than train.num_workers 2" in message
    assert "sample.guidance.classifier: 3 levels halve the image 2 times, but 6 pixels do not divide by 4" in message


def test_a_guiding_classifier_of_other_classes_than_the_data_is_refused_after_packing(
    digits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    guidance = "sample.guidance={kind: classifier, classifier: {classes: 12}}"
    code, message = refused(capsys, "run", *digits, guidance)
    assert code == 1
    assert "sample.guidance.classifier.classes: 12, but the images have 10 classes" in message


def test_likelihoods_of_more_images_than_there_are_are_refused_after_packing(
    digits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = refused(capsys, "run", *digits, "evaluate.likelihoods=[{kind: variational_bound, images: 400}]")
    assert code == 1
    assert "evaluate.likelihoods: variational_bound asks for 400 heldout images, and there are 360" in message


def test_likelihoods_that_the_model_does_not_have_are_refused(
    digits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    learned = "evaluate.likelihoods=[{kind: variational_bound, images: 10, variance: learned}]"
    code, message = refused(capsys, "check", *digits, learned)
    assert code == 2
    assert "evaluate.likelihoods: variance learned, but the model has none; use fixed_small or fixed_large" in message


def test_clipping_of_latents_that_know_no_bounds_is_refused() -> None:
    class Unbounded(IdentityCodec):
        bounded: ClassVar[bool] = False

    config = load(RUNS / "digits.yaml", [], Config)
    with pytest.raises(ValidationError, match=r"clip: x0_and_eps keeps images in \[-1, 1\], and latents of codec"):
        Config.model_validate({**config.model_dump(by_alias=True), "codec": Unbounded()})


def test_a_class_without_a_training_image_is_named_after_packing(
    tmp_path: Path, digits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "two.npz", images=np.zeros((600, 8, 8), np.uint8), labels=np.arange(600) % 2 * 3)
    file = tmp_path / "two.npz"
    source = f"data.source={{kind: arrays, images: {file}, labels: {file}}}"
    code, message = refused(capsys, "run", *digits, source, "conditioning={kind: class_label, classes: 4}")
    assert code == 1
    assert "conditioning: no image to train on has class 1, 2 of 4, so the network would not know it" in message


def test_a_time_that_the_network_cannot_see_is_refused(digits: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    network = "network={kind: ncsnpp, architecture: ncsnpp, base_channels: 8, attention_sizes: [], augment_labels: 9}"
    code, message = refused(capsys, "check", *digits, network)
    assert code == 2
    assert "network: architecture ncsnpp sees the time by frequencies made for log(sigma) / 4" in message
    assert "network.augment_labels: 9, but train.augmentation is null, so there is nothing to tell" in message


def test_augmentation_that_the_network_is_not_told_of_is_refused(
    digits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = refused(capsys, "check", *digits, "train.augmentation.probability=0.1", "train.hflip=true")
    assert code == 2
    assert "train.augmentation: the network must be told how its images were changed; use" in message
    assert "train.hflip: augmentation mirrors images, too, and tells the network; set train.hflip=false" in message


def test_another_number_of_classes_than_the_data_have_is_refused_after_packing(
    digits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = refused(capsys, "run", *digits, "conditioning={kind: class_label, classes: 12}")
    assert code == 1
    assert "conditioning.classes: 12, but the images have 10 classes" in message


def test_a_network_too_deep_for_the_image_is_refused(digits: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, message = refused(capsys, "check", *digits, "network.channel_multipliers=[1,1,1,1,1]")
    assert code == 2
    assert "8 pixels do not divide by 16" in message


def test_more_workers_than_cpus_fail_within_seconds_and_name_both(
    digits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    code, message = refused(capsys, "run", *digits, "train.num_workers=64", "train.batch_size=64")
    assert code == 1
    assert "64 workers of 1 CPU need 64 CPUs" in message
    assert "has" in message
    assert time.monotonic() - start < 60  # Ray itself would wait for ever


def test_a_ray_cluster_that_does_not_answer_is_named(digits: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, message = refused(capsys, "run", *digits, "cluster.address=127.0.0.1:1")
    assert code == 1
    assert "cluster.address '127.0.0.1:1': no Ray cluster answers there" in message


def test_an_mlflow_address_that_does_not_answer_is_named(digits: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, message = refused(capsys, "run", *digits, "tracking.uri=http://127.0.0.1:9")
    assert code == 1
    assert "http://127.0.0.1:9" in message
    assert "connection refused" in message


def test_too_few_images_for_the_batch_are_refused_after_packing(
    digits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = refused(capsys, "run", *digits, "train.batch_size=1600")
    assert code == 1
    assert "1,437 images to train on are fewer than train.batch_size 1,600" in message


def test_a_missing_weights_file_is_refused_before_training(
    digits: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights = tmp_path / "inception.pth"
    code, message = refused(capsys, "run", *digits, f"evaluate.extractor={{kind: inception, weights: {weights}}}")
    assert code == 1
    assert str(weights) in message
    assert not list((tmp_path / "out/stages").glob("train-*"))


def test_weights_of_another_digest_are_refused_before_training(
    digits: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights, expected = tmp_path / "inception.pth", "0" * 64
    weights.write_bytes(b"others")
    extractor = f"evaluate.extractor={{kind: inception, weights: {weights}, weights_sha256: '{expected}'}}"
    code, message = refused(capsys, "run", *digits, extractor)
    assert code == 1
    assert f"expected {expected}; the file is damaged or another one" in message
    assert not list((tmp_path / "out/stages").glob("train-*"))


def test_the_classifier_without_labels_is_refused_before_training(
    digits: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:

    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (300, 8, 8), np.uint8))
    code, message = refused(capsys, "run", *digits, f"data.source={{kind: arrays, images: {tmp_path / 'images.npy'}}}")
    assert code == 1
    assert "these images have none" in message


def test_a_truncated_shard_is_named_and_nothing_else_is_lost(
    digits: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["prepare", *digits]) == 0
    (shard,) = (tmp_path / "out/stages").glob("prepare-*/train-000000.tar")
    content = shard.read_bytes()
    shard.write_bytes(content[:5_000])
    capsys.readouterr()
    code, message = refused(capsys, "train", *digits)
    assert code == 1
    assert f"{shard}: 5000 bytes, the index says {len(content)}" in message


def test_a_folder_with_no_images_is_refused(
    digits: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    code, message = refused(capsys, "prepare", *digits, f"data.source={{kind: image_folder, path: {tmp_path}/empty}}")
    assert code == 1
    assert str(tmp_path / "empty") in message


def test_a_missing_run_file_is_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, message = refused(capsys, "run", str(tmp_path / "nowhere.yaml"))
    assert code == 2
    assert "nowhere.yaml" in message


def test_an_output_that_cannot_be_written_to_is_named(
    digits: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    code, message = refused(capsys, "prepare", *digits, f"output={tmp_path}/file/out")
    assert code == 1
    assert "Not a directory" in message
    assert f"(output is {tmp_path}/file/out); mend it, and the same command goes on" in message
