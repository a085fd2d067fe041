"""Weightings are the papers' closed forms, and one weighting means the same loss whatever the network predicts."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model import EDMPath, RectifiedFlow, VPCosine, VPLinear, denoising_loss
from model.gaussian_path import GaussianPath
from model.targets import EDM, X0, Eps, Score, V
from model.weightings import P2, SNR, EDMWeighting, MinSNR, Simple, _Weighting

from .unions import PAIRS, WEIGHTINGS, each_path, name_of

each_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
VP = [VPLinear(), VPCosine(), VPLinear(zero_terminal_snr=True)]
each_vp = pytest.mark.parametrize("path", VP, ids=name_of)


def times_of(path: GaussianPath) -> Tensor:
    return torch.linspace(path.t_min, path.t_max, 201, dtype=torch.float64)


def snr_of(path: GaussianPath) -> Tensor:
    t = times_of(path)
    return (path.alpha(t) / path.sigma(t)) ** 2


def on_output(weighting: Any, target: Any, path: GaussianPath) -> Tensor:
    """The factor on the squared error of what the network predicts, at all times."""
    t = times_of(path)
    weight: Tensor = weighting.of_output(path.alpha(t), path.sigma(t), target.conversion(path, t).x0_out)
    return weight


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("path", [VPLinear(), EDMPath()], ids=name_of)
def test_snr_is_the_plain_error_of_the_noise(path: GaussianPath) -> None:
    close(on_output(SNR(), Eps(), path), torch.ones(201, dtype=torch.float64))
    close(on_output(SNR(), X0(), path), snr_of(path))
    close(on_output(SNR(), Score(), path), path.sigma(times_of(path)) ** 2)


@each_vp
def test_snr_on_v_is_snr_over_snr_plus_one(path: GaussianPath) -> None:
    close(on_output(SNR(), V(), path), snr_of(path) / (snr_of(path) + 1))


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_has_the_papers_forms_for_each_target(gamma: float) -> None:
    """Hang et al. 2023, section 3.4: of x0, eps and v."""
    path, weighting = VPLinear(), MinSNR(gamma=gamma)
    snr = snr_of(path)
    limited = snr.clamp(max=gamma)
    close(on_output(weighting, X0(), path), limited)
    close(on_output(weighting, Eps(), path), limited / snr)
    close(on_output(weighting, V(), path), limited / (snr + 1))
    assert not torch.allclose(on_output(weighting, V(), path), limited / snr, rtol=0.1)  # the known mistake


def test_min_snr_without_a_limit_is_snr() -> None:
    close(on_output(MinSNR(gamma=1e300), V(), VPLinear()), on_output(SNR(), V(), VPLinear()))


@pytest.mark.parametrize("k", [0.5, 1.0])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_p2_has_the_papers_form_for_the_noise(k: float, gamma: float) -> None:
    """Choi et al. 2022, eq. 8: lambda_t / (k + SNR)^gamma with lambda_t the plain error of the noise."""
    close(on_output(P2(k=k, gamma=gamma), Eps(), VPLinear()), 1 / (k + snr_of(VPLinear())) ** gamma)


@each_vp
def test_p2_of_gamma_zero_is_snr(path: GaussianPath) -> None:
    close(on_output(P2(gamma=0), V(), path), on_output(SNR(), V(), path))


@each_path
@pytest.mark.parametrize("data", [0.5, 1.0])
def test_edm_weighting_of_edms_output_is_one(path: GaussianPath, data: float) -> None:
    weight = on_output(EDMWeighting(sigma_data=data), EDM(sigma_data=data), path)
    close(weight, torch.ones(201, dtype=torch.float64))
    assert (on_output(EDMWeighting(sigma_data=data), EDM(sigma_data=2 * data), path) - 1).abs().max() > 0.1


def test_edm_weighting_is_the_papers() -> None:
    """Karras et al. 2022, table 1: (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on the image."""
    sigma = times_of(EDMPath())
    close(on_output(EDMWeighting(), X0(), EDMPath()), (sigma**2 + 0.25) / (sigma / 2) ** 2)


def test_simple_is_one_whatever_is_predicted() -> None:
    for path, target in PAIRS:
        assert (on_output(Simple(), target, path) == 1).all()


@each_weighting
def test_weights_are_finite_and_positive_where_there_is_an_image(weighting: Any) -> None:
    for path, target in PAIRS:
        weight = on_output(weighting, target, path)
        assert weight.dtype == torch.float64
        assert weight.isfinite().all()
        assert weight.float().isfinite().all()
        assert (weight[:-1] > 0).all()  # nothing may be left of it at the last
        assert weight[-1] >= 0


@pytest.mark.parametrize("path", [VPLinear(zero_terminal_snr=True), RectifiedFlow()], ids=name_of)
def test_weightings_by_snr_ignore_where_nothing_is_left_of_the_image(path: GaussianPath) -> None:
    for weighting in (SNR(), MinSNR(), P2()):
        assert on_output(weighting, X0(), path)[-1] == 0
    assert on_output(EDMWeighting(sigma_data=0.5), X0(), path)[-1] == 4


class WrongBy(nn.Module):
    """Predicts the image with a given error, whatever the target is."""

    def __init__(self, path: GaussianPath, target: Any, t: Tensor, x0: Tensor, eps: Tensor, error: Tensor) -> None:
        super().__init__()
        convert = target.conversion(path, t)
        alpha, sigma = (factor.view(-1, 1, 1, 1) for factor in (path.alpha(t), path.sigma(t)))
        out_x0, out_eps = (factor.view(-1, 1, 1, 1) for factor in (convert.out_x0, convert.out_eps))
        self.output: Tensor = out_x0 * (x0 + error) + out_eps * (eps - alpha / sigma * error)  # so that x_t stays

    def forward(self, _x_t: Tensor, _t: Tensor) -> Tensor:
        return self.output


@pytest.mark.parametrize(("path", "target"), PAIRS, ids=[f"{name_of(a)}-{name_of(b)}" for a, b in PAIRS])
def test_loss_is_that_of_the_image_whatever_is_predicted(path: Any, target: Any) -> None:
    """w(t) |x0 - prediction|^2 for every target alike, but for simple, which is the target's own."""
    t = path.t_min + torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=torch.float64) * (path.t_max - path.t_min)
    x0, eps, error = torch.randn(3, 4, 1, 3, 3, dtype=torch.float64)
    network = WrongBy(path, target, t, x0, eps, error)
    for weighting in WEIGHTINGS:
        if isinstance(weighting, Simple):
            continue
        loss = denoising_loss(network, path, target, weighting, x0, t, eps)
        weight = weighting.of_image(path.alpha(t), path.sigma(t))
        torch.testing.assert_close(loss.double(), weight * error.square().mean((1, 2, 3)), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("member", "bad"),
    [
        (MinSNR, {"gamma": 0}),
        (MinSNR, {"gamma": math.inf}),
        (P2, {"k": 0}),
        (P2, {"gamma": -1}),
        (EDMWeighting, {"sigma_data": 0}),
        (SNR, {"gamma": 1}),
        (Simple, {"k": 1}),
    ],
    ids=str,
)
def test_number_out_of_its_range_is_refused_by_name(member: type[Any], bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        member.model_validate(bad)


def test_weighting_without_a_factor_is_not_a_weighting() -> None:
    one = torch.ones(1, dtype=torch.float64)
    with pytest.raises(NotImplementedError):
        _Weighting(kind="none").of_output(one, one, one)
