"""Every combination of the unions' members either works, or is refused with the reason; no pair is left untried."""

import re
from collections import Counter
from itertools import islice, pairwise, product
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from model import (
    DDIM,
    VPSDE,
    DDPMUNet,
    DPMSolverPP,
    EDMPath,
    Euler,
    Grid,
    Heun,
    ModelSpec,
    NetworkDenoiser,
    PredictorCorrector,
    RectifiedFlow,
    Sampler,
    State,
    TrainedModel,
    UniPC,
    VPLinear,
    denoising_loss,
    trajectory,
)
from model.clipping import Clip
from model.discrete_paths import DiscretePath
from model.gaussian_path import GaussianPath
from model.targets import X0, Eps, V
from model.weightings import EDMWeighting, MinSNR

from .unions import PAIRS, PATHS, SAMPLINGS, TARGETS, WEIGHTINGS, each_path, members, name_of

STEPS = 3
SEEDS = torch.arange(3)
UNET = DDPMUNet(base_channels=8, channel_multipliers=(1,), blocks_per_level=1, attention_sizes=())
VARIED: dict[str, list[dict[str, Any]]] = {
    "ddim": [{"eta": 1}],
    "euler": [{"s_churn": 1}],
    "heun": [{"s_churn": 1}],
    "predictor_corrector": [{"corrector_steps": 2}, {"corrector_steps": 0}],
}
"""Options other than choices by name that change what a sampler does."""
COARSE = {"rtol": 1, "atol": 1}
"""For samplers that choose their steps."""
ONE_BY_ONE = {"grid", "clip", "kind"}
"""Choices that have tests of their own."""


def variants(member: type[Any]) -> list[Any]:
    """The sampler of few steps, then with each choice and each option of VARIED in turn."""
    base: dict[str, Any] = {"steps": STEPS, "grid": "uniform"} if "steps" in member.model_fields else COARSE
    choices: list[dict[str, Any]] = [
        {name: choice}
        for name, field in member.model_fields.items()
        if get_origin(field.annotation) is Literal and name not in ONE_BY_ONE
        for choice in get_args(field.annotation)
        if choice != "learned"  # these networks predict no variance; test_variance.py has some that do
        if choice != field.default
    ]
    kind = member.model_fields["kind"].default
    return [member(**base | changed) for changed in [{}, *choices, *VARIED.get(kind, [])]]


SAMPLERS = [sampler for member in members(Sampler) for sampler in variants(member)]
GRID_MEMBERS = [member for member in members(Sampler) if "grid" in member.model_fields]
each_grid_member = pytest.mark.parametrize("member", GRID_MEMBERS, ids=lambda member: member.__name__)

LOST = "as at the noisy end of this path"
EVEN_IN_LAMBDA = ("karras", "lambda_uniform")


def loses_image(path: Any) -> bool:
    """Said here once more, and not asked of the path."""
    return path.kind == "rectified_flow" or getattr(path, "zero_terminal_snr", False)


def refusal_of_target(target: Any, path: Any) -> str | None:
    """The message that a pair of default settings must be refused with."""
    if target.kind in ("eps", "score") and loses_image(path):
        return (
            f"the noise ({target.kind}) does not tell the image where alpha = 0, {LOST}; use target v, x0, edm or (in "
            "continuous time) velocity"
        )
    if target.kind == "velocity" and isinstance(path, DiscretePath):
        return "velocity is dx/dt, which a path of separate steps does not have; use target v"
    return None


def refusal_of_sampler(sampler: Any, path: Any) -> str | None:
    if not loses_image(path):
        return None
    if getattr(sampler, "grid", "") in EVEN_IN_LAMBDA:
        return f"grid {sampler.grid} is even in the noise level, which is infinite where alpha = 0, {LOST}; use uniform"
    if getattr(sampler, "s_churn", 0) > 0:
        return "s_churn raises sigma / alpha, which is infinite at the noisy end of this path; set it to 0"
    return None


