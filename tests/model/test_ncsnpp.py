"""The networks DDPM++ and NCSN++ are those that EDM trains: their sizes, their layers, their odd details."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import FirDownsample2D
from diffusers.models.resnet import ResnetBlock2D
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from model import DDIM, EMA, EDMPath, NetworkDenoiser, VPLinear, denoising_loss
from model.continuous_paths import ContinuousPath
from model.discrete_paths import DiscretePath
from model.ncsnpp import AttentionBlock, Condition, Downsample, NCSNpp, ResidualBlock, ShrunkenImage, SongUNet, Upsample
from model.targets import EDM, Eps, Target
from model.weightings import Simple

from .small_networks import LEVELS

ARCHITECTURES = ["ddpmpp", "ncsnpp"]
TAPS = {"ddpmpp": (1, 1), "ncsnpp": (1, 3, 3, 1)}


def narrow(architecture: str, channels: int = 1, classes: int = 0, **changes: Any) -> SongUNet:
    config = NCSNpp.model_validate(LEVELS | {"architecture": architecture} | changes)
    return config.build(image_size=8, channels=channels, out_channels=channels, classes=classes)


def awake(network: SongUNet) -> SongUNet:
    """The network with its almost-zero layers made random, so that every layer has a say in the output."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    return network


def trained_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("architecture", "augment_labels", "classes", "parameters"),
    [
        ("ddpmpp", 0, 0, 55_732_739),
        ("ddpmpp", 9, 0, 55_733_891),
        ("ddpmpp", 9, 10, 55_735_299),
        ("ncsnpp", 0, 0, 56_395_523),
        ("ncsnpp", 9, 0, 56_397_827),
        ("ncsnpp", 9, 10, 56_400_643),
    ],
)
def test_parameters_are_as_many_as_in_edms_network(
    architecture: str, augment_labels: int, classes: int, parameters: int
) -> None:
    """On CIFAR-10; counted in their code, with 9 numbers of augmentation and without."""
    config = NCSNpp.model_validate({"architecture": architecture, "augment_labels": augment_labels})
    with torch.device("meta"):
        assert trained_parameters(config.build(32, 3, 3, classes)) == parameters


@pytest.mark.parametrize("resolution", ["same", "down", "up"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_residual_block_is_that_of_diffusers_with_every_sum_halved(architecture: str, resolution: str) -> None:
    out = 24 if resolution == "same" else 16
    filtered: Any = "fir" if architecture == "ncsnpp" else None
    theirs = ResnetBlock2D(
        in_channels=16,
        out_channels=out,
        temb_channels=32,
        groups=4,
        groups_out=out // 4,
        skip_time_act=True,
        kernel=filtered,
        output_scale_factor=math.sqrt(2),
        use_in_shortcut=True,
        up=resolution == "up",
        down=resolution == "down",
    )
    resample = {"same": None, "down": Downsample(TAPS[architecture]), "up": Upsample(TAPS[architecture])}[resolution]
    ours = ResidualBlock(16, out, 32, dropout=0, resample=resample)
    names = {"time_emb_proj": "embedding", "conv_shortcut": "shortcut"}
    copy_weights(theirs, ours, names)
    x, embedding = torch.randn(2, 16, 6, 6).double(), torch.randn(2, 32).double()
    torch.testing.assert_close(ours(x, embedding), theirs(x, embedding), rtol=0, atol=1e-9)


def test_attention_is_that_of_diffusers_with_one_head_and_the_sum_halved() -> None:
    theirs = Attention(
        query_dim=16,
        heads=1,
        dim_head=16,
        bias=True,
        norm_num_groups=4,
        eps=1e-6,
        residual_connection=True,
        rescale_output_factor=math.sqrt(2),
    )
    ours = AttentionBlock(16).double()
    copy_weights(theirs, ours, {"group_norm": "norm", "to_out.0": "project"}, skip=("to_q", "to_k", "to_v"))
    layers = (theirs.to_q, theirs.to_k, theirs.to_v)
    ours.query_key_value.weight.data = torch.cat([layer.weight.data for layer in layers])[:, :, None, None]
    ours.query_key_value.bias = nn.Parameter(torch.cat([layer.bias.data for layer in layers]))
    x = torch.randn(2, 16, 3, 3).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-9)


def test_shrunken_image_is_convolved_and_filtered_as_in_diffusers() -> None:
    theirs = FirDownsample2D(3, 8, use_conv=True, fir_kernel=(1, 3, 3, 1))
    ours = ShrunkenImage(3, 8, TAPS["ncsnpp"])
    copy_weights(theirs, ours, {"Conv2d_0": "conv"})
    x = torch.randn(2, 3, 8, 8).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-9)


