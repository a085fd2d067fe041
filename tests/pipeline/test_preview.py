"""Pictures while training: the right weights and seeds, and nothing that reaches the training."""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from evaluation.pictures import image_grid
from model import ClassifierFreeGuidance, NoGuidance, TrainedModel, generate
from pipeline.clusters.cluster import Cluster, connected
from pipeline.runfile.config import Config
from pipeline.runfile.keyroles import identity
from pipeline.training import preview
from pipeline.training.checkpoint import AVERAGE, CHECKPOINTS, NETWORK
from pipeline.training.curve import recorded
from pipeline.training.preview import PREVIEWS, Preview, PreviewClient, picture_of, visible_gpu

from .trainings import TINY, assert_same_state, losses, prepared, train_in
from .waiting import wait_until

CONFIG = TINY | {
    "train": {
        "images": 640,
        "batch_size": 32,
        "learning_rate": 1e-2,
        "checkpoint_images": 160,
        "log_images": 160,
        "keep_checkpoints": 9,
        "preview_images": 5,
    },
    "sample": {"images": 60, "seed": 7, "sampler": {"kind": "ancestral", "steps": 10}},
}
WAIT_S = 120  # for a process of the lowest priority on a busy machine

# Ray Train imports Ray Data, which warns of its own settings.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def config(**train: Any) -> Config:
    return Config.model_validate(CONFIG | {"train": CONFIG["train"] | train})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected(config().cluster) as joined:
        yield joined


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "_END_S", WAIT_S)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def drawn_by(weights: Path, into: Path) -> np.ndarray:
    """The grid of the images 7 to 11 from the weights of this file."""
    network = config().spec.build()
    network.load_state_dict(load_file(weights))
    model, sampler = TrainedModel(config().spec, network), config().sample.sampler
    image_grid(generate(model, sampler, torch.arange(7, 12)).numpy(), 3, into)
    return pixels(into)


def test_the_last_checkpoint_is_drawn_from_its_average_and_the_training_is_the_same_to_the_bit(
    cluster: Cluster, tmp_path: Path
) -> None:
    run = prepared(CONFIG, tmp_path / "packed", cluster)
    pictured, without = tmp_path / "with", tmp_path / "without"
    train_in(pictured, run, Preview.of(run.config))
    train_in(without, run)
    assert_same_state(pictured, without)
    assert losses(pictured) == losses(without)

    assert not (without / PREVIEWS).exists()
    last = pictured / CHECKPOINTS / "images-000000000640"
    found = pixels(pictured / PREVIEWS / "images-000000000640.png")
    np.testing.assert_array_equal(found, drawn_by(last / AVERAGE, tmp_path / "average.png"))
    assert (found != drawn_by(last / NETWORK, tmp_path / "network.png")).any()


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Path]:
    """Four of one training, as far as pictures need them."""
    folder = tmp_path / "training" / CHECKPOINTS
    paths = [folder / f"images-{images:012d}" for images in (100, 200, 300, 400)]
    weights = config().spec.build().state_dict()
    for path in paths:
        path.mkdir(parents=True)
        save_file(weights, path / AVERAGE)
    return paths


def opened(curve: Any, say: Callable[[str], None] = print, final_images: int = 10_000) -> PreviewClient:
    wanted = Preview.of(config())
    assert wanted is not None
    return PreviewClient(wanted, torch.device("cpu"), final_images, curve, say)


def drawn(checkpoints: list[Path]) -> list[Path]:
    return [path for path in checkpoints if picture_of(path).exists()]


@pytest.mark.usefixtures("cluster")
def test_while_it_draws_only_the_newest_checkpoint_waits(checkpoints: list[Path], tmp_path: Path) -> None:
    with recorded(tmp_path, 60, lambda _: None) as curve:
        previews = opened(curve)
        for checkpoint in checkpoints:
            previews.show(checkpoint)
        previews.close()
    assert drawn(checkpoints)[-1] == checkpoints[-1]
    assert len(drawn(checkpoints)) < len(checkpoints)
    assert not list((tmp_path / "training" / PREVIEWS).glob(".*"))