class SmallNetwork(nn.Module):
    """A convolution that knows the time; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 1, 3, padding=1)
        self.calls = 0

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        self.calls += 1
        time = (conditioning / 1000).tanh().view(-1, 1, 1, 1).expand_as(x)
        output: Tensor = self.convolution(torch.cat((x, time), dim=1))
        return output


def spec_of(path: GaussianPath, target: Any) -> ModelSpec:
    """As from a file: of plain numbers and names."""
    parts = {"network": UNET, "path": path, "target": target}
    return ModelSpec.model_validate(
        {"image_size": 4, "channels": 1} | {name: part.model_dump() for name, part in parts.items()}
    )


def check_walk(path: GaussianPath, target: Any, sampler: Any) -> None:
    """From noise to finite images within the range of clipping, at falling times, in as many calls as declared."""
    sampler = TypeAdapter(Sampler).validate_python(sampler.model_dump())
    network = SmallNetwork()
    states: list[State] = list(trajectory(TrainedModel(spec_of(path, target), network), sampler, SEEDS))
    times = [t for t, _ in states]
    assert times[0] == sampler.start(path)
    assert times[-1] == path.t_data
    assert len(states) >= 3
    assert all(x.isfinite().all() and x.dtype == torch.float32 for _, x in states)
    assert states[-1].x.unique(dim=0).shape == states[-1].x.shape  # as many images as seeds
    assert states[-1].x.abs().max() <= 1 + 1e-3
    if sampler.evaluations(path) is not None:
        assert all(now > after for now, after in pairwise(times))
        assert network.calls == sampler.evaluations(path)


def least_met(path: GaussianPath, sampler: Any, met: Counter[Any]) -> Any:
    """Of the path's targets."""
    targets = [target for each, target in PAIRS if each == path]
    return min(targets, key=lambda target: met[path, target] + 2 * met[target, sampler])


def walks() -> list[tuple[GaussianPath, Any, Any]]:
    """Every sampler on every path, each time with the target that the two have met least."""
    met, found = Counter[Any](), []
    for path, sampler in product(PATHS, SAMPLERS):
        target = least_met(path, sampler, met)
        found.append((path, target, sampler))
        if not refusal_of_sampler(sampler, path):
            met.update([(path, target), (target, sampler)])
    return found


WALKS = walks()


def test_all_pairs_are_among_the_walks() -> None:
    walked = [walk for walk in WALKS if not refusal_of_sampler(walk[2], walk[0])]
    assert {(path, target) for path, target, _ in walked} == set(PAIRS)
    assert {(target, sampler) for _, target, sampler in walked} == set(product(TARGETS, SAMPLERS))


@pytest.mark.parametrize(("path", "target", "sampler"), WALKS, ids=name_of)
def test_admitted_path_target_and_sampler_make_images(path: GaussianPath, target: Any, sampler: Any) -> None:
    message = refusal_of_sampler(sampler, path)
    if message:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            next(trajectory(TrainedModel(spec_of(path, target), SmallNetwork()), sampler, SEEDS))
    else:
        check_walk(path, target, sampler)


@pytest.mark.parametrize("target", TARGETS, ids=name_of)
@each_path
def test_pair_of_path_and_target_is_admitted_or_refused_with_its_reason(path: GaussianPath, target: Any) -> None:
    message = refusal_of_target(target, path)
    assert ((path, target) in PAIRS) == (message is None)
    if message:
        with pytest.raises(ValueError, match=re.escape(message)):
            spec_of(path, target)
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            target.check(path)
    else:
        assert spec_of(path, target).target == target


@each_grid_member
@each_path
def test_every_sampler_walks_every_grid_or_refuses_it_with_the_reason(path: GaussianPath, member: type[Any]) -> None:
    for grid in get_args(Grid):
        sampler = member(steps=STEPS, grid=grid)
        message = refusal_of_sampler(sampler, path)
        if message:
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                sampler.check(path)
        else:
            check_walk(path, V(), sampler)


@pytest.mark.parametrize("clip", get_args(Clip))
@pytest.mark.parametrize("member", members(Sampler), ids=lambda member: member.__name__)
def test_every_sampler_takes_every_way_of_clipping(member: type[Any], clip: Any) -> None:
    for path, target in ((VPLinear(), Eps()), (RectifiedFlow(), V())):
        sampler = variants(member)[0].model_copy(update={"clip": clip})
        states = list(islice(trajectory(TrainedModel(spec_of(path, target), SmallNetwork()), sampler, SEEDS), 3))
        assert all(x.isfinite().all() for _, x in states)


@each_path
def test_refused_sampler_says_so_before_it_walks(path: GaussianPath) -> None:
    """Where `check` refuses, `trajectory` does as soon as it is called, and only there."""
    x = torch.zeros(1, 1, 4, 4)
    denoiser = NetworkDenoiser(SmallNetwork(), path, V())
    for sampler in SAMPLERS:
        message = refusal_of_sampler(sampler, path)
        if message:
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                sampler.trajectory(denoiser, path, x, lambda _: x)
        else:
            sampler.check(path)
            sampler.trajectory(denoiser, path, x, lambda _: x)


@each_grid_member
def test_more_steps_than_the_path_has_are_refused(member: type[Any]) -> None:
    with pytest.raises(ValueError, match="a path of T = 10 steps has no grid of 11; ask for 1 to 10 steps"):
        member(steps=11, grid="uniform").check(VPLinear(T=10))
    member(steps=11, grid="uniform").check(EDMPath())


