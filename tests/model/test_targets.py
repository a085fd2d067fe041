"""Targets are linear views of the same pair (x0, eps): each conversion undoes itself, on every path that admits it."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import VESDE, VPSDE, EDMPath, Path, RectifiedFlow, SubVPSDE, VPLinear
from model.continuous_paths import ContinuousPath
from model.gaussian_path import GaussianPath
from model.targets import EDM, X0, Conversion, Eps, Score, V, Velocity, _Target

from .unions import PAIRS, PATHS, TARGETS, each_pair, name_of

CONTINUOUS = [path for path in PATHS if isinstance(path, ContinuousPath)]
each_continuous = pytest.mark.parametrize("path", CONTINUOUS, ids=name_of)
SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=8)
DATA_STDS = st.sampled_from([0.1, 0.5, 1.0, 3.0])


def times_at(path: GaussianPath, shares: list[float]) -> Tensor:
    return path.t_min + torch.tensor(shares, dtype=torch.float64) * (path.t_max - path.t_min)


def times_of(path: GaussianPath, count: int = 201) -> Tensor:
    return torch.linspace(path.t_min, path.t_max, count, dtype=torch.float64)


def noised(path: GaussianPath, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x0, eps and the x_t that they make."""
    x0, eps = torch.rand_like(t) * 2 - 1, torch.randn_like(t)
    return x0, eps, path.alpha(t) * x0 + path.sigma(t) * eps


def output_of(convert: Conversion, x0: Tensor, eps: Tensor) -> Tensor:
    return convert.out_x0 * x0 + convert.out_eps * eps