@pytest.mark.usefixtures("cluster")
def test_what_goes_wrong_is_told_once_and_later_pictures_are_drawn(checkpoints: list[Path], tmp_path: Path) -> None:
    """Weights that are not finite, then a checkpoint that others have pushed out."""
    broken, removed, *_, good = checkpoints
    weights = load_file(broken / AVERAGE)
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}, broken / AVERAGE)
    shutil.rmtree(removed)
    told: list[str] = []
    with recorded(tmp_path, 60, lambda _: None, told.append) as curve:
        previews = opened(curve)
        for checkpoint in (broken, removed, good):
            previews.show(checkpoint)
            ray.get(previews._actor.finish.remote())
        previews.close()
        wait_until(lambda: bool(told), within_s=WAIT_S)
    assert drawn(checkpoints) == [good]
    (line,) = told
    assert re.fullmatch(r"preview of 100 images left out: images are not finite: .*; training goes on", line)


def test_a_checkpoint_that_is_not_there_any_more_is_named_so(checkpoints: list[Path]) -> None:
    shutil.rmtree(checkpoints[0])
    sketch = Preview.of(config())
    assert sketch is not None
    with pytest.raises(FileNotFoundError, match="newer checkpoints have taken its place"):
        sketch.draw(checkpoints[0], torch.device("cpu"))


@pytest.mark.usefixtures("cluster")
def test_a_killed_process_is_told_of_once_and_followed_by_another(checkpoints: list[Path], tmp_path: Path) -> None:
    told: list[str] = []
    with recorded(tmp_path, 60, lambda _: None) as curve:
        previews = opened(curve, told.append)
        previews.show(checkpoints[0])
        ray.get(previews._actor.finish.remote())
        assert ray.get(previews._actor.__ray_call__.remote(lambda _: os.nice(0))) == 19
        os.kill(ray.get(previews._actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
        previews.show(checkpoints[1])  # its death may not be known yet
        wait_until(lambda: bool(ray.wait([previews._answer], timeout=0)[0]), within_s=WAIT_S)
        for checkpoint in checkpoints[2:]:
            previews.show(checkpoint)
        previews.close()
    assert checkpoints[-1] in drawn(checkpoints)
    (line,) = told
    assert re.fullmatch(r"preview process has died: .*; training goes on", line)


def test_a_picture_that_is_there_is_not_drawn_again(checkpoints: list[Path]) -> None:
    picture_of(checkpoints[0]).parent.mkdir()
    picture_of(checkpoints[0]).write_bytes(b"kept")
    previews = opened(None)
    previews.show(checkpoints[0])
    previews.close()
    assert previews._actor is None


def test_the_last_checkpoint_starts_no_process_where_it_is_the_only_one(checkpoints: list[Path]) -> None:
    previews = opened(None, final_images=100)
    previews.show(checkpoints[0])
    previews.close()
    assert previews._actor is None


def test_a_process_that_cannot_be_started_is_told_of_once(
    checkpoints: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: PreviewClient) -> None:
        raise RuntimeError("no room\nanother line")

    monkeypatch.setattr(PreviewClient, "_started", refuse)
    told: list[str] = []
    previews = opened(None, told.append)
    for checkpoint in checkpoints:
        previews.show(checkpoint)
    previews.close()
    assert told == ["preview of 100 images left out: no room; training goes on"]


def test_pictures_are_no_part_of_what_decides_a_result() -> None:
    assert identity(config(preview_images=0)) == identity(config(preview_images=16))
    assert Preview.of(config(preview_images=0)) is None


def test_guidance_by_a_classifier_that_is_trained_later_is_left_out() -> None:
    told = CONFIG | {"conditioning": {"kind": "class_label", "classes": 10}}
    ways: dict[str, dict[str, Any]] = {
        "classifier": {"kind": "classifier", "scale": 2, "classifier": {"classes": 10, "channel_multipliers": [1]}},
        "classifier_free": {"kind": "classifier_free", "scale": 2},
    }
    kinds = {}
    for name, guidance in ways.items():
        found = Preview.of(Config.model_validate(told | {"sample": told["sample"] | {"guidance": guidance}}))
        assert found is not None
        kinds[name] = type(found.guidance)
        assert found.seeds == range(7, 12)
    assert kinds == {"classifier": NoGuidance, "classifier_free": ClassifierFreeGuidance}


@pytest.mark.parametrize(
    ("device", "shown", "expected"),
    [
        ("cpu", "0,1", None),
        ("cuda", "", "0"),
        ("cuda:2", None, "2"),
        ("cuda:1", "4,7", "7"),
        ("cuda:0", "GPU-8e3c,GPU-12ab", "GPU-8e3c"),
    ],
)
def test_another_process_sees_the_gpu_of_this_one(device: str, shown: str | None, expected: str | None) -> None:
    environment = {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}
    assert visible_gpu(torch.device(device), environment) == expected
