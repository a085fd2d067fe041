"""Image i is a function of seed i alone, a spec says all there is beside the weights, and sampling spoils nothing."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from model import (
    DDIM,
    VESDE,
    DDPMUNet,
    Denoiser,
    DPMSolverPP,
    EDMPath,
    Heun,
    ModelSpec,
    NetworkDenoiser,
    RectifiedFlow,
    Sampler,
    State,
    Stream,
    TrainedModel,
    VPCosine,
    VPLinear,
    denoising_loss,
    generate,
    normal,
    to_uint8,
    trajectory,
)
from model.gaussian_path import GaussianPath
from model.sampler import NoiseSource
from model.targets import EDM, Eps, V, Velocity
from model.weightings import Simple

from .unions import PAIRS, PATHS, members, name_of

SPEC = ModelSpec(
    image_size=8,
    channels=1,
    network=DDPMUNet(base_channels=16, channel_multipliers=(1, 2), blocks_per_level=1, attention_sizes=(4,)),
    path=VPLinear(),
)
SEEDS = torch.tensor([0, 1, 7, 2**40, 2**62])


def kind_of(member: type[Any]) -> str:
    return str(member.model_fields["kind"].default)


ADAPTIVE = {"rk45": {"rtol": 1, "atol": 1}}
SAMPLERS: list[Any] = [
    *(
        member.model_validate(ADAPTIVE.get(kind_of(member), {"steps": 5, "grid": "uniform"}))
        for member in members(Sampler)
    ),
    DDIM(steps=5, eta=1),
    DPMSolverPP(steps=5, variant="2s"),
    DPMSolverPP(steps=5, variant="2m_sde"),
    Heun(steps=5, s_churn=5),
]
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=name_of)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """Random, but with a say of its own: a fresh network predicts zero."""
    torch.manual_seed(0)
    network = SPEC.build()
    torch.nn.init.normal_(network.tail.weight, std=0.1)  # type: ignore[union-attr, arg-type]  # a layer
    return network


def last_of(spec: ModelSpec, sampler: Any, network: torch.nn.Module, seeds: Tensor) -> Tensor:
    return list(trajectory(TrainedModel(spec, network), sampler, seeds))[-1].x


def in_float64(sampler: Any, network: torch.nn.Module, seeds: Tensor) -> Tensor:
    """The images without the rounding of float32, which a rough network makes larger from step to step."""
    x = normal(0, Stream.INITIAL_NOISE, seeds, SPEC.image_shape).double()
    denoiser = NetworkDenoiser(deepcopy(network).double().eval(), SPEC.path, SPEC.target)
    with torch.inference_mode():
        states = sampler.trajectory(
            denoiser, SPEC.path, x, lambda step: normal(0, Stream.STEP_NOISE, seeds, SPEC.image_shape, step).double()
        )
        image: Tensor = list(states)[-1].x
    return image


@each_sampler
def test_an_image_depends_on_its_seed_alone(sampler: Any, network: torch.nn.Module) -> None:
    together = in_float64(sampler, network, SEEDS)
    for row, seed in enumerate(SEEDS):
        alone = in_float64(sampler, network, seed[None])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-10)


@each_sampler
def test_chunks_of_any_size_give_the_same_pictures(sampler: Any, network: torch.nn.Module) -> None:
    """But for the rounding of single grey levels, of which steps that adapt to it make a few more."""
    alone = torch.cat([generate(TrainedModel(SPEC, network), sampler, seed[None]) for seed in SEEDS])
    difference = (generate(TrainedModel(SPEC, network), sampler, SEEDS).int() - alone.int()).abs()
    assert difference.max() <= 1
    assert difference.count_nonzero() <= 0.03 * difference.numel()


@each_sampler
def test_same_chunk_is_the_same_bitwise(sampler: Any, network: torch.nn.Module) -> None:
    assert torch.equal(last_of(SPEC, sampler, network, SEEDS), last_of(SPEC, sampler, network, SEEDS))


@each_sampler
def test_other_seeds_give_other_images(sampler: Any, network: torch.nn.Module) -> None:
    pictures = generate(TrainedModel(SPEC, network), sampler, torch.arange(20))
    assert len({picture.numpy().tobytes() for picture in pictures}) == 20


def test_trajectory_is_the_noise_then_every_step(network: torch.nn.Module) -> None:
    states = list(trajectory(TrainedModel(SPEC, network), DDIM(steps=5), SEEDS))
    assert len(states) == 6
    assert all(x.shape == (5, 1, 8, 8) and x.dtype == torch.float32 for _, x in states)
    assert torch.equal(states[0].x, normal(0, Stream.INITIAL_NOISE, SEEDS, (1, 8, 8)))
    assert [t for t, _ in states] == [999, 562, 250, 62, 0, -1]


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_trajectory_begins_with_noise_as_wide_as_the_paths(path: GaussianPath, network: torch.nn.Module) -> None:
    spec = ModelSpec.model_validate(SPEC.model_dump() | {"path": path, "target": V()})
    for grid in ("uniform", "leading"):
        sampler = DDIM(steps=5, grid=grid)
        first = next(iter(trajectory(TrainedModel(spec, network), sampler, SEEDS)))
        assert first.t == sampler.start(path)
        expected = path.prior_std(first.t) * normal(0, Stream.INITIAL_NOISE, SEEDS, (1, 8, 8))
        assert torch.equal(first.x, expected)


def test_prior_is_as_wide_as_sigma_where_variance_is_not_preserved() -> None:
    assert VESDE().prior_std(1.0) == 50
    assert EDMPath().prior_std(80.0) == 80
    assert RectifiedFlow().prior_std(0.9) == 0.9
    assert VPLinear().prior_std(499.0) == 1


def test_sampler_that_cannot_walk_the_path_is_refused_before_anything_is_drawn(network: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="no grid of 1001"):
        next(trajectory(TrainedModel(SPEC, network), DDIM(steps=1001), SEEDS))


class BareNoise(DDIM):
    """Yields the noise that it is offered."""

    def _walk(self, denoiser: Denoiser, path: Any, x: Tensor, noise: NoiseSource, start: float) -> Iterator[State]:
        return (State(0.0, noise(step)) for step in range(self.steps))


def test_step_noise_is_of_the_seed_and_the_step_and_not_the_initial_noise(network: torch.nn.Module) -> None:
    """Were step 0's the initial noise, it would add the very noise that it has just taken away."""
    initial, *offered = trajectory(TrainedModel(SPEC, network), BareNoise(steps=3), SEEDS)
    expected = [normal(0, Stream.STEP_NOISE, SEEDS, (1, 8, 8), step) for step in range(3)]
    assert all(torch.equal(a.x, b) for a, b in zip(offered, expected, strict=True))
    assert not torch.equal(initial.x, offered[0].x)


