"""Augmentation does to images what its labels say, by closed forms."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.augmentation import AUGMENT_LABELS, AUGMENT_NUMBERS, Augmentation, warp

ALL = {"probability": 1.0}
X_FLIP, Y_FLIP, SCALE, COS, SIN, STRETCH_X, STRETCH_Y, RIGHT, DOWN = range(AUGMENT_LABELS)
COIN_X, COIN_Y, SCALING, ANGLE, STRETCHING, TURNED, DIRECTION, SHIFT_X, SHIFT_Y = 1, 3, 5, 7, 9, 10, 11, 13, 14


def numbers(count: int, **values: float | Tensor) -> Tensor:
    """Uniform numbers that do nothing where a kind falls, tails and medians, but for these in their places."""
    result = torch.full((count, AUGMENT_NUMBERS), 0.5, dtype=torch.float64)
    for name, value in values.items():
        result[:, globals()[name.upper()]] = torch.as_tensor(value, dtype=torch.float64)
    return result


def share_below(normal: float) -> float:
    """The uniform number that becomes this standard normal one."""
    return 0.5 * (1 + math.erf(normal / math.sqrt(2)))


def blob(size: int, x: float = 0.0, y: float = 0.0, wide: float = 3.0, high: float = 3.0, turn: float = 0.0) -> Tensor:
    """A hill at (x, y) pixels from the centre, y down; turn: counter-clockwise. -> float64 [1, 1, size, size]."""
    line = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    dx, dy = line[None, :] - x, y - line[:, None]  # dy upwards
    along, across = math.cos(turn) * dx + math.sin(turn) * dy, math.cos(turn) * dy - math.sin(turn) * dx
    return torch.exp(-((along / wide) ** 2 + (across / high) ** 2) / 2)[None, None]


def inside(x: Tensor) -> Tensor:
    """Without the border, where reflections show."""
    return x[..., 6:-6, 6:-6]


def uniform(count: int) -> Tensor:
    return torch.rand(count, AUGMENT_NUMBERS, dtype=torch.float64)


def test_probability_zero_leaves_images_as_they_are() -> None:
    x0 = torch.randn(8, 3, 8, 8)
    x, labels = Augmentation(probability=0).augment(x0, uniform(8))
    assert x is x0
    assert torch.equal(labels, torch.zeros(8, AUGMENT_LABELS))


def test_no_kinds_leave_images_as_they_are() -> None:
    x0 = torch.randn(8, 3, 8, 8)
    x, labels = Augmentation(probability=1, kinds=()).augment(x0, uniform(8))
    assert x is x0
    assert not labels.any()


@pytest.mark.parametrize(("kind", "coin", "label", "axis"), [("x_flip", "coin_x", 0, 3), ("y_flip", "coin_y", 1, 2)])
def test_flip_is_exact_told_and_its_own_inverse(kind: Any, coin: str, label: int, axis: int) -> None:
    x0 = torch.randn(2, 3, 8, 8)
    heads = numbers(2, **{coin: torch.tensor([0.1, 0.9])})
    augmentation = Augmentation(probability=1, kinds=(kind,))
    x, labels = augmentation.augment(x0, heads)
    assert torch.equal(x, torch.stack([x0[0].flip(axis - 1), x0[1]]))
    assert torch.equal(labels, F.one_hot(torch.tensor([label, label]), 9) * torch.tensor([[1.0], [0.0]]))
    assert torch.equal(augmentation.augment(x, heads)[0], x0)


def test_image_that_no_geometry_falls_on_stays_bitwise_in_a_batch_that_is_warped() -> None:
    x0 = torch.randn(64, 1, 8, 8)
    x, labels = Augmentation(probability=0.2, x_flip_always=False).augment(x0, uniform(64))
    untouched = ~labels.any(dim=1)
    assert 5 < untouched.sum() < 50
    assert torch.equal(x[untouched], x0[untouched])
    assert all(not torch.equal(x[i], x0[i]) for i in (~untouched).nonzero().flatten())


def test_warp_by_nothing_is_the_identity() -> None:
    """The wavelet is orthogonal: halving undoes doubling."""
    x = torch.randn(2, 3, 6, 10, dtype=torch.float64)
    torch.testing.assert_close(warp(x, torch.eye(2).double().expand(2, 2, 2), torch.zeros(2, 2).double()), x)


def test_translation_by_whole_pixels_moves_pixels_right_and_down() -> None:
    """An eighth of 32 by 16 pixels for each unit. What comes in from beyond the border is the image reflected there."""
    x0 = torch.randn(1, 2, 16, 32, dtype=torch.float64)
    drawn = numbers(1, shift_x=share_below(1.0), shift_y=share_below(-1.0))
    x, labels = Augmentation(probability=1, kinds=("translate",)).augment(x0, drawn)
    torch.testing.assert_close(
        labels, F.one_hot(torch.tensor([RIGHT]), 9).double() - F.one_hot(torch.tensor([DOWN]), 9)
    )
    torch.testing.assert_close(x[..., :-2, 4:], x0[..., 2:, :-4])
    torch.testing.assert_close(x[..., :-2, :4], x0[..., 2:, 1:5].flip(3))


def test_rotation_by_half_a_turn_is_both_flips() -> None:
    """On a smooth image, and but for 0.1 pixels: sym6 is not quite symmetric. Half a pixel would make 0.1 here."""
    x0 = blob(16, x=2.0, y=-3.0)
    x, labels = Augmentation(probability=1, kinds=("rotate",)).augment(x0, numbers(1, angle=1.0))
    torch.testing.assert_close(x, x0.flip(2, 3), rtol=0, atol=0.035)
    torch.testing.assert_close(labels[0], torch.tensor([0, 0, 0, -2.0, 0, 0, 0, 0, 0]).double())


def test_rotation_turns_counter_clockwise_by_the_angle_of_its_labels() -> None:
    turn = math.pi / 3
    drawn = numbers(1, angle=0.5 + turn / (2 * math.pi))
    x, labels = Augmentation(probability=1, kinds=("rotate",)).augment(blob(32, x=5.0), drawn)
    expected = blob(32, x=5 * math.cos(turn), y=-5 * math.sin(turn))
    torch.testing.assert_close(inside(x), inside(expected), rtol=0, atol=0.03)
    assert labels[0, COS].item() == pytest.approx(math.cos(turn) - 1)
    assert labels[0, SIN].item() == pytest.approx(math.sin(turn))


@pytest.mark.parametrize("label", [-1.5, -0.2, 0.2, 1.0])
def test_scaling_grows_the_image_by_two_to_a_fifth_of_its_label(label: float) -> None:
    drawn = numbers(1, scaling=share_below(label))
    x, labels = Augmentation(probability=1, kinds=("scale",)).augment(blob(32, x=4.0), drawn)
    s = 2 ** (0.2 * label)
    torch.testing.assert_close(inside(x), inside(blob(32, x=4 * s, wide=3 * s, high=3 * s)), rtol=0, atol=0.015)
    assert labels[0, SCALE].item() == pytest.approx(label)
    assert labels.count_nonzero() == 1


@pytest.mark.parametrize("turn", [None, math.pi / 6, -2.0])
def test_stretch_widens_along_its_direction_and_narrows_across(turn: float | None) -> None:
    drawn = numbers(1, stretching=share_below(1.5), turned=0.9)
    if turn is not None:
        drawn = numbers(1, stretching=share_below(1.5), turned=0.1, direction=0.5 + turn / (2 * math.pi))
    x, labels = Augmentation(probability=1, kinds=("stretch",)).augment(blob(32), drawn)
    s = 2**0.3
    torch.testing.assert_close(x, blob(32, wide=3 * s, high=3 / s, turn=turn or 0.0), rtol=0, atol=0.015)
    assert labels[0, STRETCH_X].item() == pytest.approx(1.5 * math.cos(turn or 0.0))
    assert labels[0, STRETCH_Y].item() == pytest.approx(1.5 * math.sin(turn or 0.0))


def test_what_shrinking_would_alias_is_filtered_out() -> None:
    """A wave of 0.45 cycles a pixel, shrunk to 0.6: 0.75 cycles a pixel do not exist. Plain sampling shows 0.25."""
    wave = torch.cos(2 * math.pi * 0.45 * torch.arange(64).double()).expand(1, 1, 64, 64)
    grow = torch.eye(2).double()[None] / 0.6
    shrunk = warp(wave, grow, torch.zeros(1, 2).double())[..., 20:-20, 20:-20]
    grid = F.affine_grid(torch.cat((grow, torch.zeros(1, 2, 1)), dim=2), [1, 1, 64, 64], align_corners=False)
    aliased = F.grid_sample(wave, grid, align_corners=False)[..., 20:-20, 20:-20]
    assert shrunk.std() < 0.25 * aliased.std()


def test_images_of_a_batch_do_not_mix() -> None:
    x0, drawn = torch.randn(6, 3, 8, 8, dtype=torch.float64), uniform(6)
    augmentation = Augmentation(**ALL)
    x, labels = augmentation.augment(x0, drawn)
    for i in range(6):
        alone = augmentation.augment(x0[i : i + 1], drawn[i : i + 1])
        torch.testing.assert_close(x[i : i + 1], alone[0], rtol=0, atol=1e-12)
        assert torch.equal(labels[i : i + 1], alone[1])


def test_kinds_that_are_left_out_change_no_other_draws() -> None:
    x0, drawn = torch.zeros(16, 1, 4, 4), uniform(16)
    _, labels = Augmentation(**ALL).augment(x0, drawn)
    _, without = Augmentation(probability=1, kinds=("y_flip", "translate", "scale")).augment(x0, drawn)
    kept = [Y_FLIP, SCALE, RIGHT, DOWN]
    assert torch.equal(without[:, kept], labels[:, kept])
    assert not without[:, [X_FLIP, COS, SIN, STRETCH_X, STRETCH_Y]].any()


def test_labels_have_the_shares_and_moments_of_their_kinds() -> None:
    n, p = 20_000, 0.25
    _, labels = Augmentation(probability=p).augment(torch.zeros(n, 1, 1, 1), uniform(n))
    share = (labels != 0).double().mean(0)
    expected = torch.tensor([0.5, p / 2, p, p, p, p, p / 2, p, p]).double()
    assert ((share - expected).abs() < 5 * (p / n) ** 0.5).all()
    happened = labels[:, SCALE][labels[:, SCALE] != 0]
    assert abs(happened.mean()) < 5 / len(happened) ** 0.5
    assert happened.std().item() == pytest.approx(1, abs=0.05)
    assert labels.dtype == torch.float32
    both = (labels[:, RIGHT] != 0) == (labels[:, DOWN] != 0)
    assert both.all()


def test_x_flip_falls_on_half_of_the_images_only_while_there_is_any_augmentation() -> None:
    drawn = numbers(1, coin_x=0.1)
    drawn[:, 0] = 0.9  # above any probability here
    for probability, always, flipped in [(0.1, True, 1), (0.1, False, 0), (0.0, True, 0)]:
        augmentation = Augmentation(probability=probability, x_flip_always=always)
        assert augmentation.augment(torch.zeros(1, 1, 2, 2), drawn)[1][0, X_FLIP] == flipped


@pytest.mark.parametrize("shape", [(4, 9), (3, AUGMENT_NUMBERS), (AUGMENT_NUMBERS,)])
def test_numbers_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"but 4 images need \(4, 15\); draw 15 uniform numbers for each image"):
        Augmentation().augment(torch.zeros(4, 1, 8, 8), torch.rand(shape))


@pytest.mark.parametrize("bad", [{"probability": 1.5}, {"probability": -0.1}, {"kinds": ["cutout"]}], ids=str)
def test_hyper_parameter_out_of_its_range_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Augmentation.model_validate(bad)


@settings(max_examples=20)
@given(height=st.integers(1, 9), width=st.integers(1, 9), channels=st.integers(1, 4), count=st.integers(1, 3))
def test_every_size_keeps_its_shape_and_stays_finite(height: int, width: int, channels: int, count: int) -> None:
    x, labels = Augmentation(**ALL).augment(torch.ones(count, channels, height, width), uniform(count))
    assert x.shape == (count, channels, height, width)
    assert labels.shape == (count, AUGMENT_LABELS)
    assert x.isfinite().all()
