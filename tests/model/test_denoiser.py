"""The denoiser and the loss see images as the path and the target say."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model import EDMPath, NetworkDenoiser, RectifiedFlow, Simple, VPLinear, denoising_loss
from model.denoiser import coefficients, expand
from model.gaussian_path import GaussianPath
from model.targets import EDM, Eps, Score, V, Velocity
from model.weightings import SNR, MinSNR

from .unions import PAIRS, each_pair, each_path

SHAPE = (5, 3, 4, 4)


def times_of(path: GaussianPath) -> Tensor:
    """As many as there are images, with both ends."""
    return path.nearest_training_time(torch.linspace(path.t_min, path.t_max, SHAPE[0], dtype=torch.float64))


def images_and_noise(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.rand(SHAPE, dtype=dtype) * 2 - 1, torch.randn(SHAPE, dtype=dtype)


def noised(path: GaussianPath, x0: Tensor, eps: Tensor) -> Tensor:
    alpha, sigma = coefficients(path, times_of(path), x0)
    return alpha * x0 + sigma * eps


def right_output(path: GaussianPath, target: Any, x0: Tensor, eps: Tensor) -> Tensor:
    convert = target.conversion(path, times_of(path))
    return expand(convert.out_x0, x0) * x0 + expand(convert.out_eps, x0) * eps


class Echo(nn.Module):
    """Predicts what it is given; keeps what it was asked."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        self.asked.append((x, conditioning))
        return self.output


# The denoiser.


@each_pair
def test_predicted_image_and_noise_make_up_the_input(path: GaussianPath, target: Any) -> None:
    x_t, output = torch.randn(2, *SHAPE, dtype=torch.float64)
    prediction = NetworkDenoiser(Echo(output), path, target)(x_t, times_of(path))
    alpha, sigma = coefficients(path, times_of(path), x_t)
    parts = (alpha * prediction.x0, sigma * prediction.eps)
    torch.testing.assert_close(sum(parts), x_t, rtol=0, atol=1e-12 * (1 + parts[0].abs().max().item()))