def test_generate_is_the_end_of_the_trajectory_in_uint8(network: torch.nn.Module) -> None:
    pictures = generate(TrainedModel(SPEC, network), DDIM(steps=5), SEEDS)
    assert (pictures.shape, pictures.dtype) == ((5, 8, 8, 1), torch.uint8)
    assert torch.equal(pictures, to_uint8(last_of(SPEC, DDIM(steps=5), network, SEEDS)))


def test_dropout_is_off_while_sampling(network: torch.nn.Module) -> None:
    """The network's own dropout of 0.1 would draw from the global generator and tell two runs apart."""
    first = last_of(SPEC, DDIM(steps=5), network.train(), SEEDS)
    assert torch.equal(first, last_of(SPEC, DDIM(steps=5), network.train(), SEEDS))


def test_a_path_first_used_for_sampling_can_be_trained_with(network: torch.nn.Module) -> None:
    """Its table is kept from inference mode on, and autograd must not mind."""
    spec = SPEC.model_copy(update={"path": VPCosine(T=77)})
    generate(TrainedModel(spec, network), DDIM(steps=2), SEEDS)
    x0 = torch.zeros(5, 1, 8, 8, requires_grad=True)
    t, eps = torch.arange(5, dtype=torch.float64), torch.randn(5, 1, 8, 8)
    denoising_loss(network, spec.path, spec.target, Simple(), x0, t, eps).mean().backward()
    assert x0.grad is not None


@pytest.mark.parametrize(("path", "target"), PAIRS, ids=[f"{name_of(a)}-{name_of(b)}" for a, b in PAIRS])
def test_spec_survives_json(path: Any, target: Any) -> None:
    spec = SPEC.model_copy(update={"path": path, "target": target})
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


def test_spec_without_a_target_predicts_the_noise() -> None:
    """As all models did before there was a choice."""
    assert SPEC.target == Eps()
    assert ModelSpec.model_validate(SPEC.model_dump(exclude={"target"})) == SPEC


def test_images_depend_on_the_target(network: torch.nn.Module) -> None:
    specs = [SPEC.model_copy(update={"target": target}) for target in (Eps(), V(), EDM(), EDM(sigma_data=1))]
    images = torch.stack([last_of(spec, DDIM(steps=5), network, SEEDS) for spec in specs])
    assert len(images.unique(dim=0)) == len(specs)


@pytest.mark.parametrize(
    ("path", "target", "message"),
    [
        (RectifiedFlow(), Eps(), r"the noise \(eps\) does not tell the image where alpha = 0"),
        (VPLinear(zero_terminal_snr=True), Eps(), r"the noise \(eps\) does not tell the image where alpha = 0"),
        (VPLinear(), Velocity(), "velocity is dx/dt, which a path of separate steps does not have; use target v"),
    ],
    ids=["rectified flow", "no signal left", "separate steps"],
)
def test_target_that_is_singular_on_the_path_is_refused(path: Any, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSpec.model_validate(SPEC.model_dump() | {"path": path, "target": target})


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
    "bad",
    [{"image_size": 0}, {"channels": 0}, {"path": {"kind": "linear"}}, {"target": {"kind": "x"}}, {"colour": 1}],
    ids=str,
)
def test_bad_value_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        ModelSpec.model_validate(SPEC.model_dump() | bad)


def test_spec_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SPEC.image_size = 16  # type: ignore[misc]  # the mistake


def test_images_that_are_not_finite_are_refused() -> None:
    """NaN would become an arbitrary grey level, and a score would be taken of it."""
    network = SPEC.build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        generate(TrainedModel(SPEC, network), DDIM(steps=2), SEEDS)
