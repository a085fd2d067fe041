"""Every run file that comes along is valid, builds the network that it says, and begins to train as it always has."""

import json
from pathlib import Path

import pytest
import torch

from model import Stream, words
from pipeline.planning.outline import outline, parameters
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load
from pipeline.training.train import recipe_of
from pipeline.training.train_step import Batch, Recipe, TrainStep

RUNS = Path(__file__).parents[2] / "pipeline/runs"
FIRST_LOSSES: dict[str, list[float]] = json.loads(Path(__file__).with_name("first_losses.json").read_text())
PARAMETERS = {
    "cifar10": 35_746_307,
    "cifar10-dit": 32_475_660,
    "cifar10-edm": 55_733_891,
    "cifar10-flow": 35_746_307,
    "cifar10-iddpm": 52_546_438,
    "digits": 176_849,
    "fashion-mnist": 6_469_889,
    "lsun-256": 113_673_219,
    "mnist": 530_657,
}
PIXELS = {"cifar10": 16, "cifar10-dit": 16, "cifar10-edm": 16, "cifar10-flow": 16, "cifar10-iddpm": 16, "lsun-256": 32}
"""Sides of the images that are pinned: the same weights on fewer pixels, so that the test takes seconds."""
BATCH = 2
LARGE = {"cifar10", "cifar10-dit", "cifar10-edm", "cifar10-flow", "cifar10-iddpm", "lsun-256"}
each_file = pytest.mark.parametrize("name", sorted(path.stem for path in RUNS.glob("*.yaml")))


def config_of(name: str) -> Config:
    return load(RUNS / f"{name}.yaml", [], Config)


def recipe(name: str) -> Recipe:
    """The file's training on images of `PIXELS`, two at a time."""
    config = config_of(name)
    full = recipe_of(config)
    image_size = PIXELS.get(name, config.data.image_size)
    spec = config.spec.model_copy(update={"image_size": image_size})
    train = config.train.model_copy(update={"batch_size": BATCH, "precision": "fp32"})
    return Recipe(type(full.objective)(spec, config.train.weighting), train, config.conditioning)


def batch(position: int, shape: tuple[int, int, int], classes: int) -> Batch:
    """Images of random grey levels, and labels, of these positions."""
    channels, height, width = shape
    drawn = words(1, Stream.ORDER, torch.arange(position, position + BATCH), channels * height * width)
    images = (drawn % 256).to(torch.uint8).view(BATCH, height, width, channels)
    return Batch(position, images, torch.arange(position, position + BATCH) % max(classes, 1))


def first_losses(name: str, steps: int = 20) -> list[float]:
    step = TrainStep(recipe(name), torch.device("cpu"))
    shape, classes = step.spec.image_shape, step.spec.classes
    return [float(step(batch(BATCH * number, shape, classes))) for number in range(steps)]


@each_file
def test_run_file_is_valid_and_its_plan_says_the_parameters(name: str) -> None:
    config = config_of(name)
    assert config.name == name
    assert parameters(config) == PARAMETERS[name]
    assert f"{PARAMETERS[name]:,} parameters" in outline(config)["network"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in PARAMETERS]
)
def test_first_losses_are_what_they_were(name: str) -> None:
    """On any processor to the digits that rounding leaves; a change of the mathematics changes all of them.

    `python tests/pipeline/test_run_files.py` writes them anew, to be committed with the reason why they moved.
    """
    torch.testing.assert_close(first_losses(name), FIRST_LOSSES[name], rtol=1e-4, atol=0)


@pytest.mark.slow
def test_the_largest_network_takes_a_step_at_its_full_size() -> None:
    config = config_of("lsun-256")
    train = config.train.model_copy(update={"batch_size": BATCH, "precision": "fp32"})
    step = TrainStep(Recipe(recipe_of(config).objective, train, config.conditioning), torch.device("cpu"))
    before = [parameter.detach().clone() for parameter in step.parameters[:3]]
    for position in (0, BATCH):  # the learning rate of the first step is 0
        loss = step(batch(position, config.spec.image_shape, 0))
    assert loss.isfinite()
    assert any(not torch.equal(new, old) for new, old in zip(step.parameters, before, strict=False))


if __name__ == "__main__":
    torch.set_num_threads(1)
    pinned = {name: first_losses(name) for name in PARAMETERS}
    Path(__file__).with_name("first_losses.json").write_text(json.dumps(pinned, indent=1) + "\n")
