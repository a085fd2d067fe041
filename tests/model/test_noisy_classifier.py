"""The classifier that guides: Bayes' rule where it is ideal, nothing at scale 0, and a network like the others."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import (
    DDIM,
    ClassifierGuidance,
    Classifying,
    DDPMUNet,
    Denoiser,
    Eps,
    ModelSpec,
    NetworkDenoiser,
    NoisyClassifier,
    TrainedModel,
    VPCosine,
    VPLinear,
    generate,
)
from model.denoiser import coefficients
from model.gaussian_path import GaussianPath
from model.targets import V

from .small_networks import awake, digits
from .unions import PATHS, name_of

SMALL = NoisyClassifier(classes=3, base_channels=16, channel_multipliers=(1, 2), attention_sizes=(4,))
MEANS, STD = torch.tensor([-0.5, 0.6, 0.1]).double(), 0.3


class IdealClassifier(nn.Module):
    """Of one-pixel images that are N(mean of the class, STD^2), the classes alike; knows the time by itself."""

    def __init__(self, path: GaussianPath, t: Tensor) -> None:
        super().__init__()
        self.path, self.t = path, t

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = coefficients(self.path, self.t, x)
        off = x.flatten(1) - alpha.flatten(1) * MEANS.to(x.dtype)
        return -off.square() / (2 * (alpha.flatten(1) ** 2 * STD**2 + sigma.flatten(1) ** 2))


class Ideal(nn.Module):
    """The network that predicts v of such images perfectly, of one class or (label 3) of all."""

    def __init__(self, path: GaussianPath, t: Tensor) -> None:
        super().__init__()
        self.path, self.t = path, t

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        alpha, sigma = coefficients(self.path, self.t, x)
        variance = alpha**2 * STD**2 + sigma**2
        share = IdealClassifier(self.path, self.t)(x, t).softmax(1)
        share = torch.where((label < 3)[:, None], F.one_hot(label, 4)[:, :3].to(x.dtype), share)
        mean = (share @ MEANS.to(x.dtype)).view(-1, 1, 1, 1)
        x0 = mean + alpha * STD**2 / variance * (x - alpha * mean)
        eps = sigma / variance * (x - alpha * mean)
        return alpha * eps - sigma * x0


def ideal(path: GaussianPath, label: int, scale: float | None = None) -> tuple[Denoiser, Tensor, Tensor]:
    """The denoiser of this class (3: of all), guided to class 1 where there is a scale; and what to ask it."""
    shares = torch.linspace(0.02, 0.98, 9, dtype=torch.float64)
    t = path.training_time(shares)
    x = (path.alpha(t) * 0.2 + path.sigma(t) * torch.linspace(-1, 1, 9).double()).view(-1, 1, 1, 1)
    plain = NetworkDenoiser(Ideal(path, t), path, V()).of(torch.full((9,), label))
    if scale is None:
        return plain, x, t
    guidance = ClassifierGuidance(scale=scale, classifier=SMALL)
    return guidance.guided(plain, torch.ones(9, dtype=torch.int64), 0, IdealClassifier(path, t)), x, t


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_scale_1_of_an_ideal_classifier_is_bayes_rule_on_every_path(path: Any) -> None:
    guided, x, t = ideal(path, label=3, scale=1.0)
    expected, _, _ = ideal(path, label=1)
    torch.testing.assert_close(guided(x, t).x0, expected(x, t).x0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(guided(x, t).eps, expected(x, t).eps, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_image_and_noise_still_make_up_the_input_and_scale_0_is_no_guidance(path: Any) -> None:
    guided, x, t = ideal(path, label=3, scale=4.0)
    alpha, sigma = coefficients(path, t, x)
    torch.testing.assert_close(alpha * guided(x, t).x0 + sigma * guided(x, t).eps, x, rtol=1e-9, atol=1e-9)
    unguided, plain = ideal(path, label=3, scale=0.0)[0], ideal(path, label=3)[0]
    assert torch.equal(unguided(x, t).eps, plain(x, t).eps)
    assert torch.equal(unguided(x, t).x0, plain(x, t).x0)


@pytest.mark.parametrize("path", [path for path in PATHS if path.loses_image], ids=name_of)
def test_where_nothing_is_left_of_the_image_nothing_is_guided(path: Any) -> None:
    t = torch.full((2,), path.t_max, dtype=torch.float64)
    plain = NetworkDenoiser(Ideal(path, t), path, V()).of(torch.tensor([3, 3]))
    guided = ClassifierGuidance(scale=5, classifier=SMALL).guided(
        plain, torch.tensor([0, 1]), 0, IdealClassifier(path, t)
    )
    x = torch.tensor([-1.0, 2.0]).double().view(-1, 1, 1, 1)
    assert torch.equal(guided(x, t).x0, plain(x, t).x0)


def test_guidance_works_within_inference_mode_and_leaves_no_graph() -> None:
    spec = ModelSpec(
        image_size=8,
        channels=1,
        network=DDPMUNet(base_channels=16, channel_multipliers=(1,), blocks_per_level=1, attention_sizes=()),
        path=VPCosine(),
    )
    torch.manual_seed(0)
    classifier = awake(SMALL.build(8, 1))
    model = TrainedModel(spec, awake(spec.build()), classifier)
    seeds, sampler = torch.arange(3), DDIM(steps=3)
    pictures = [
        generate(model, sampler, seeds, label, ClassifierGuidance(scale=scale, classifier=SMALL))
        for scale, label in ((0, None), (50, None), (50, torch.tensor([0, 1, 2])), (50, torch.tensor([1, 1, 1])))
    ]
    assert torch.equal(pictures[1], pictures[2])  # seed modulo classes, though the network itself knows none
    assert not torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[2], pictures[3])
    assert all(parameter.grad is None for parameter in classifier.parameters())
    alone = generate(model, sampler, seeds[:1], guidance=ClassifierGuidance(scale=50, classifier=SMALL))
    assert (alone.int() - pictures[1][:1].int()).abs().max() <= 1


def test_guidance_without_a_classifier_or_a_label_is_refused() -> None:
    plain = NetworkDenoiser(nn.Identity(), VPLinear(), Eps())
    with pytest.raises(ValueError, match="needs the trained classifier, and a label for each image"):
        ClassifierGuidance(classifier=SMALL).guided(plain, torch.tensor([1]), 0)
    with pytest.raises(ValueError, match="needs the trained classifier, and a label for each image"):
        ClassifierGuidance(classifier=SMALL).guided(plain, None, 0, nn.Identity())


def test_sizes_that_do_not_halve_are_refused() -> None:
    with pytest.raises(ValueError, match="7 pixels do not divide by 2"):
        SMALL.build(7, 1)


def test_gradients_reach_every_parameter_and_images_do_not_mix() -> None:
    network = awake(SMALL.build(8, 2)).double().eval()
    x, t = torch.randn(3, 2, 8, 8).double(), torch.tensor([3.0, 500.0, 900.0])
    logits = network(x, t)
    assert logits.shape == (3, 3)
    torch.testing.assert_close(logits[1:2], network(x[1:2], t[1:2]))
    logits.square().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        moves = weight.grad.abs().max() > 1e-9
        assert moves or name.endswith("query_key_value.1.bias"), name  # the same for all logits of a query


def test_it_learns_noisy_digits_by_its_objective() -> None:
    spec = ModelSpec(image_size=8, channels=1, network=DDPMUNet(), path=VPCosine())
    objective = Classifying(spec, NoisyClassifier(classes=4, base_channels=16, channel_multipliers=(1, 2)))
    network, images, label = objective.build(), digits()[:4], torch.arange(4).repeat(16)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        t = torch.randint(0, 400, (64,)).double()
        loss = objective.losses(network, images[label], t, torch.randn(64, 1, 8, 8), label, None).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert abs(losses[0] - 1.386) < 0.4  # log 4: it knows nothing yet
    assert sum(losses[-10:]) / 10 < 0.15