def copy_weights(theirs: nn.Module, ours: nn.Module, names: dict[str, str], skip: tuple[str, ...] = ()) -> None:
    """Random weights into theirs, and the same into ours, with both in float64; `names` of layers, theirs to ours."""
    targets = dict(ours.double().named_parameters())
    for name, weight in theirs.double().named_parameters():
        nn.init.normal_(weight, std=0.2)
        layer, _, kind = name.rpartition(".")
        if layer not in skip:
            target = targets[f"{names.get(layer, layer)}.{kind}"]
            target.data = weight.data.reshape(target.shape).clone()


def test_attention_stands_in_all_blocks_down_in_the_last_ones_up_and_in_the_first_of_the_middle() -> None:
    network = narrow("ddpmpp", blocks_per_level=2, attention_sizes=(4,))
    attention = [
        [isinstance(block.attention, AttentionBlock) for block in part]
        for part in (network.down, network.middle, network.up)
    ]
    assert attention[0] == [False, False, False, True, True]  # 8 pixels, shrinking block, 4 pixels
    assert attention[1] == [True, False]
    assert attention[2] == [False, False, True, False, False, False, False]  # 4 pixels, growing block, 8 pixels


def test_shrunken_image_joins_each_level_and_carries_what_it_became_there() -> None:
    network = awake(narrow("ncsnpp", channel_multipliers=(1, 1, 1), attention_sizes=()))
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    for module in (*network.down, *network.shrunken_images):
        module.register_forward_hook(lambda module, inputs, output: seen.update({module: (inputs[0], output)}))
    x = torch.randn(2, 1, 8, 8)
    network(x, torch.tensor([-0.3, 0.2]))
    _, first, after_first, second, after_second = network.down
    first_image, second_image = network.shrunken_images
    assert seen[first_image][0] is x
    for block, image, after in ((first, first_image, after_first), (second, second_image, after_second)):
        sum_of_both = (seen[block][1] + seen[image][1]) / math.sqrt(2)
        torch.testing.assert_close(seen[after][0], sum_of_both)
    assert seen[second_image][0] is seen[after_first][0]
    assert not narrow("ddpmpp").shrunken_images


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fresh_network_predicts_almost_nothing(architecture: str) -> None:
    output = narrow(architecture)(torch.randn(4, 1, 8, 8), torch.tensor([0.0, -1.0, 0.5, 1.0]))
    assert 0 < output.abs().max() < 1e-3


def test_initial_weights_are_uniform_of_the_average_fan() -> None:
    """Variance gain^2 / mean(fan-in, fan-out); biases 0. From 16 to 32 channels the fans are 144 and 288."""
    block = ResidualBlock(16, 32, 64, dropout=0, attention=True)
    attention = block.attention
    assert isinstance(attention, AttentionBlock)
    assert block.conv1.weight.var().item() == pytest.approx(1 / 216, rel=0.1)
    assert block.conv1.weight.abs().max() <= (3 / 216) ** 0.5
    assert block.conv2.weight.var().item() == pytest.approx(1e-10 / 288, rel=0.1, abs=0)
    assert attention.query_key_value.weight.var().item() == pytest.approx(0.2 / 64, rel=0.1)
    assert attention.project.weight.var().item() == pytest.approx(1e-10 / 32, rel=0.15, abs=0)
    biases = [value for name, value in block.named_parameters() if name.endswith("bias")]
    assert not any(bias.any() for bias in biases)


def test_fourier_frequencies_are_normal_of_std_16_turns() -> None:
    frequencies = Condition(512, fourier=True, classes=0, augment_labels=0).frequencies / (2 * math.pi)
    assert frequencies.shape == (512,)
    assert frequencies.std().item() == pytest.approx(16, rel=0.12)
    assert abs(frequencies.mean().item()) < 4 * 16 / 512**0.5


