"""U-Nets that attend to a sequence: what it may be, what becomes of a label, what is refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import ADMUNet, CrossAttention, DDPMUNet
from model.cross_attention import Attention, FeedForward, SpatialTransformer

from .small_networks import CLOSEST, CROSSING, IMAGE_SIZE, LEVELS, SMALL, awake, overfit, shape_of

CLASSES = 3
WIDTH = CROSSING["cross_attention"].width
HAS_IT = [name for name in SMALL if name.endswith("-cross_attention")]
each_network = pytest.mark.parametrize("name", HAS_IT)
each_kind = pytest.mark.parametrize("kind", [DDPMUNet, ADMUNet])
TIMES = torch.tensor([3, 900])


def built(name: str, classes: int = 0) -> Any:
    return awake(SMALL[name].build(IMAGE_SIZE, 1, 1, classes)).double().eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 1, IMAGE_SIZE, IMAGE_SIZE).double()


def sequences(length: int, count: int = 2) -> Tensor:
    return torch.randn(count, length, WIDTH).double()


@each_network
def test_order_of_a_sequence_does_not_matter(name: str) -> None:
    network, x, sequence = built(name), images(), sequences(6)
    output = network(x, TIMES, sequence)
    shuffled = network(x, TIMES, sequence[:, torch.randperm(6)])
    torch.testing.assert_close(shuffled, output, rtol=0, atol=1e-12)
    assert not torch.allclose(network(x, TIMES, sequence.flip(2)), output, rtol=0, atol=1e-3)


@each_network
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_sequence_of_any_length_is_taken_with_and_without_classes(name: str, classes: int) -> None:
    network, x, sequence = built(name, classes), images(), sequences(1)
    output = network(x, TIMES, sequence)
    assert output.shape == x.shape
    repeated = network(x, TIMES, sequence.expand(-1, 77, -1))  # the same embedding often is the same mean
    torch.testing.assert_close(repeated, output, rtol=0, atol=1e-12)


@each_network
def test_label_is_the_sequence_of_its_class_and_nothing_else(name: str) -> None:
    network, x, label = built(name, CLASSES), images(), torch.tensor([1, CLASSES])
    assert network.sequences.table.shape == (CLASSES + 1, CROSSING["cross_attention"].tokens, WIDTH)
    assert network.label_embedding is None
    expected = network(x, TIMES, network.sequences.table[label])
    torch.testing.assert_close(network(x, TIMES, label), expected, rtol=0, atol=1e-12)


@each_network
def test_sequences_of_a_batch_do_not_mix(name: str) -> None:
    network, x, sequence = built(name), images(), sequences(3)
    alone = torch.cat([network(x[i : i + 1], TIMES[i : i + 1], sequence[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(network(x, TIMES, sequence), alone, rtol=0, atol=1e-12)


@each_network
def test_sequence_in_half_precision_is_taken_by_a_network_in_float32(name: str) -> None:
    network, x, sequence = built(name).float(), images().float(), sequences(3).bfloat16()
    assert torch.equal(network(x, TIMES, sequence), network(x, TIMES, sequence.float()))


@each_network
def test_attention_is_a_transformer_wherever_it_was_plain(name: str) -> None:
    """At the level of 4 pixels: one block down, the middle, two up."""
    modules = list(SMALL[name].build(IMAGE_SIZE, 1, 1, 0).modules())
    assert sum(isinstance(module, SpatialTransformer) for module in modules) == 4
    assert not any(type(module).__name__ == "AttentionBlock" for module in modules)


def test_sequences_of_changing_lengths_go_through_one_graph() -> None:
    network, x = built("ddpm_unet-cross_attention"), images()
    torch.compiler.reset()  # it gives up on code that other tests have had compiled for many networks
    compiled: Any = torch.compile(network, backend="eager", fullgraph=True)
    for length in (2, 5, 9):
        sequence = sequences(length)
        torch.testing.assert_close(compiled(x, TIMES, sequence), network(x, TIMES, sequence))


def test_fresh_transformer_changes_nothing() -> None:
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(transformer()(x, torch.randn(2, 3, WIDTH)), x)


def transformer() -> SpatialTransformer:
    return SpatialTransformer(nn.GroupNorm(4, 16), CROSSING["cross_attention"], dropout=0)


def test_pixels_have_no_positions() -> None:
    """Where pixels stand is known to convolutions alone: a shuffled image comes out shuffled."""
    network, x, sequence, order = (
        awake(transformer()).double(),
        torch.randn(2, 16, 4, 4),
        sequences(3),
        torch.randperm(16),
    )
    shuffled = x.flatten(2)[:, :, order].view_as(x).double()
    expected = network(x.double(), sequence).flatten(2)[:, :, order].view_as(x)
    torch.testing.assert_close(network(shuffled, sequence), expected, rtol=0, atol=1e-12)


def test_heads_attend_each_to_its_own_channels() -> None:
    layer = awake(Attention(16, WIDTH, heads=2, dropout=0)).double()
    pixels, context = torch.randn(2, 9, 16).double(), sequences(5)
    q, k, v = layer.query(pixels), layer.key(context), layer.value(context)
    mixed = []
    for head in (slice(0, 8), slice(8, 16)):
        weights = torch.einsum("bqc,bkc->bqk", q[..., head], k[..., head]).div(8**0.5).softmax(-1)
        mixed.append(weights @ v[..., head])
    torch.testing.assert_close(layer(pixels, context), layer.project(torch.cat(mixed, dim=-1)))


def test_second_half_of_the_hidden_layer_is_the_gate() -> None:
    layer, pixels = awake(FeedForward(8, dropout=0)), torch.randn(2, 9, 8)
    value, gate = layer.hidden(pixels).split(32, dim=-1)
    torch.testing.assert_close(layer(pixels), layer.out(value * F.gelu(gate)))
    assert not torch.allclose(layer(pixels), layer.out(gate * F.gelu(value)))


@each_kind
@pytest.mark.parametrize("classes", [0, CLASSES])
@pytest.mark.parametrize("sizes", [(), (8,), (8, 4)], ids=str)
def test_every_choice_of_levels_can_be_built(kind: Any, classes: int, sizes: tuple[int, ...]) -> None:
    assert shape_of(kind(**CROSSING | {"attention_sizes": sizes}), 8, 3, 6, classes) == (2, 6, 8, 8)


@each_kind
@pytest.mark.parametrize(
    ("sizes", "heads", "channels"), [((8, 4), 3, r"\[16, 32\]"), ((8,), 32, r"\[16\]"), ((), 5, r"\[32\]")], ids=str
)
def test_heads_that_do_not_divide_the_channels_are_refused(
    kind: Any, sizes: tuple[int, ...], heads: int, channels: str
) -> None:
    config = kind(**CROSSING | {"attention_sizes": sizes, "cross_attention": {"heads": heads}})
    message = rf"cross_attention.heads {heads} does not divide the channels {channels} of levels with attention; use"
    with pytest.raises(ValueError, match=message):
        config.check_image_size(8)
    with pytest.raises(ValueError, match=message):
        config.build(8, 1, 1, 0)


def test_heads_of_plain_attention_need_not_fit_where_there_is_none() -> None:
    ADMUNet(**CROSSING, heads=5).check_image_size(8)


@each_network
@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((2, 5, WIDTH + 1), r"\[2, 5, 13\]"),
        ((2, WIDTH), r"\[2, 12\]"),
        ((1, 5, WIDTH), r"\[1, 5, 12\]"),
        ((2, 0, WIDTH), r"\[2, 0, 12\]"),
    ],
    ids=["width", "no sequence", "batch", "empty"],
)
def test_sequence_that_does_not_fit_is_refused(name: str, shape: tuple[int, ...], found: str) -> None:
    message = rf"the sequence is {found}, but 2 images and cross_attention.width 12 need \[2, L, 12\], L of 1 or more; "
    for classes in (0, CLASSES):
        with pytest.raises(ValueError, match=message + "pass such a one, or set width"):
            built(name, classes)(images(), TIMES, torch.zeros(shape).double())


@each_network
def test_network_without_classes_needs_a_sequence(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"without classes and was given no sequence; pass a sequence, float \[B, L, 12\]"
    ):
        built(name)(images(), TIMES)
    with pytest.raises(
        ValueError, match=r"without classes and takes no label; pass a sequence, float \[B, L, 12\], or"
    ):
        built(name)(images(), TIMES, torch.tensor([0, 1]))


@each_network
def test_network_with_classes_says_that_a_sequence_will_do(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"given no label; pass int64 \[B\], 3 for none, or a sequence, float \[B, L, 12"
    ):
        built(name, CLASSES)(images(), TIMES)


@each_kind
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_sequence_for_a_network_without_cross_attention_is_refused(kind: Any, classes: int) -> None:
    network = kind(**LEVELS).build(IMAGE_SIZE, 1, 1, classes)
    with pytest.raises(
        ValueError, match=r"without cross_attention and takes no sequence, float \[2, 5, 12\]; pass int64"
    ):
        network(images(), TIMES, sequences(5).float())


@pytest.mark.parametrize("bad", [{"width": 0}, {"tokens": 0}, {"heads": 0}, {"depth": 1}], ids=str)
def test_hyper_parameter_out_of_its_range_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        CrossAttention.model_validate(bad)


@pytest.mark.slow
@each_network
def test_sixteen_images_are_learned_by_heart(name: str) -> None:
    loss, distances = overfit(SMALL[name], steps=400, learning_rate=6e-3)
    assert loss < 0.1
    assert distances.max() < CLOSEST
