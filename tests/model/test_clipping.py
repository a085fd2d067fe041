"""Clipping keeps the predicted image in range, an image at a time, and says which noise then belongs to it."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import Denoiser, Prediction, RectifiedFlow, VPLinear
from model.clipping import Clip, clipped
from model.denoiser import coefficients
from model.gaussian_path import GaussianPath

from .unions import PATHS, each_path, name_of

CLIPS: tuple[Clip, ...] = get_args(Clip)
STATIC: tuple[Clip, ...] = ("x0", "x0_and_eps")
DYNAMIC: tuple[Clip, ...] = ("dynamic", "dynamic_and_eps")
CLIPPING = (*STATIC, *DYNAMIC)
each_clip = pytest.mark.parametrize("clip", CLIPPING)
SHAPE = (4, 3, 10, 10)


def saying(path: GaussianPath, x0: Tensor) -> Denoiser:
    """A denoiser that predicts x0, and the noise that belongs to it."""

    def denoiser(x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = coefficients(path, t, x_t)
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoiser


def asked(path: GaussianPath, x0: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and t, from the cleanest to the noisiest."""
    t = torch.linspace(path.t_min, path.t_max, len(x0), dtype=torch.float64)
    return torch.randn_like(x0), t


def images(scale: float) -> Tensor:
    return scale * torch.randn(SHAPE, dtype=torch.float64)


def test_every_way_is_known_here() -> None:
    assert set(CLIPS) == {"none", *CLIPPING}


def test_no_clipping_is_the_denoiser_itself() -> None:
    denoiser = saying(VPLinear(), images(5))
    assert clipped(denoiser, VPLinear(), "none") is denoiser


@each_clip
@each_path
def test_image_is_in_range_whatever_is_predicted(path: GaussianPath, clip: Clip) -> None:
    x0 = images(5)
    image = clipped(saying(path, x0), path, clip)(*asked(path, x0)).x0
    assert image.abs().max() == 1


@each_clip
def test_image_in_range_is_left_as_it_is(clip: Clip) -> None:
    path, x0 = VPLinear(), torch.rand(SHAPE, dtype=torch.float64) * 2 - 1
    x_t, t = asked(path, x0)
    found, expected = clipped(saying(path, x0), path, clip)(x_t, t), saying(path, x0)(x_t, t)
    assert torch.equal(found.x0, x0)
    torch.testing.assert_close(found.eps, expected.eps, rtol=0, atol=1e-12)


@each_path
@pytest.mark.parametrize("clip", ["x0_and_eps", "dynamic_and_eps"])
def test_recomputed_noise_belongs_to_the_clipped_image(path: GaussianPath, clip: Clip) -> None:
    x0 = images(5)
    x_t, t = asked(path, x0)
    prediction = clipped(saying(path, x0), path, clip)(x_t, t)
    alpha, sigma = coefficients(path, t, x_t)
    torch.testing.assert_close(alpha * prediction.x0 + sigma * prediction.eps, x_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("clip", ["x0", "dynamic"])
def test_noise_stays_the_networks_where_only_the_image_is_clipped(clip: Clip) -> None:
    path, x0 = VPLinear(), images(5)
    x_t, t = asked(path, x0)
    assert torch.equal(clipped(saying(path, x0), path, clip)(x_t, t).eps, saying(path, x0)(x_t, t).eps)


@pytest.mark.parametrize("clip", STATIC)
def test_static_clipping_moves_nothing_but_what_is_out_of_range(clip: Clip) -> None:
    x0 = images(1)
    image = clipped(saying(VPLinear(), x0), VPLinear(), clip)(*asked(VPLinear(), x0)).x0
    inside = x0.abs() <= 1
    assert torch.equal(image[inside], x0[inside])
    assert torch.equal(image[~inside], x0[~inside].sign())


@pytest.mark.parametrize("clip", DYNAMIC)
def test_dynamic_clipping_divides_by_each_images_own_percentile(clip: Clip) -> None:
    """Saharia et al. 2022, section 2.3, in Python: of 300 numbers it lies between the 298th and the 299th."""
    x0 = images(1) * torch.tensor([0.1, 1, 3, 10], dtype=torch.float64).view(-1, 1, 1, 1)
    image = clipped(saying(VPLinear(), x0), VPLinear(), clip)(*asked(VPLinear(), x0)).x0
    for found, raw in zip(image, x0, strict=True):
        ordered = sorted(abs(value) for value in raw.flatten().tolist())
        limit = max(1.0, ordered[297] + 0.505 * (ordered[298] - ordered[297]))
        torch.testing.assert_close(found, raw.clamp(-limit, limit) / limit, rtol=0, atol=1e-12)
    assert torch.equal(image[0], x0[0])  # in range as a whole
    assert (image[3].abs() == 1).sum() == 2  # half a percent of 300, the most extreme ones


@pytest.mark.parametrize("clip", CLIPS)
@settings(max_examples=20)
@given(order=st.permutations(range(4)), cut=st.integers(1, 3))
def test_images_of_a_batch_do_not_mix(clip: Clip, order: list[int], cut: int) -> None:
    path, x0 = RectifiedFlow(), images(3)
    x_t, t = asked(path, x0)

    def of(rows: list[int]) -> Prediction:
        return clipped(saying(path, x0[rows]), path, clip)(x_t[rows], t[rows])

    together = of([0, 1, 2, 3])
    for rows in (order, order[:cut]):
        torch.testing.assert_close(of(rows).x0, together.x0[rows], rtol=0, atol=0)
        torch.testing.assert_close(of(rows).eps, together.eps[rows], rtol=0, atol=0)


@each_clip
@pytest.mark.parametrize("path", [PATHS[0], RectifiedFlow()], ids=name_of)
def test_float32_images_stay_float32(path: GaussianPath, clip: Clip) -> None:
    x0 = images(5).float()
    prediction = clipped(saying(path, x0), path, clip)(*asked(path, x0))
    assert prediction.x0.dtype == prediction.eps.dtype == torch.float32


@each_clip
def test_images_that_are_not_finite_are_not_made_to_look_so(clip: Clip) -> None:
    """NaN is refused at the end of sampling; a clipped one would be some grey level."""
    x0 = images(1)
    x0[2, 0, 0, 0] = float("nan")
    image = clipped(saying(VPLinear(), x0), VPLinear(), clip)(*asked(VPLinear(), x0)).x0
    assert image[2].isnan().any()
    assert not image[[0, 1, 3]].isnan().any()