def test_fourier_frequencies_travel_with_the_weights_untrained() -> None:
    """As a parameter they are also in the average of the weights, which is all that is kept of a network."""
    name, network = "condition.frequencies", narrow("ncsnpp")
    assert name in dict(network.named_parameters())
    assert not network.condition.frequencies.requires_grad
    average = EMA(network)
    average.update(network.parameters(), decay=0.7)
    assert torch.equal(average.state_dict()[name], network.condition.frequencies)
    assert name not in narrow("ddpmpp").state_dict()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_reach_every_parameter(architecture: str) -> None:
    network = awake(narrow(architecture, channels=3, classes=2, augment_labels=9)).double()
    x, t = torch.randn(2, 3, 8, 8).double(), torch.tensor([-0.2, 0.7])
    network(x, t, torch.tensor([0, 1]), torch.randn(2, 9).double()).square().mean().backward()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        gradients = [parameter.grad]
        if name.endswith("query_key_value.bias"):
            q, k, v = parameter.grad.chunk(3)
            assert k.abs().max() < 1e-12  # adds the same to all logits of a query, so the softmax does not depend on it
            gradients = [q, v]
        assert all(gradient.abs().max() > 1e-9 for gradient in gradients), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_output_depends_on_time_and_on_every_pixel(architecture: str) -> None:
    network = awake(narrow(architecture))
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    output = network(x, torch.tensor([0.5]))
    assert not torch.allclose(output, network(x, torch.tensor([0.6])))
    output[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert (x.grad != 0).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_of_a_batch_do_not_mix(architecture: str) -> None:
    network = awake(narrow(architecture, classes=3)).double()
    x, t, label = torch.randn(4, 1, 8, 8).double(), torch.tensor([0.0, 0.1, 0.5, 1]), torch.tensor([0, 1, 2, 3])
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(network(x, t, label), alone, rtol=0, atol=1e-12)


def test_dropout_acts_in_training_only() -> None:
    network = awake(narrow("ddpmpp", dropout=0.5))
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([500])
    assert not torch.equal(network(x, t), network(x, t))
    network.eval()
    assert torch.equal(network(x, t), network(x, t))


def test_time_features_hold_sines_before_cosines() -> None:
    """Frequencies fall from 1 to 1 / 10,000, both included."""
    condition = Condition(8, fourier=False, classes=0, augment_labels=0)
    frequencies = 10_000 ** (-torch.arange(4) / 3)
    expected = torch.cat([(7 * frequencies).sin(), (7 * frequencies).cos()])
    torch.testing.assert_close(features_of(condition, torch.tensor([0, 7]))[1], expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_time_features_stay_float32_under_bfloat16_autocast(architecture: str) -> None:
    condition = Condition(128, architecture == "ncsnpp", classes=0, augment_labels=0)
    t = torch.tensor([998.0, 1000.0])
    assert t[0].bfloat16() == t[1].bfloat16()  # what rounding the times would do
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = features_of(condition, t)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, features_of(condition, t), rtol=0, atol=0)
    assert (features[0] - features[1]).abs().max() > 1


def features_of(condition: Condition, t: Tensor, label: Tensor | None = None) -> Tensor:
    """What the first dense layer is given."""
    seen: list[Tensor] = []
    with condition.dense1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        condition(t, label, None)
    return seen[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_network_tells_neighbouring_late_steps_apart_under_autocast(architecture: str) -> None:
    network = awake(narrow(architecture))
    x = torch.randn(1, 1, 8, 8).expand(2, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        late, last = network(x, torch.tensor([998.0, 1000.0]))
    assert not torch.equal(late, last)


def test_label_adds_a_column_of_weights_times_sqrt_classes_and_the_null_label_none() -> None:
    condition = Condition(8, fourier=False, classes=4, augment_labels=0)
    assert condition.label is not None
    nn.init.normal_(condition.label.bias)
    features = features_of(condition, torch.zeros(2), torch.tensor([1, 4]))
    no_label = torch.tensor([0.0] * 4 + [1.0] * 4) + condition.label.bias
    torch.testing.assert_close(features, torch.stack([no_label + 2 * condition.label.weight[:, 1], no_label]))


def test_every_label_gives_an_output_of_its_own_the_null_label_too() -> None:
    network = awake(narrow("ddpmpp", classes=2))
    outputs = network(torch.randn(1, 1, 8, 8).expand(3, 1, 8, 8), torch.zeros(3), torch.tensor([0, 1, 2]))
    assert torch.pdist(outputs.flatten(1)).min() > 1e-3


def test_augmentation_matters_and_zeros_are_as_none() -> None:
    network = awake(narrow("ddpmpp", augment_labels=9))
    x, t = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert torch.equal(network(x, t), network(x, t, augmentation=torch.zeros(2, 9)))
    for number in range(9):
        one = F.one_hot(torch.tensor([number, number]), 9).float()
        assert not torch.allclose(network(x, t), network(x, t, augmentation=one)), number


def test_label_of_a_network_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="built without classes and takes no label; pass None, or set classes"):
        narrow("ddpmpp")(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.tensor([0]))


def test_no_label_for_a_network_of_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has 3 classes and was given no label; pass int64 \[B\], 3 for none"):
        narrow("ddpmpp", classes=3)(torch.zeros(1, 1, 8, 8), torch.zeros(1))


def test_augmentation_of_a_network_that_is_not_told_of_it_is_refused() -> None:
    message = "built without augment_labels and takes no augmentation; pass None, or set augment_labels to 9"
    with pytest.raises(ValueError, match=message):
        narrow("ddpmpp")(torch.zeros(1, 1, 8, 8), torch.zeros(1), augmentation=torch.zeros(1, 9))


def test_image_size_that_does_not_halve_is_refused() -> None:
    with pytest.raises(ValueError, match="3 levels halve the image 2 times, but 30 pixels do not divide by 4"):
        NCSNpp().build(30, 3, 3, 0)


def test_attention_at_a_size_that_no_level_has_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"attention_sizes \[16\] are no level's; the levels have \[28, 14, 7\] pixels"
    ):
        NCSNpp().check_image_size(28)


@pytest.mark.parametrize(
    "bad",
    [
        {"architecture": "adm"},
        {"base_channels": 12},
        {"channel_multipliers": ()},
        {"channel_multipliers": (1, 0)},
        {"blocks_per_level": 0},
        {"dropout": 1},
        {"augment_labels": -1},
    ],
    ids=str,
)
def test_hyper_parameter_out_of_its_range_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        NCSNpp.model_validate(bad)


@example(architecture="ncsnpp", base=72, multipliers=[1, 2], blocks=1, augment_labels=0, classes=0)  # 216 channels meet
@settings(max_examples=8)
@given(
    architecture=st.sampled_from(ARCHITECTURES),
    base=st.integers(1, 40).map(lambda k: 8 * k),
    multipliers=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    blocks=st.integers(1, 2),
    augment_labels=st.integers(0, 9),
    classes=st.integers(0, 3),
)
def test_every_accepted_configuration_can_be_built(
    architecture: str, base: int, multipliers: list[int], blocks: int, augment_labels: int, classes: int
) -> None:
    config = NCSNpp.model_validate(
        {
            "architecture": architecture,
            "base_channels": base,
            "channel_multipliers": multipliers,
            "blocks_per_level": blocks,
            "attention_sizes": (8,),
            "augment_labels": augment_labels,
        }
    )
    with torch.device("meta"):
        network = config.build(image_size=8, channels=1, out_channels=2, classes=classes)
        label = torch.zeros(2, dtype=torch.int64) if classes else None
        augmentation = torch.zeros(2, augment_labels) if augment_labels else None
        assert network(torch.empty(2, 1, 8, 8), torch.zeros(2), label, augmentation).shape == (2, 2, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "path", "target", "grid", "iterations"),
    [("ddpmpp", VPLinear(), Eps(), "quadratic", 800), ("ncsnpp", EDMPath(), EDM(), "karras", 400)],
    ids=ARCHITECTURES,
)
def test_network_learns_sixteen_digits_by_their_number(
    architecture: str, path: DiscretePath | ContinuousPath, target: Target, grid: Any, iterations: int
) -> None:
    """Each digit is a class; what is sampled for it is that digit, much nearer than any two digits are."""
    digits = torch.from_numpy(load_digits().images[:16]).float()[:, None] / 8 - 1
    numbers = torch.arange(16)
    network = narrow(architecture, classes=16, base_channels=8, attention_sizes=())
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], betas=(0.9, 0.99))
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = 1e-2 * min((iteration + 1) / 20, 1, 2 * (1 - iteration / iterations))
        x0, label = digits.repeat(3, 1, 1, 1), numbers.repeat(3)
        if isinstance(path, EDMPath):
            t = (1.2 * torch.randn(48) - 1.2).exp().double()  # Karras et al. 2022, table 1
        else:
            t = torch.randint(0, 1000, (48,)).double()
        loss = denoising_loss(network, path, target, Simple(), x0, t, torch.randn_like(x0), label).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    sampler = DDIM(steps=20, grid=grid)
    noise = path.prior_std(sampler.start(path)) * torch.randn(16, 1, 8, 8)
    denoiser = NetworkDenoiser(network.eval(), path, target, numbers)
    with torch.inference_mode():
        *_, (_, samples) = sampler.trajectory(denoiser, path, noise, lambda _: torch.zeros_like(noise))
    distances = torch.cdist(samples.flatten(1), digits.flatten(1)) / 8  # root mean square of the pixels
    assert torch.pdist(digits.flatten(1)).min() / 8 > 0.37
    assert distances.diagonal().max() < 0.37
    assert torch.equal(distances.argmin(1), numbers)


def test_fourier_features_are_refused_where_they_tell_neighbouring_times_nothing() -> None:
    for architecture, path in (("ddpmpp", VPLinear()), ("ddpmpp", EDMPath()), ("ncsnpp", EDMPath())):
        NCSNpp(architecture=architecture).check_path(path)
    with pytest.raises(ValueError, match=r"frequencies made for log\(sigma\) / 4, which the paths edm and ve_sde tell"):
        NCSNpp(architecture="ncsnpp").check_path(VPLinear())