def image_and_noise(convert: Conversion, x_t: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    return convert.x0_x * x_t + convert.x0_out * output, convert.eps_x * x_t + convert.eps_out * output


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# What holds for every target.


def test_every_target_is_admitted_by_some_path_and_every_path_admits_most_targets() -> None:
    assert {target.kind for _, target in PAIRS} == {target.kind for target in TARGETS}
    for path in PATHS:
        assert sum(other == path for other, _ in PAIRS) >= len(TARGETS) // 2


@each_pair
@settings(max_examples=10)
@given(shares=SHARES)
def test_output_made_of_image_and_noise_gives_them_back(path: GaussianPath, target: Any, shares: list[float]) -> None:
    t = times_at(path, shares)
    x0, eps, x_t = noised(path, t)
    convert = target.conversion(path, t)
    image, noise = image_and_noise(convert, x_t, output_of(convert, x0, eps))
    close(image, x0)
    close(noise, eps)


@each_pair
@settings(max_examples=10)
@given(shares=SHARES)
def test_any_output_splits_the_input_into_image_and_noise(path: GaussianPath, target: Any, shares: list[float]) -> None:
    """Predictions that are wrong still satisfy x_t = alpha x0 + sigma eps, and say the output that they came from."""
    t = times_at(path, shares)
    x_t, output = torch.randn(2, len(t), dtype=torch.float64)
    convert = target.conversion(path, t)
    image, noise = image_and_noise(convert, x_t, output)
    largest = (path.alpha(t) * image).abs().max().item() + 1
    close(path.alpha(t) * image + path.sigma(t) * noise, x_t, 1e-12 * largest)
    close(output_of(convert, image, noise), output, 1e-9)


@each_pair
def test_numbers_are_float64_finite_and_shaped_like_the_time(path: GaussianPath, target: Any) -> None:
    t = times_of(path, 12).view(3, 4)
    for name, number in vars(target.conversion(path, t)).items():
        assert (number.shape, number.dtype) == (t.shape, torch.float64), name
        assert number.isfinite().all(), name


@each_pair
def test_numbers_are_on_the_device_of_the_time(path: GaussianPath, target: Any) -> None:
    t = torch.full((2,), 0.5, dtype=torch.float64, device="meta")
    assert {number.device.type for number in vars(target.conversion(path, t)).values()} == {"meta"}


@each_pair
def test_only_edm_scales_what_the_network_sees(path: GaussianPath, target: Any) -> None:
    scale = target.conversion(path, times_of(path)).scale
    assert bool((scale == 1).all()) == (target.kind != "edm")


# What each target is.


@pytest.mark.parametrize("path", [VPLinear(), VPSDE(), SubVPSDE(), VESDE(), EDMPath()], ids=name_of)
def test_outputs_are_the_papers(path: GaussianPath) -> None:
    t = times_of(path)
    x0, eps, _ = noised(path, t)
    alpha, sigma = path.alpha(t), path.sigma(t)
    expected = {Eps(): eps, X0(): x0, V(): alpha * eps - sigma * x0, Score(): -eps / sigma}
    for target, output in expected.items():
        close(output_of(target.conversion(path, t), x0, eps), output, 1e-12)


@pytest.mark.parametrize("path", [VPLinear(), VPSDE(), VESDE(), SubVPSDE()], ids=name_of)
def test_score_is_the_gradient_of_the_log_density(path: GaussianPath) -> None:
    t = times_of(path)
    x0, eps, x_t = noised(path, t)
    x_t.requires_grad_()
    density = torch.distributions.Normal(path.alpha(t) * x0, path.sigma(t))
    log_density = density.log_prob(x_t).sum()
    (gradient,) = torch.autograd.grad(log_density, x_t)
    close(output_of(Score().conversion(path, t), x0, eps), gradient, 1e-9)


@each_continuous
def test_velocity_is_the_derivative_of_the_noised_image(path: ContinuousPath) -> None:
    t = times_of(path)
    x0, eps, _ = noised(path, t)
    time = t.clone().requires_grad_()
    (derivative,) = torch.autograd.grad((path.alpha(time) * x0 + path.sigma(time) * eps).sum(), time)
    close(output_of(Velocity().conversion(path, t), x0, eps), derivative)


def test_velocity_of_rectified_flow_is_noise_minus_image() -> None:
    path = RectifiedFlow()
    t = times_of(path)
    x0, eps, _ = noised(path, t)
    assert torch.equal(output_of(Velocity().conversion(path, t), x0, eps), eps - x0)


def test_v_turns_a_variance_preserving_image_by_a_right_angle() -> None:
    """Salimans & Ho 2022, appendix D: with alpha = cos(phi), v = dx / dphi = cos(phi) eps - sin(phi) x0."""
    path = VPLinear()
    t = times_of(path)
    x0, eps, x_t = noised(path, t)
    phi = torch.atan2(path.sigma(t), path.alpha(t))
    v = output_of(V().conversion(path, t), x0, eps)
    close(v, phi.cos() * eps - phi.sin() * x0)
    close(phi.cos() * x_t - phi.sin() * v, x0)
    close(phi.sin() * x_t + phi.cos() * v, eps)


def karras(sigma: Tensor, data: float) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out and c_in. Karras et al. 2022, table 1."""
    total = sigma**2 + data**2
    return data**2 / total, sigma * data / total.sqrt(), 1 / total.sqrt()


@pytest.mark.parametrize("data", [0.5, 1.0, 0.2])
def test_edm_is_the_papers_preconditioning(data: float) -> None:
    sigma = times_of(EDMPath())
    convert = EDM(sigma_data=data).conversion(EDMPath(), sigma)
    for found, expected in zip((convert.x0_x, convert.x0_out, convert.scale), karras(sigma, data), strict=True):
        close(found, expected, 1e-13)


@pytest.mark.parametrize("path", PATHS, ids=name_of)
@given(data=DATA_STDS)
def test_edm_input_and_output_have_unit_variance_on_every_path(path: GaussianPath, data: float) -> None:
    """For images of the stated width, which is what the preconditioning is for. Karras et al. 2022, eq. 114 and 131."""
    t = times_of(path)
    convert = EDM(sigma_data=data).conversion(path, t)
    ones = torch.ones_like(t)
    close(convert.scale**2 * (path.alpha(t) ** 2 * data**2 + path.sigma(t) ** 2), ones, 1e-12)
    close(convert.out_x0**2 * data**2 + convert.out_eps**2, ones, 1e-12)


def test_edm_with_sigma_in_the_place_of_sigma_over_alpha_would_not_have_unit_variance() -> None:
    """The known mistake: table 1's formulas on a path that scales the image."""
    path = VPLinear()
    t = times_of(path)
    _, _, c_in = karras(path.sigma(t), 0.5)
    assert ((c_in**2 * (path.alpha(t) ** 2 * 0.25 + path.sigma(t) ** 2)) - 1).abs().max() > 0.1


@pytest.mark.parametrize("path", [path for path in PATHS if path.kind.startswith("vp_")], ids=name_of)
def test_edm_of_unit_data_is_minus_v_where_variance_is_preserved(path: GaussianPath) -> None:
    t = times_of(path)
    edm, v = EDM(sigma_data=1).conversion(path, t), V().conversion(path, t)
    ones = torch.ones_like(t)
    close(edm.scale, ones, 1e-12)
    for found, expected in [
        (edm.x0_x, v.x0_x),
        (edm.eps_x, v.eps_x),
        (edm.x0_out, -v.x0_out),
        (edm.eps_out, -v.eps_out),
        (edm.out_x0, -v.out_x0),
        (edm.out_eps, -v.out_eps),
    ]:
        close(found, expected, 1e-12)


@pytest.mark.parametrize("path", [path for path in PATHS if path.loses_image], ids=name_of)
@pytest.mark.parametrize("target", [V(), X0(), EDM()], ids=name_of)
def test_image_can_be_told_where_nothing_is_left_of_it(path: GaussianPath, target: Any) -> None:
    """There x_t is the noise, and the output has to be the image but for sign and scale."""
    end = torch.tensor([path.t_max], dtype=torch.float64)
    convert = target.conversion(path, end)
    assert convert.x0_out.abs() > 0.1
    assert convert.x0_x == 0
    assert convert.eps_x == 1
    assert convert.eps_out == 0


# Refusals.


@pytest.mark.parametrize("target", [Eps(), Score()], ids=name_of)
@pytest.mark.parametrize(
    "path", [*(path for path in PATHS if path.loses_image), VPLinear(T=100_000), VPSDE(beta_max=300)], ids=name_of
)
def test_noise_as_target_is_refused_where_it_does_not_tell_the_image(path: Path, target: Any) -> None:
    message = (
        rf"^the noise \({target.kind}\) does not tell the image where alpha = 0, as at the noisy end of this path; "
        r"use target v, x0, edm or \(in continuous time\) velocity$"
    )
    with pytest.raises(ValueError, match=message):
        target.check(path)


@pytest.mark.parametrize("path", [path for path in PATHS if path not in CONTINUOUS], ids=name_of)
def test_velocity_is_refused_in_discrete_time(path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^velocity is dx/dt, which a path of separate steps does not have; use targe"
    ):
        Velocity().check(path)


@pytest.mark.parametrize("beta_max", [300, 1e5])
@pytest.mark.parametrize("member", [VPSDE, SubVPSDE])
def test_velocity_is_refused_where_image_and_its_change_have_gone(member: Any, beta_max: float) -> None:
    path = member(beta_max=beta_max)
    with pytest.raises(
        ValueError, match=r"^velocity does not tell the image where alpha = 0 and hardly changes, as at"
    ):
        Velocity().check(path)
    for target in (V(), X0(), EDM()):
        target.check(path)
        assert target.conversion(path, times_of(path)).x0_out.isfinite().all()


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_width_of_the_data_must_be_positive_and_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="sigma_data"):
        EDM(sigma_data=bad)


def test_target_without_a_conversion_is_not_a_target() -> None:
    _Target().check(VPLinear())  # nothing is singular by default
    with pytest.raises(NotImplementedError):
        _Target().conversion(VPLinear(), torch.zeros((), dtype=torch.float64))
