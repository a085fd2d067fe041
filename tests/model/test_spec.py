"""Image i is a function of seed i alone, a spec says all there is beside the weights, and sampling spoils nothing."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from model import (
    DDIM,
    Ancestral,
    DDPMUNet,
    Denoiser,
    ModelSpec,
    Path,
    Stream,
    VPCosine,
    VPLinear,
    generate,
    normal,
    simple_loss,
    to_uint8,
    trajectory,
)
from model.samplers import NoiseSource

SPEC = ModelSpec(
    image_size=8,
    channels=1,
    network=DDPMUNet(base_channels=16, channel_multipliers=(1, 2), blocks_per_level=1, attention_sizes=(4,)),
    path=VPLinear(),
)
SEEDS = torch.tensor([0, 1, 7, 2**40, 2**62])
SAMPLERS = [DDIM(steps=5), DDIM(steps=5, eta=1), Ancestral(steps=5)]
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=["ddim", "ddim eta 1", "ancestral"])


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """Random, but with a say of its own: a fresh network predicts zero."""
    torch.manual_seed(0)
    network = SPEC.build()
    torch.nn.init.normal_(network.tail.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    return network


def last_of(spec: ModelSpec, sampler: Any, network: torch.nn.Module, seeds: Tensor) -> Tensor:
    return list(trajectory(spec, sampler, network, seeds))[-1]


@each_sampler
def test_an_image_depends_on_its_seed_alone(sampler: Any, network: torch.nn.Module) -> None:
    together = last_of(SPEC, sampler, network, SEEDS)
    for row, seed in enumerate(SEEDS):
        alone = last_of(SPEC, sampler, network, seed[None])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)


@each_sampler
def test_chunks_of_any_size_give_the_same_pictures(sampler: Any, network: torch.nn.Module) -> None:
    alone = torch.cat([generate(SPEC, sampler, network, seed[None]) for seed in SEEDS])
    assert torch.equal(generate(SPEC, sampler, network, SEEDS), alone)


@each_sampler
def test_same_chunk_is_the_same_bitwise(sampler: Any, network: torch.nn.Module) -> None:
    assert torch.equal(last_of(SPEC, sampler, network, SEEDS), last_of(SPEC, sampler, network, SEEDS))


@each_sampler
def test_other_seeds_give_other_images(sampler: Any, network: torch.nn.Module) -> None:
    pictures = generate(SPEC, sampler, network, torch.arange(20))
    assert len({picture.numpy().tobytes() for picture in pictures}) == 20


def test_trajectory_is_the_noise_then_every_step(network: torch.nn.Module) -> None:
    states = list(trajectory(SPEC, DDIM(steps=5), network, SEEDS))
    assert len(states) == 6
    assert all(state.shape == (5, 1, 8, 8) and state.dtype == torch.float32 for state in states)
    assert torch.equal(states[0], normal(0, Stream.INITIAL_NOISE, SEEDS, (1, 8, 8)))


class BareNoise(DDIM):
    """Yields the noise that it is offered."""

    def trajectory(self, _denoiser: Denoiser, _path: Path, _x: Tensor, noise: NoiseSource) -> Iterator[Tensor]:
        return (noise(step) for step in range(self.steps))


def test_step_noise_is_of_the_seed_and_the_step_and_not_the_initial_noise(network: torch.nn.Module) -> None:
    """Were step 0's the initial noise, it would add the very noise that it has just taken away."""
    initial, *offered = trajectory(SPEC, BareNoise(steps=3), network, SEEDS)
    expected = [normal(0, Stream.STEP_NOISE, SEEDS, (1, 8, 8), step) for step in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(offered, expected, strict=True))
    assert not torch.equal(initial, offered[0])


def test_generate_is_the_end_of_the_trajectory_in_uint8(network: torch.nn.Module) -> None:
    pictures = generate(SPEC, DDIM(steps=5), network, SEEDS)
    assert (pictures.shape, pictures.dtype) == ((5, 8, 8, 1), torch.uint8)
    assert torch.equal(pictures, to_uint8(last_of(SPEC, DDIM(steps=5), network, SEEDS)))


def test_dropout_is_off_while_sampling(network: torch.nn.Module) -> None:
    """The network's own dropout of 0.1 would draw from the global generator and tell two runs apart."""
    first = last_of(SPEC, DDIM(steps=5), network.train(), SEEDS)
    assert torch.equal(first, last_of(SPEC, DDIM(steps=5), network.train(), SEEDS))


def test_a_path_first_used_for_sampling_can_be_trained_with(network: torch.nn.Module) -> None:
    """Its table is kept from inference mode on, and autograd must not mind."""
    spec = SPEC.model_copy(update={"path": VPCosine(T=77)})
    generate(spec, DDIM(steps=2), network, SEEDS)
    x0 = torch.zeros(5, 1, 8, 8, requires_grad=True)
    simple_loss(network, spec.path, x0, torch.arange(5), torch.randn(5, 1, 8, 8)).mean().backward()
    assert x0.grad is not None


def test_spec_survives_json() -> None:
    assert ModelSpec.model_validate_json(SPEC.model_dump_json()) == SPEC


def test_spec_builds_the_network_of_its_shape() -> None:
    assert SPEC.image_shape == (1, 8, 8)
    assert SPEC.build()(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape == (2, 1, 8, 8)


def test_same_global_seed_builds_the_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(SPEC.build().state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    "bad", [{"image_size": 0}, {"channels": 0}, {"path": {"kind": "linear"}}, {"colour": 1}], ids=str
)
def test_bad_value_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        ModelSpec.model_validate(SPEC.model_dump() | bad)


def test_spec_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SPEC.image_size = 16  # type: ignore[misc]


def test_images_that_are_not_finite_are_refused() -> None:
    """NaN would become an arbitrary grey level, and a score would be taken of it."""
    network = SPEC.build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        generate(SPEC, DDIM(steps=2), network, SEEDS)
