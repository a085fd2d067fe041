"""Floating-point operations of networks: single layers by hand, whole ones by another way of counting."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import (
    ClassLabels,
    Conditioning,
    DDPMUNet,
    Denoising,
    ModelSpec,
    Network,
    Simple,
    Unconditional,
    VPCosine,
    evaluation_flops,
    training_flops,
)

from .small_networks import IMAGE_SIZE, SMALL

SIZE = 8


@dataclass(frozen=True)
class Layers:
    """An objective of a few layers: the mean of what they make of the images."""

    make: Callable[[], nn.Module]

    @property
    def spec(self) -> ModelSpec:
        """Says of what shape images are."""
        return ModelSpec(image_size=SIZE, channels=2, network=SMALL["ddpm_unet"], path=VPCosine())

    def build(self) -> nn.Module:
        return self.make()

    def losses(self, network: nn.Module, x0: Tensor, *_: Tensor | None) -> Tensor:
        return network(x0).flatten(1).mean(1)


class Attention(nn.Module):
    """Of 16 tokens of 4 numbers in 2 heads, made by one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 3 * 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x.reshape(-1, 16, 8)).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v)


def test_a_convolution_is_its_kernel_at_every_pixel_and_once_more_for_the_way_back() -> None:
    once = 2 * 3 * 3 * 2 * 5 * SIZE**2
    first = training_flops(Layers(lambda: nn.Conv2d(2, 5, 3, padding=1)), Unconditional())
    assert first == {"convolution": once, "convolution_backward": once}  # nobody asks for gradients of images


def test_a_layer_that_is_not_the_first_costs_twice_as_much_on_the_way_back() -> None:
    made = Layers(lambda: nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 7, 1)))
    first, second = 2 * 3 * 3 * 2 * 5 * SIZE**2, 2 * 5 * 7 * SIZE**2
    assert training_flops(made, Unconditional()) == {
        "convolution": first + second,
        "convolution_backward": first + 2 * second,
    }


def test_a_linear_layer_is_one_matrix_product() -> None:
    once = 2 * 128 * 10
    made = Layers(lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 10)))
    assert training_flops(made, Unconditional()) == {"addmm": once, "mm": once}


def test_attention_is_two_products_of_each_head_and_four_on_the_way_back() -> None:
    counted = training_flops(Layers(Attention), Unconditional())
    heads, tokens, width = 2, 16, 4
    assert counted.pop("bmm") == 3 * 2 * (2 * heads * tokens * tokens * width)
    assert sum(counted.values()) == 2 * (2 * tokens * 8 * 24)


@pytest.mark.parametrize("network", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("conditioning", [Unconditional(), ClassLabels(classes=3)], ids=["unconditional", "classes"])
def test_every_network_is_counted_and_costs_three_times_its_forward_way(
    network: Network, conditioning: Conditioning
) -> None:
    classes = conditioning.classes if isinstance(conditioning, ClassLabels) else 0
    if not classes and getattr(network, "cross_attention", None) is not None:
        pytest.skip("attends to classes")
    spec = ModelSpec(image_size=IMAGE_SIZE, channels=1, network=network, path=VPCosine(), classes=classes)
    counted = training_flops(Denoising(spec, Simple()), conditioning)
    forward = forward_flops(spec)
    assert sum(evaluation_flops(Denoising(spec, Simple()), conditioning).values()) == forward
    assert 2.5 < sum(counted.values()) / forward < 3.0


def forward_flops(spec: ModelSpec) -> int:
    """Of convolutions, linear layers and attention, by what their calls on real numbers get and give."""
    network = spec.build()
    label = (torch.zeros(1, dtype=torch.long),) if spec.classes else ()
    with Calls() as calls:
        network(torch.zeros(1, *spec.latent_shape), torch.zeros(1), *label)
    return calls.flops


class Calls(torch.overrides.TorchFunctionMode):
    """Counts the functions of torch that multiply and add."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # as torch's
        result = function(*args, **(kwargs or {}))
        if function in (F.conv2d, F.linear):
            self.flops += 2 * args[1][0].numel() * result.numel()
        elif function is F.conv_transpose2d:
            self.flops += 2 * args[1][0].numel() * args[0].numel()
        elif function is F.scaled_dot_product_attention:
            scores = args[0].numel() // args[0].shape[-1] * args[1].shape[-2]
            self.flops += 2 * scores * (args[0].shape[-1] + args[2].shape[-1])
        return result


def test_the_network_of_ddpm_for_cifar10_is_of_12_gflop_forward() -> None:
    """Ho et al. 2020, appendix B: 35.7 million parameters; about 6 GMAC are reported of it, some without attention."""
    spec = ModelSpec(image_size=32, channels=3, network=DDPMUNet(dropout=0), path=VPCosine())
    assert sum(parameter.numel() for parameter in spec.build().parameters()) == 35_746_307
    assert forward_flops(spec) == 12_443_713_536
    assert sum(training_flops(Denoising(spec, Simple()), Unconditional()).values()) == 37_323_931_648


def test_counting_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    spec = ModelSpec(image_size=SIZE, channels=1, network=SMALL["ddpm_unet"], path=VPCosine())
    training_flops(Denoising(spec, Simple()), Unconditional())
    assert torch.equal(torch.get_rng_state(), before)
