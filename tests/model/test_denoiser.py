"""The denoiser and the loss see images as the path says: x_t = alpha(t) x0 + sigma(t) eps."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model import EpsDenoiser, Path, VPCosine, VPLinear, simple_loss
from model.denoiser import coefficients

from .analytic import IdealNetwork, WavyNetwork

PATHS = [VPLinear(), VPCosine()]
T = torch.tensor([0, 1, 500, 999])
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.kind)


class Echo(nn.Module):
    """Predicts given noise; keeps what it was asked."""

    def __init__(self, eps: Tensor) -> None:
        super().__init__()
        self.eps = eps
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.asked.append((x_t, t))
        return self.eps


def images_and_noise(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.rand(4, 3, 5, 5, dtype=dtype) * 2 - 1, torch.randn(4, 3, 5, 5, dtype=dtype)


@each_path
def test_predicted_image_and_noise_make_up_the_input(path: Path) -> None:
    x_t = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    prediction = EpsDenoiser(WavyNetwork(path), path)(x_t, T)
    alpha, sigma = coefficients(path, T, x_t)
    torch.testing.assert_close(alpha * prediction.x0 + sigma * prediction.eps, x_t, rtol=0, atol=1e-10)


@each_path
def test_true_noise_gives_the_true_image(path: Path) -> None:
    x0, eps = images_and_noise()
    alpha, sigma = coefficients(path, T, x0)
    prediction = EpsDenoiser(Echo(eps), path)(alpha * x0 + sigma * eps, T)
    torch.testing.assert_close(prediction.x0, x0, rtol=0, atol=1e-10)


def test_bfloat16_output_is_taken_in_the_inputs_dtype() -> None:
    x_t, eps = torch.randn(2, 4, 3, 5, 5)
    prediction = EpsDenoiser(Echo(eps.bfloat16()), VPLinear())(x_t, T)
    assert prediction.eps.dtype == prediction.x0.dtype == torch.float32


def test_every_image_has_the_coefficients_of_its_own_time() -> None:
    alpha, sigma = coefficients(VPLinear(), T, torch.zeros(4, 3, 5, 5))
    assert alpha.shape == sigma.shape == (4, 1, 1, 1)
    assert alpha.dtype == torch.float32
    torch.testing.assert_close(alpha.flatten(), VPLinear().alpha(T).float())
    torch.testing.assert_close(sigma.flatten(), VPLinear().sigma(T).float())


@each_path
def test_loss_noises_the_images_to_their_times(path: Path) -> None:
    x0, eps = images_and_noise()
    network = Echo(eps)
    simple_loss(network, path, x0, T, eps)
    ((x_t, t),) = network.asked
    alpha, sigma = coefficients(path, T, x0)
    torch.testing.assert_close(x_t, alpha * x0 + sigma * eps)
    assert torch.equal(t, T)


def test_loss_is_the_mean_square_of_each_image() -> None:
    x0, eps = images_and_noise(torch.float32)
    wrong_by = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(4, 1, 1, 1)
    loss = simple_loss(Echo(eps + wrong_by), VPLinear(), x0, T, eps)
    torch.testing.assert_close(loss, torch.tensor([0.0, 1.0, 4.0, 9.0]))


def test_loss_of_a_bfloat16_network_is_float32() -> None:
    x0, eps = images_and_noise(torch.float32)
    loss = simple_loss(Echo(eps.bfloat16()), VPLinear(), x0, T, eps)
    assert loss.dtype == torch.float32
    assert 0 < loss.max() < 1e-4  # the rounding of eps itself is seen, and nothing else


def test_ideal_network_has_the_least_loss() -> None:
    """Of Gaussian images, alpha^2 std^2 / (alpha^2 std^2 + sigma^2) remains; any other network has more."""
    path, std, t = VPLinear(), 0.5, torch.full((4000,), 300)
    x0, eps = std * torch.randn(4000, 1, 4, 4), torch.randn(4000, 1, 4, 4)
    alpha, sigma = path.alpha(t[0]).item(), path.sigma(t[0]).item()
    least = alpha**2 * std**2 / (alpha**2 * std**2 + sigma**2)

    def loss(network: Any) -> float:
        return simple_loss(network, path, x0, t, eps).mean().item()

    assert loss(IdealNetwork(path, std=std)) == pytest.approx(least, rel=0.03)
    for other in (IdealNetwork(path, std=0.4), IdealNetwork(path, std=0.6), IdealNetwork(path, mean=0.1, std=std)):
        assert loss(other) > loss(IdealNetwork(path, std=std))
