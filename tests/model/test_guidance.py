"""Guidance is a denoiser made of a denoiser: exact at its ends, one network call, an image a matter of its own row."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from model import (
    DDIM,
    ClassifierFreeGuidance,
    ClassLabels,
    EDMPath,
    Eps,
    NetworkDenoiser,
    NoGuidance,
    Prediction,
    Unconditional,
    VPLinear,
)

CLASSES = 3
PATH = VPLinear()
LABEL = torch.tensor([0, 2, 1, 2])
T = torch.tensor([900.0, 500.0, 20.0, 0.0], dtype=torch.float64)


class Labelled(nn.Module):
    """Predicts noise that depends on image, time and label; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.calls.append(label)
        return torch.sin(x + t.view(-1, 1, 1, 1) / 300 + label.view(-1, 1, 1, 1))


def denoiser() -> NetworkDenoiser:
    return NetworkDenoiser(Labelled(), PATH, Eps())


def images() -> Tensor:
    return torch.randn(4, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def close(one: Prediction, other: Prediction, tolerance: float = 1e-12) -> bool:
    return all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in ((one.x0, other.x0), (one.eps, other.eps))
    )


def guided(x: Tensor, t: Tensor = T, **options: Any) -> Prediction:
    return ClassifierFreeGuidance(**options).guided(denoiser(), LABEL, CLASSES)(x, t)


def test_scale_1_is_the_labelled_and_scale_0_the_unlabelled_prediction() -> None:
    x = images()
    assert close(guided(x, scale=1.0), denoiser().of(LABEL)(x, T))
    assert close(guided(x, scale=0.0), denoiser().of(torch.full_like(LABEL, CLASSES))(x, T))
    assert close(NoGuidance().guided(denoiser(), LABEL, CLASSES)(x, T), denoiser().of(LABEL)(x, T))


def test_other_scales_lie_on_the_line_through_both() -> None:
    x = images()
    low, high, far = (guided(x, scale=scale) for scale in (0.0, 1.0, 3.5))
    torch.testing.assert_close(far.eps, low.eps + 3.5 * (high.eps - low.eps))
    torch.testing.assert_close(far.x0, low.x0 + 3.5 * (high.x0 - low.x0))


def test_guided_image_and_noise_make_up_the_input() -> None:
    x, alpha, sigma = images(), PATH.alpha(T).view(-1, 1, 1, 1), PATH.sigma(T).view(-1, 1, 1, 1)
    prediction = guided(x, scale=4.0)
    torch.testing.assert_close(alpha * prediction.x0 + sigma * prediction.eps, x)


def test_both_predictions_come_from_one_call() -> None:
    network = Labelled()
    ClassifierFreeGuidance().guided(NetworkDenoiser(network, PATH, Eps()), LABEL, CLASSES)(images(), T)
    (labels,) = network.calls
    assert labels.tolist() == [0, 2, 1, 2, 3, 3, 3, 3]


def test_outside_its_interval_the_labelled_prediction_stays() -> None:
    x = images()
    interval = guided(x, scale=3.0, noise_above=0.02, noise_below=5.0)
    everywhere, plain = guided(x, scale=3.0), denoiser().of(LABEL)(x, T)
    noise = (PATH.sigma(T) / PATH.alpha(T)).tolist()
    assert [0.02 <= level < 5.0 for level in noise] == [False, True, True, False]
    for row, expected in enumerate((plain, everywhere, everywhere, plain)):
        torch.testing.assert_close(interval.eps[row], expected.eps[row])


def test_an_interval_without_inside_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"noise_below 1.0 is not above noise_above 2.0; nothing would be guided"):
        ClassifierFreeGuidance(noise_above=2, noise_below=1)


def test_samplers_take_a_guided_denoiser_and_rows_stay_independent() -> None:
    x = images()

    def drawn(rows: list[int]) -> Tensor:
        guided = ClassifierFreeGuidance(scale=2).guided(denoiser(), LABEL[rows], CLASSES)
        *_, last = DDIM(steps=5, clip="none").trajectory(guided, PATH, x[rows], lambda _: x[rows])
        return last.x

    torch.testing.assert_close(drawn([3, 0]), drawn([0, 1, 2, 3])[[3, 0]], rtol=0, atol=1e-10)


def test_guidance_sharpens_a_mixture_to_the_asked_class() -> None:
    """Two classes, N(-1, 0.5^2) and N(1, 0.5^2), on EDM's path, where both ideal predictions are closed forms."""
    path = EDMPath()

    class Ideal(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
            sigma = (4 * c_noise).exp().view(-1, 1, 1, 1)
            eps = [sigma * (x - mean) / (0.25 + sigma**2) for mean in (-1.0, 1.0)]
            share = torch.sigmoid(2 * x / (0.25 + sigma**2))  # of the second class, given x
            both = (1 - share) * eps[0] + share * eps[1]
            which = label.view(-1, 1, 1, 1)
            return torch.where(which == 0, eps[0], torch.where(which == 1, eps[1], both))

    def drawn(scale: float) -> Tensor:
        x = 80 * torch.randn(2000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        label = torch.arange(2000) % 2
        guide = ClassifierFreeGuidance(scale=scale).guided(NetworkDenoiser(Ideal(), path, Eps()), label, null=2)
        *_, last = DDIM(steps=40, grid="karras", clip="none").trajectory(guide, path, x, lambda _: x)
        return torch.where(label == 1, last.x.flatten(), -last.x.flatten())  # positive: on the asked class's side

    right = {scale: (drawn(scale) > 0).double().mean().item() for scale in (0.0, 1.0, 3.0)}
    assert 0.45 < right[0.0] < 0.55
    assert 0.96 < right[1.0] < 0.99  # the closed form: Phi(2) = 0.977
    assert right[3.0] > right[1.0] + 0.008


def test_labels_are_withheld_at_their_rate_by_position_alone() -> None:
    labels, positions = torch.arange(20_000) % CLASSES, torch.arange(20_000)
    told = ClassLabels(classes=CLASSES, dropout=0.2).training_label(labels, 5, positions)
    withheld = told == CLASSES
    assert abs(withheld.double().mean().item() - 0.2) < 4 * (0.2 * 0.8 / 20_000) ** 0.5
    assert torch.equal(told[~withheld], labels[~withheld])
    part = ClassLabels(classes=CLASSES, dropout=0.2).training_label(labels[7_000:], 5, positions[7_000:])
    assert torch.equal(part, told[7_000:])
    assert torch.equal(ClassLabels(classes=CLASSES, dropout=0).training_label(labels, 5, positions), labels)


def test_an_unconditional_network_is_told_nothing() -> None:
    assert Unconditional().training_label(torch.zeros(3), 0, torch.arange(3)) is None
    assert Unconditional().classes == 0
