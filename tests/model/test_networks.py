"""What every network keeps, whichever it is: shapes, labels, times, and no wait for a device."""

from hashlib import sha256
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.embedding import TimeEmbedding
from model.ncsnpp import Condition

from .small_networks import IMAGE_SIZE, KINDS, SMALL, awake, every_gradient, shape_of, told

CLASSES = 3
NEVER_MOVES = "query_key_value.1.bias"
"""A bias of the keys adds the same to all logits of a query, so the softmax and the loss do not depend on it."""
each_network = pytest.mark.parametrize("name", SMALL)


def built(name: str, classes: int = CLASSES) -> nn.Module:
    network: nn.Module = awake(SMALL[name].build(IMAGE_SIZE, 1, 1, classes))
    return network.eval()


def images(count: int) -> Tensor:
    return torch.randn(count, 1, IMAGE_SIZE, IMAGE_SIZE)


def test_every_kind_has_a_small_configuration_of_its_own() -> None:
    assert set(KINDS) <= set(SMALL)
    assert all(config.kind == name.partition("-")[0] for name, config in SMALL.items())


@pytest.mark.parametrize(
    ("name", "names", "total"),
    [
        ("ddpm_unet", "00087504536d", 49206.30392),
        ("adm_unet", "bbec58107b0a", 44543.49981),
        ("ncsnpp", "9197f37a9a39", 55265.26455),
    ],
)
def test_weights_keep_their_names_shapes_and_draws(name: str, names: str, total: float) -> None:
    """What was saved loads, and a seed starts the training that it always did; as before cross-attention was there."""
    weights = SMALL[name].build(IMAGE_SIZE, 1, 1, CLASSES).state_dict()
    shapes = "\n".join(f"{key} {tuple(weight.shape)}" for key, weight in weights.items())
    assert sha256(shapes.encode()).hexdigest()[:12] == names
    drawn = sum(place * weight.double().sum().item() for place, weight in enumerate(weights.values(), start=1))
    assert drawn == pytest.approx(total, abs=0.01)  # not to the bit: processors round the normal draws differently


@each_network
@pytest.mark.parametrize(("channels", "out_channels", "classes"), [(1, 1, 0), (3, 6, 0), (4, 8, 10)])
def test_output_is_an_image_of_out_channels(name: str, channels: int, out_channels: int, classes: int) -> None:
    shape = (2, out_channels, IMAGE_SIZE, IMAGE_SIZE)
    assert shape_of(SMALL[name], IMAGE_SIZE, channels, out_channels, classes) == shape
    network = SMALL[name].build(IMAGE_SIZE, channels, out_channels, classes)
    label = told(SMALL[name], classes, torch.tensor([0, classes]))
    assert network(torch.randn(2, channels, IMAGE_SIZE, IMAGE_SIZE), torch.tensor([3.0, 900.0]), label).shape == shape


@each_network
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_gradients_reach_every_parameter(name: str, classes: int) -> None:
    for parameter, largest in every_gradient(SMALL[name], classes).items():
        assert (largest < 1e-12) if parameter.endswith(NEVER_MOVES) else (largest > 1e-9), parameter


@each_network
def test_each_label_and_none_give_an_output_of_their_own(name: str) -> None:
    label = torch.arange(CLASSES + 1)
    outputs = built(name)(images(1).expand(CLASSES + 1, -1, -1, -1), torch.full((CLASSES + 1,), 500), label)
    apart = torch.pdist(outputs.flatten(1))
    assert apart.min() > 1e-3


@each_network
def test_missing_label_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"has 3 classes and was given no label; pass int64 \[B\], 3 for none"):
        built(name)(images(2), torch.tensor([1, 2]))


@each_network
def test_label_for_a_network_without_classes_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"without classes and takes no label; pass (None|a sequence, .*), or set classes"
    ):
        built(name, classes=0)(images(2), torch.tensor([1, 2]), torch.tensor([0, 0]))


@each_network
def test_output_depends_on_time_and_on_every_pixel(name: str) -> None:
    network, x = built(name, classes=0).double(), images(1).double().requires_grad_()
    label = told(SMALL[name], 0, torch.tensor([0]))
    output = network(x, torch.tensor([500]), label)
    assert not torch.allclose(output, network(x, torch.tensor([501]), label))
    output[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert (x.grad != 0).all()


@each_network
def test_images_of_a_batch_do_not_mix(name: str) -> None:
    network = built(name).double()
    x, t, label = images(4).double(), torch.tensor([0, 10, 500, 999]), torch.tensor([0, 1, 2, 3])
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(network(x, t, label), alone, rtol=0, atol=1e-12)


@each_network
def test_dropout_acts_in_training_only(name: str) -> None:
    config = type(SMALL[name])(**SMALL[name].model_dump() | {"dropout": 0.5})
    network, x, t = awake(config.build(IMAGE_SIZE, 1, 1, 0)), images(1), torch.tensor([500])
    label = told(config, 0, torch.tensor([0]))
    assert not torch.equal(network(x, t, label), network(x, t, label))
    network.eval()
    assert torch.equal(network(x, t, label), network(x, t, label))


@each_network
def test_late_steps_are_told_apart_under_autocast(name: str) -> None:
    """In bfloat16 step 998 is step 1000. The difference stays what it is in float32, up to bfloat16's 3 digits."""
    network, x, t = built(name, classes=0), images(1).expand(2, -1, -1, -1), torch.tensor([998.0, 1000.0])
    assert t.bfloat16()[0] == t.bfloat16()[1]
    label = told(SMALL[name], 0, torch.tensor([0]))

    def difference() -> Tensor:
        outputs: Tensor = network(x, t, None if label is None else label.expand(2, -1, -1)).float()
        return outputs[0] - outputs[1]

    exact = difference()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = difference()
    assert (rounded - exact).norm() < 0.3 * exact.norm()


@each_network
def test_time_embedding_is_float32_under_autocast(name: str) -> None:
    network, x, t = built(name, classes=0), images(2), torch.tensor([3.0, 900.0])
    (embedding,) = [module for module in network.modules() if isinstance(module, (TimeEmbedding, Condition))]
    found: list[Tensor] = []
    embedding.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    label = told(SMALL[name], 0, torch.tensor([0, 1]))
    network(x, t, label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(x, t, label)
    assert torch.equal(*found)


@each_network
def test_state_is_parameters_alone(name: str) -> None:
    """Constants are made anew by `build`, so that weights of one precision cannot carry in those of another."""
    network = built(name)
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


@each_network
def test_memory_format_does_not_matter(name: str) -> None:
    network, x, t = built(name, classes=0), images(2), torch.tensor([3, 900])
    label = told(SMALL[name], 0, torch.tensor([0, 1]))
    expected = network(x, t, label)
    network.to(memory_format=torch.channels_last)
    output = network(x.to(memory_format=torch.channels_last), t, label)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@each_network
def test_whole_network_is_one_graph(name: str) -> None:
    """torch.compile finds no place where Python would have to look at a value."""
    network, x, t, label = built(name), images(2), torch.tensor([3.0, 900.0]), torch.tensor([0, 3])
    torch.compiler.reset()  # it gives up on code that other tests have had compiled for many networks
    compiled: Any = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, label), network(x, t, label))