@pytest.mark.parametrize("sampler", [DPMSolverPP(), DPMSolverPP(variant="2s"), UniPC()], ids=name_of)
def test_times_visited_twice_are_refused_by_samplers_that_extrapolate(sampler: Any) -> None:
    repeating = sampler.model_copy(update={"grid": "quadratic_paper", "steps": 50})
    message = (
        "^grid quadratic_paper visits some of its 50 times twice, and a step of length 0 has no extrapolation; use "
        "quadratic$"
    )
    with pytest.raises(ValueError, match=message):
        repeating.check(VPLinear())
    repeating.model_copy(update={"grid": "quadratic"}).check(VPLinear())


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(eta=1), Euler(), Heun(), PredictorCorrector()], ids=name_of)
def test_times_visited_twice_do_no_harm_to_the_others(sampler: Any) -> None:
    """A step of length 0 leaves the image alone, or adds no noise that was not taken."""
    repeating = sampler.model_copy(update={"grid": "quadratic_paper", "steps": 50})
    states = list(trajectory(TrainedModel(spec_of(VPLinear(), Eps()), SmallNetwork()), repeating, SEEDS))
    assert len(states) == 51
    assert all(x.isfinite().all() for _, x in states)
    (first,) = (i for i, (now, after) in enumerate(pairwise(states)) if now.t == after.t)
    if not isinstance(sampler, PredictorCorrector):
        torch.testing.assert_close(states[first].x, states[first + 1].x, rtol=0, atol=1e-5)


# Training.


TRAININGS: list[tuple[GaussianPath, Any, Any, Any]] = [
    (path, target, weighting, SAMPLINGS[(row + column) % len(SAMPLINGS)])
    for row, (path, target) in enumerate(PAIRS)
    for column, weighting in enumerate(WEIGHTINGS)
]
"""Every weighting on every path and target, with the ways of sampling times in turn."""


def test_all_pairs_are_among_the_trainings() -> None:
    for part, choices in enumerate((PATHS, TARGETS, WEIGHTINGS)):
        assert {(training[part], training[3]) for training in TRAININGS} == set(product(choices, SAMPLINGS))


@pytest.mark.parametrize(("path", "target", "weighting", "sampling"), TRAININGS, ids=name_of)
def test_every_target_trains_under_every_weighting_and_sampling_of_times(
    path: Any, target: Any, weighting: Any, sampling: Any
) -> None:
    x0, eps = torch.rand(8, 1, 4, 4) * 2 - 1, torch.randn(8, 1, 4, 4)
    network, history = SmallNetwork(), sampling.new_history()
    t, importance, interval = sampling.times(path, sampling.shares(0, torch.arange(8), 8), history)
    losses = denoising_loss(network, path, target, weighting, x0, t, eps)
    assert (losses > 0).all()
    assert losses.isfinite().all()
    (losses * importance).mean().backward()
    gradient = network.convolution.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    if history is not None:
        history.add(interval, losses.detach())
        assert history.counts.sum() == 8


@each_grid_member
@pytest.mark.parametrize("path", [VPLinear(), EDMPath(), RectifiedFlow()], ids=name_of)
def test_start_with_more_image_than_noise_is_refused(member: type[Any], path: Any) -> None:
    with pytest.raises(ValueError, match=r"^grid leading of 1 steps starts at t = \S+, where more image than noise is"):
        member(steps=1, grid="leading").check(path)


@each_grid_member
@pytest.mark.parametrize(
    "path", [VPLinear(T=100_000), VPLinear(beta_end=0.999999), VPSDE(beta_max=1e5)], ids=["steps", "beta", "sde"]
)
def test_path_that_stays_flat_between_two_times_is_refused(member: type[Any], path: Any) -> None:
    """There a step would divide by what has not changed."""
    with pytest.raises(ValueError, match=r"^nothing changes on this path between t = \S+ and \S+, two of the"):
        member(steps=50, grid="uniform").check(path)


@pytest.mark.parametrize("member", [Euler, Heun])
def test_churn_that_no_step_would_feel_is_refused(member: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"^s_max 1.0 is not above s_min 5.0; no step would add noise$"):
        member(s_churn=40, s_min=5, s_max=1).check(EDMPath())


@pytest.mark.parametrize(
    ("weighting", "path", "target"),
    [
        (EDMWeighting(), VPLinear(T=10_000), Eps()),
        (MinSNR(gamma=1e-35), VPLinear(), X0()),
    ],
    ids=["edm on a lost image", "limit"],
)
def test_weights_that_float32_cannot_hold_are_refused(weighting: Any, path: Any, target: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{weighting.kind} weights the loss by .* to .* on this path and target"):
        weighting.check(path, target)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
def test_every_weighting_holds_on_every_pair(weighting: Any) -> None:
    for path, target in PAIRS:
        weighting.check(path, target)
