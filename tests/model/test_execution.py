"""However a network is executed, it draws the same images up to rounding, and samplers never wait for the device."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from model import (
    DDIM,
    EAGER,
    NO_GUIDANCE,
    RK45,
    ClassifierFreeGuidance,
    DDPMUNet,
    DPMSolverPP,
    Execution,
    Guidance,
    ModelSpec,
    Sampler,
    TrainedModel,
    VPLinear,
    generate,
    trajectory,
)

from .small_networks import IMAGE_SIZE, awake
from .unions import with_defaults

SPEC = ModelSpec(
    image_size=IMAGE_SIZE,
    channels=1,
    network=DDPMUNet(base_channels=8, channel_multipliers=(1,), blocks_per_level=1, attention_sizes=()),
    path=VPLinear(),
    classes=3,
)
SAMPLER = DDIM(steps=5)
GUIDED = ClassifierFreeGuidance(scale=2.0)
SWITCHES = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
GRID_SAMPLERS = [each for each in with_defaults(Sampler) if not isinstance(each, RK45)]


class Looking(nn.Module):
    """Notes the arithmetic that it is called in, and that of its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.seen: list[str] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen += [switch.fp32_precision for switch in SWITCHES]
        output: Tensor = self.convolution(x)
        self.seen.append(str(output.dtype))
        return output


class Plain(nn.Module):
    """A network without autocast, which there is none of where tensors have no values."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        output: Tensor = self.convolution(x) + (t + label)[:, None, None, None]
        return output


def network(spec: ModelSpec = SPEC) -> nn.Module:
    torch.manual_seed(0)
    return awake(spec.build()).eval().requires_grad_(False)


def drawn(execution: Execution, guidance: Guidance, images: int, sampler: Sampler = SAMPLER) -> Tensor:
    """Grey levels. int32 [N, H, W, 1]."""
    return generate(TrainedModel(SPEC, execution.of(network())), sampler, torch.arange(images), None, guidance).int()


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("fp32", ["ieee"] * 3 + ["torch.float32"]),
        ("tf32", ["tf32"] * 3 + ["torch.float32"]),
        ("bf16", ["ieee"] * 3 + ["torch.bfloat16"]),
    ],
)
def test_the_network_alone_is_executed_in_its_precision(precision: str, expected: list[str]) -> None:
    before = [switch.fp32_precision for switch in SWITCHES]
    looking = Looking()
    executed = Execution.model_validate({"precision": precision}).of(looking)
    executed(torch.zeros(1, 1, 4, 4), torch.zeros(1))
    assert looking.seen == expected
    assert [switch.fp32_precision for switch in SWITCHES] == before
    with pytest.raises(RuntimeError):
        executed(torch.zeros(1, 2, 4, 4), torch.zeros(1))
    assert [switch.fp32_precision for switch in SWITCHES] == before
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("guidance", [NO_GUIDANCE, GUIDED], ids=["plain", "guided"])
def test_eager_float32_is_the_network_itself_to_the_bit(guidance: Guidance) -> None:
    bare = generate(TrainedModel(SPEC, network()), SAMPLER, torch.arange(4), None, guidance)
    torch.testing.assert_close(drawn(EAGER, guidance, 4), bare.int(), rtol=0, atol=0)


@pytest.mark.parametrize("guidance", [NO_GUIDANCE, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("sampler", [SAMPLER, DPMSolverPP(steps=5)], ids=["ddim", "dpm_solver_pp"])
def test_bfloat16_stays_in_the_network_and_moves_images_by_few_grey_levels(
    guidance: Guidance, sampler: Sampler
) -> None:
    """8 bits of an output of order 1 are 1/256, and half a grey level is 1/255."""
    exact, rounded = drawn(EAGER, guidance, 8, sampler), drawn(Execution(precision="bf16"), guidance, 8, sampler)
    off = (rounded - exact).abs().float()
    assert 0 < off.mean() < 2.5
    model = TrainedModel(SPEC, Execution(precision="bf16").of(network()))
    states = trajectory(model, sampler, torch.arange(2), None, guidance)
    assert {state.x.dtype for state in states} == {torch.float32}


def test_a_compiled_network_draws_the_same_images_with_guidance_and_without() -> None:
    """Two guided images are as large a batch as four plain ones: compiled once."""
    model = TrainedModel(SPEC, Execution(compile=True).of(network()))
    for guidance, images in ((NO_GUIDANCE, 4), (GUIDED, 2)):
        compiled = generate(model, SAMPLER, torch.arange(images), None, guidance).int()
        assert (compiled - drawn(EAGER, guidance, images)).abs().max() <= 1


def states_on_no_device(sampler: Sampler, guidance: Guidance) -> Iterator[Tensor]:
    """What a sampler makes where tensors have shapes and no values, so that a look at one raises."""
    plain = Plain().to("meta")
    seeds = torch.arange(2, device="meta")
    for state in trajectory(TrainedModel(SPEC, plain), sampler, seeds, None, guidance):
        yield state.x


@pytest.mark.parametrize("guidance", [NO_GUIDANCE, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("sampler", GRID_SAMPLERS, ids=lambda sampler: str(sampler.kind))
def test_no_sampler_with_a_grid_waits_for_the_device(sampler: Sampler, guidance: Guidance) -> None:
    few = sampler.model_copy(update={"steps": 4})
    assert [x.shape for x in states_on_no_device(few, guidance)] == [(2, 1, IMAGE_SIZE, IMAGE_SIZE)] * 5


def test_an_adaptive_sampler_looks_at_the_device() -> None:
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        list(states_on_no_device(RK45(), NO_GUIDANCE))
