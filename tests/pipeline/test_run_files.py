"""Every run file that comes along is valid, builds the network that it says, and takes a training step."""

from pathlib import Path

import pytest
import torch

from model import AUGMENT_NUMBERS, Stream, denoising_loss, uniforms
from pipeline.config import Config
from pipeline.configfile import load
from pipeline.plan import parameters, plan

RUNS = Path(__file__).parents[2] / "pipeline/runs"
PARAMETERS = {
    "cifar10": 35_746_307,
    "cifar10-dit": 32_475_660,
    "cifar10-edm": 55_733_891,
    "cifar10-flow": 35_746_307,
    "digits": 176_849,
    "fashion-mnist": 6_469_889,
    "lsun-256": 113_673_219,
    "mnist": 530_657,
}
each_file = pytest.mark.parametrize("name", sorted(path.stem for path in RUNS.glob("*.yaml")))


def config_of(name: str) -> Config:
    return load(RUNS / f"{name}.yaml", [], Config)


@each_file
def test_run_file_is_valid_and_its_plan_says_the_parameters(name: str) -> None:
    config = config_of(name)
    assert config.name == name
    assert parameters(config) == PARAMETERS[name]
    assert f"{PARAMETERS[name]:,} parameters" in plan(config)["network"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "lsun-256")) for name in PARAMETERS]
)
def test_run_file_takes_a_training_step(name: str) -> None:
    config, positions = config_of(name), torch.arange(2)
    spec, train = config.spec, config.train
    torch.manual_seed(0)
    network = spec.build()
    x0, eps = (torch.randn(2, *spec.image_shape) for _ in range(2))
    times = train.times.times(spec.path, train.times.shares(train.seed, positions, 2), train.times.new_history())
    label = config.conditioning.training_label(positions, train.seed, positions)
    augmented = None
    if train.augmentation is not None:
        x0, augmented = train.augmentation.augment(x0, uniforms(0, Stream.AUGMENTATION, positions, AUGMENT_NUMBERS))
    losses = denoising_loss(network, spec.path, spec.target, train.weighting, x0, times.t, eps, label, augmented)
    losses.mean().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0
