"""What every network keeps, whichever it is: shapes, labels, times, and no wait for a device."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .small_networks import IMAGE_SIZE, KINDS, SMALL, awake, every_gradient, shape_of

CLASSES = 3
NEVER_MOVES = "query_key_value.1.bias"
"""A bias of the keys adds the same to all logits of a query, so the softmax and the loss do not depend on it."""
each_kind = pytest.mark.parametrize("kind", KINDS)


def built(kind: str, classes: int = CLASSES) -> nn.Module:
    network: nn.Module = awake(SMALL[kind].build(IMAGE_SIZE, 1, 1, classes))
    return network.eval()


def images(count: int) -> Tensor:
    return torch.randn(count, 1, IMAGE_SIZE, IMAGE_SIZE)


@each_kind
def test_every_kind_has_a_small_configuration_of_its_own(kind: str) -> None:
    assert SMALL[kind].kind == kind


@each_kind
@pytest.mark.parametrize(("channels", "out_channels", "classes"), [(1, 1, 0), (3, 6, 0), (4, 8, 10)])
def test_output_is_an_image_of_out_channels(kind: str, channels: int, out_channels: int, classes: int) -> None:
    shape = (2, out_channels, IMAGE_SIZE, IMAGE_SIZE)
    assert shape_of(SMALL[kind], IMAGE_SIZE, channels, out_channels, classes) == shape
    network = SMALL[kind].build(IMAGE_SIZE, channels, out_channels, classes)
    label = torch.tensor([0, classes]) if classes else None
    assert network(torch.randn(2, channels, IMAGE_SIZE, IMAGE_SIZE), torch.tensor([3.0, 900.0]), label).shape == shape


@each_kind
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_gradients_reach_every_parameter(kind: str, classes: int) -> None:
    for name, largest in every_gradient(SMALL[kind].build(IMAGE_SIZE, 1, 1, classes), classes).items():
        assert (largest < 1e-12) if name.endswith(NEVER_MOVES) else (largest > 1e-9), name


@each_kind
def test_each_label_and_none_give_an_output_of_their_own(kind: str) -> None:
    label = torch.arange(CLASSES + 1)
    outputs = built(kind)(images(1).expand(CLASSES + 1, -1, -1, -1), torch.full((CLASSES + 1,), 500), label)
    apart = torch.pdist(outputs.flatten(1))
    assert apart.min() > 1e-3


@each_kind
def test_missing_label_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"has 3 classes and was given no label; pass int64 \[B\], 3 for none"):
        built(kind)(images(2), torch.tensor([1, 2]))


@each_kind
def test_label_for_a_network_without_classes_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="built without classes and takes no label; pass None, or set classes"):
        built(kind, classes=0)(images(2), torch.tensor([1, 2]), torch.tensor([0, 0]))


@each_kind
def test_output_depends_on_time_and_on_every_pixel(kind: str) -> None:
    network, x = built(kind, classes=0).double(), images(1).double().requires_grad_()
    output = network(x, torch.tensor([500]))
    assert not torch.allclose(output, network(x, torch.tensor([501])))
    output[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert (x.grad != 0).all()


@each_kind
def test_images_of_a_batch_do_not_mix(kind: str) -> None:
    network = built(kind).double()
    x, t, label = images(4).double(), torch.tensor([0, 10, 500, 999]), torch.tensor([0, 1, 2, 3])
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(network(x, t, label), alone, rtol=0, atol=1e-12)


@each_kind
def test_dropout_acts_in_training_only(kind: str) -> None:
    config = type(SMALL[kind])(**SMALL[kind].model_dump() | {"dropout": 0.5})
    network, x, t = awake(config.build(IMAGE_SIZE, 1, 1, 0)), images(1), torch.tensor([500])
    assert not torch.equal(network(x, t), network(x, t))
    network.eval()
    assert torch.equal(network(x, t), network(x, t))


@each_kind
def test_late_steps_are_told_apart_under_autocast(kind: str) -> None:
    """In bfloat16 step 998 is step 1000. The difference stays what it is in float32, up to bfloat16's 3 digits."""
    network, x, t = built(kind, classes=0), images(1).expand(2, -1, -1, -1), torch.tensor([998.0, 1000.0])
    assert t.bfloat16()[0] == t.bfloat16()[1]

    def difference() -> Tensor:
        outputs: Tensor = network(x, t).float()
        return outputs[0] - outputs[1]

    exact = difference()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = difference()
    assert (rounded - exact).norm() < 0.3 * exact.norm()


@each_kind
def test_state_is_parameters_alone(kind: str) -> None:
    """Constants are made anew by `build`, so that weights of one precision cannot carry in those of another."""
    network = built(kind)
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


@each_kind
def test_memory_format_does_not_matter(kind: str) -> None:
    network, x, t = built(kind, classes=0), images(2), torch.tensor([3, 900])
    expected = network(x, t)
    network.to(memory_format=torch.channels_last)
    output = network(x.to(memory_format=torch.channels_last), t)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@each_kind
def test_whole_network_is_one_graph(kind: str) -> None:
    """torch.compile finds no place where Python would have to look at a value."""
    network, x, t, label = built(kind), images(2), torch.tensor([3.0, 900.0]), torch.tensor([0, 3])
    compiled: Any = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, label), network(x, t, label))