@each_pair
def test_right_output_gives_the_true_image_and_noise(path: GaussianPath, target: Any) -> None:
    x0, eps = images_and_noise()
    network = Echo(right_output(path, target, x0, eps))
    prediction = NetworkDenoiser(network, path, target)(noised(path, x0, eps), times_of(path))
    torch.testing.assert_close(prediction.x0, x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(prediction.eps, eps, rtol=0, atol=1e-10)


@each_pair
def test_network_is_asked_alike_in_training_and_in_sampling(path: GaussianPath, target: Any) -> None:
    x0, eps = images_and_noise()
    network = Echo(eps)
    denoising_loss(network, path, target, Simple(), x0, times_of(path), eps)
    NetworkDenoiser(network, path, target)(noised(path, x0, eps), times_of(path))
    (trained, told), (sampled, told_again) = network.asked
    torch.testing.assert_close(trained, sampled, rtol=0, atol=0)
    torch.testing.assert_close(told, told_again, rtol=0, atol=0)
    assert told.shape == SHAPE[:1]


def test_network_sees_the_scaled_image_and_the_conditioning_of_its_time() -> None:
    path, x_t = EDMPath(), torch.randn(SHAPE, dtype=torch.float64)
    network = Echo(x_t)
    NetworkDenoiser(network, path, EDM())(x_t, times_of(path))
    ((seen, told),) = network.asked
    std = (0.25 + times_of(path) ** 2).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(seen, x_t / std)
    torch.testing.assert_close(told, times_of(path).log() / 4)


@each_pair
def test_numbers_come_in_the_inputs_dtype_whatever_the_networks(path: GaussianPath, target: Any) -> None:
    x_t, output = torch.randn(2, *SHAPE)
    network = Echo(output.bfloat16())
    prediction = NetworkDenoiser(network, path, target)(x_t, times_of(path))
    ((seen, told),) = network.asked
    assert prediction.eps.dtype == prediction.x0.dtype == seen.dtype == told.dtype == torch.float32
    assert prediction.x0.isfinite().all()


@each_path
def test_every_image_has_the_coefficients_of_its_own_time(path: GaussianPath) -> None:
    alpha, sigma = coefficients(path, times_of(path), torch.zeros(SHAPE))
    assert alpha.shape == sigma.shape == (SHAPE[0], 1, 1, 1)
    assert alpha.dtype == sigma.dtype == torch.float32
    torch.testing.assert_close(alpha.flatten(), path.alpha(times_of(path)).float())
    torch.testing.assert_close(sigma.flatten(), path.sigma(times_of(path)).float())


# The loss.


@each_pair
def test_right_output_has_no_loss(path: GaussianPath, target: Any) -> None:
    x0, eps = images_and_noise()
    loss = denoising_loss(Echo(right_output(path, target, x0, eps)), path, target, Simple(), x0, times_of(path), eps)
    scale = right_output(path, target, x0, eps).square().mean((1, 2, 3))
    assert (loss <= 1e-12 * scale).all()  # the output is compared as float32


def test_loss_is_the_mean_square_of_each_image() -> None:
    """Ho et al. 2020, eq. 14."""
    x0, eps = images_and_noise(torch.float32)
    wrong_by = torch.tensor([0.0, 1, 2, 3, 4]).view(-1, 1, 1, 1)
    loss = denoising_loss(Echo(eps + wrong_by), VPLinear(), Eps(), Simple(), x0, times_of(VPLinear()), eps)
    torch.testing.assert_close(loss, torch.tensor([0.0, 1, 4, 9, 16]))


def test_loss_is_weighted_by_the_time_of_each_image() -> None:
    x0, eps = images_and_noise(torch.float32)
    path, t = VPLinear(), times_of(VPLinear())
    network = Echo(right_output(path, V(), x0, eps) + 2)
    loss = denoising_loss(network, path, V(), MinSNR(), x0, t, eps)
    snr = (path.alpha(t) / path.sigma(t)) ** 2
    torch.testing.assert_close(loss, (4 * snr.clamp(max=5) / (snr + 1)).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_of_float32_images_is_float32(dtype: torch.dtype) -> None:
    x0, eps = images_and_noise(torch.float32)
    for path, target in PAIRS:
        loss = denoising_loss(Echo(eps.to(dtype)), path, target, SNR(), x0, times_of(path), eps)
        assert (loss.dtype, loss.shape) == (torch.float32, SHAPE[:1])
        assert loss.isfinite().all()


def test_bfloat16_output_is_compared_in_float32() -> None:
    x0, eps = images_and_noise(torch.float32)
    loss = denoising_loss(Echo(eps.bfloat16()), VPLinear(), Eps(), Simple(), x0, times_of(VPLinear()), eps)
    assert 0 < loss.max() < 1e-4  # the rounding of eps itself is seen, and nothing else


class Ideal(nn.Module):
    """The least-squares output for independent Gaussian pixels: that of E[x0 | x_t] and E[eps | x_t]."""

    def __init__(self, path: Any, target: Any, mean: float, std: float, t: float) -> None:
        super().__init__()
        self.alpha, self.sigma = path.at(t)
        self.mean, self.std = mean, std
        self.convert = target.conversion(path, torch.tensor(t, dtype=torch.float64))

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        x_t = x / self.convert.scale
        residual = (x_t - self.alpha * self.mean) / (self.alpha**2 * self.std**2 + self.sigma**2)
        x0, eps = self.mean + self.alpha * self.std**2 * residual, self.sigma * residual
        return (self.convert.out_x0 * x0 + self.convert.out_eps * eps).to(x.dtype)  # type: ignore[no-any-return]  # a tensor


@pytest.mark.parametrize(
    ("path", "target", "share"),
    [
        (VPLinear(), Eps(), 0.3),
        (VPLinear(), V(), 0.3),
        (VPLinear(zero_terminal_snr=True), V(), 0.6),
        (RectifiedFlow(), Velocity(), 0.4),
        (EDMPath(), EDM(), 0.01),
        (VPLinear(), Score(), 0.3),
    ],
    ids=["eps", "v", "v rescaled", "velocity", "edm", "score"],
)
def test_ideal_network_has_the_least_loss(path: Any, target: Any, share: float) -> None:
    """For Gaussian images sigma^2 alpha^2 std^2 / variance remains of the noise; any other network has more."""
    std, t = 0.5, float(path.nearest_training_time(torch.tensor(share * path.t_max, dtype=torch.float64)))
    x0, eps = std * torch.randn(4000, 1, 4, 4), torch.randn(4000, 1, 4, 4)
    alpha, sigma = path.at(t)
    least = alpha**2 * std**2 / (alpha**2 * std**2 + sigma**2)  # of the noise; snr weighs all targets like it

    def loss(mean: float, std: float) -> float:
        times = torch.full((4000,), t, dtype=torch.float64)
        return denoising_loss(Ideal(path, target, mean, std, t), path, target, SNR(), x0, times, eps).mean().item()

    assert loss(0, std) == pytest.approx(least, rel=4 * math.sqrt(2 / x0.numel()))
    for mean, other in [(0, 0.4), (0, 0.6), (0.1, std)]:
        assert loss(mean, other) > loss(0, std)
