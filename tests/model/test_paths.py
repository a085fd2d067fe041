"""Paths are those of the papers, exact in float64 and refused where they would lose the image."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from model import Path, VPCosine, VPLinear
from model.paths import DiscretePath

from .reference import SCHEDULES, in_float64

PATHS: list[Path] = [VPLinear(), VPCosine()]
EVERY_STEP = torch.arange(1000)
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.kind)


@each_path
def test_alpha_bar_equals_diffusers_in_float64(path: Path) -> None:
    scheduler = in_float64(DDPMScheduler(beta_schedule=SCHEDULES[path.kind]))
    torch.testing.assert_close(path.alpha_bar(EVERY_STEP), scheduler.alphas_cumprod, rtol=1e-10, atol=0)


@each_path
def test_noised_images_equal_diffusers_in_float64(path: Path) -> None:
    scheduler = in_float64(DDPMScheduler(beta_schedule=SCHEDULES[path.kind]))
    x0, eps = torch.randn(2, 1000, 1, dtype=torch.float64)
    noised = path.alpha(EVERY_STEP)[:, None] * x0 + path.sigma(EVERY_STEP)[:, None] * eps
    torch.testing.assert_close(noised, scheduler.add_noise(x0, eps, EVERY_STEP), rtol=0, atol=1e-10)


def test_linear_path_ends_where_the_paper_says() -> None:
    assert VPLinear().alpha_bar(torch.tensor(999)).item() == pytest.approx(4.0358e-05, rel=1e-5)


def test_linear_betas_are_the_papers() -> None:
    betas = VPLinear().betas()
    assert (len(betas), betas[0].item(), betas[-1].item()) == (1000, 1e-4, 0.02)
    assert betas.diff().std() < 1e-15


def test_cosine_alpha_bar_is_the_squared_cosine_but_for_its_last_step() -> None:
    """Nichol & Dhariwal 2021, eq. 17; beta_max holds back the last step only."""
    angle = ((EVERY_STEP.double() + 1) / 1000 + 0.008) / 1.008 * math.pi / 2
    expected = angle.cos() ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    difference = (VPCosine().alpha_bar(EVERY_STEP) / expected - 1).abs()
    assert difference[:-1].max() < 1e-9
    assert VPCosine().betas()[-1] == 0.999


@each_path
def test_variance_is_preserved(path: Path) -> None:
    t = torch.arange(-1, path.T)
    torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones(path.T + 1).double())


@each_path
def test_noise_grows_with_every_step(path: Path) -> None:
    t = torch.arange(-1, path.T)
    assert (path.alpha(t).diff() < 0).all()
    assert (path.sigma(t).diff() > 0).all()


@each_path
def test_time_minus_one_is_the_data(path: Path) -> None:
    t = torch.tensor(-1)
    assert (path.alpha(t).item(), path.sigma(t).item()) == (1.0, 0.0)


@each_path
def test_coefficients_have_the_shape_of_the_time_and_are_float64(path: Path) -> None:
    for coefficient in (path.alpha(torch.zeros(2, 3, dtype=torch.int64)), path.sigma(torch.zeros(2, 3).long())):
        assert coefficient.shape == (2, 3)
        assert coefficient.dtype == torch.float64


@given(T=st.integers(2, 10_000), offset=st.floats(0, 0.99), beta_max=st.floats(1e-4, 0.999))
def test_cosine_betas_lie_between_zero_and_beta_max(T: int, offset: float, beta_max: float) -> None:
    betas = VPCosine(T=T, s=offset, beta_max=beta_max).betas()
    assert betas.min() > 0
    assert betas.max() <= beta_max


def test_paths_that_differ_in_one_number_do_not_share_a_table() -> None:
    last = torch.tensor(9)
    assert VPLinear(T=10).alpha(last) != VPLinear(T=10, beta_end=0.03).alpha(last)
    assert VPLinear(T=10).alpha(last) != VPCosine(T=10).alpha(last)


def test_path_made_while_the_default_device_is_meta_has_real_numbers() -> None:
    """As where a network is built without its weights, only to count them."""
    with torch.device("meta"):
        path = VPLinear(T=11)
    assert path.alpha(torch.tensor(0)).item() == pytest.approx(math.sqrt(1 - 1e-4))


def test_falling_betas_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"beta_start 0\.1 is above beta_end 0\.02; noise must grow with t"):
        VPLinear(beta_start=0.1)


@pytest.mark.parametrize("bad", [{"T": 100_000}, {"beta_end": 0.9}])
def test_path_that_loses_the_image_in_float32_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"alpha falls to .* at the last of T = \d+ steps, but float32 needs 1e-30"):
        VPLinear.model_validate(bad)


@pytest.mark.parametrize("bad", [{"T": 1}, {"beta_start": 0}, {"beta_end": 1}, {"beta_end": math.nan}, {"steps": 3}])
def test_number_out_of_its_range_is_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        VPLinear.model_validate(bad)


@pytest.mark.parametrize("bad", [{"s": -0.1}, {"s": 1}, {"beta_max": 1}])
def test_cosine_number_out_of_its_range_is_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        VPCosine.model_validate(bad)


def test_path_without_betas_is_not_a_path() -> None:
    with pytest.raises(NotImplementedError):
        DiscretePath()
