"""Plots show what they are given, and are whole files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evaluation.curves import (
    COLORS,
    _running_mean,
    bound_terms,
    loss_curve,
    path_curves,
    rate_distortion_curve,
)
from evaluation.errors import EvaluationError
from evaluation.quality_curves import _apart, quality_against_evaluations, quality_against_length
from model import EDMPath, GaussianPath, RectifiedFlow, VPCosine, VPLinear


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("points", [1, 3, 500])
def test_loss_curve_is_drawn_from_one_point_on(tmp_path: Path, points: int) -> None:
    seen = np.arange(1, points + 1) * 1000
    loss_curve(seen, np.exp(-seen / 1e5), tmp_path / "loss.png")
    picture = pixels(tmp_path / "loss.png")
    assert picture.shape == (540, 960, 3)
    blue = (picture[..., 2].astype(int) - picture[..., 0]) > 40
    assert blue[:, 100:700].any()


def test_loss_curve_leaves_out_what_is_not_finite(tmp_path: Path) -> None:
    loss_curve([1, 2, 3, 4], [0.5, np.nan, np.inf, 0.4], tmp_path / "with.png")
    loss_curve([1, 4], [0.5, 0.4], tmp_path / "without.png")
    np.testing.assert_array_equal(pixels(tmp_path / "with.png"), pixels(tmp_path / "without.png"))


def test_running_mean_of_a_straight_line_is_itself_inside() -> None:
    line = np.arange(200, dtype=np.float64)
    np.testing.assert_allclose(_running_mean(line)[5:-5], line[5:-5])


@pytest.mark.parametrize(
    ("seen", "loss", "match"),
    [
        ([1, 2], [0.5], "2 image counts and 1 losses"),
        ([], [], "none of the 0 losses is a positive number"),
        ([1, 2], [np.nan, np.inf], "none of the 2 losses"),
    ],
)
def test_loss_curve_without_losses_is_refused(tmp_path: Path, seen: list[float], loss: list[float], match: str) -> None:
    with pytest.raises(EvaluationError, match=match):
        loss_curve(seen, loss, tmp_path / "loss.png")


def count_of(picture: np.ndarray, color: str) -> int:
    return int((picture == np.frombuffer(bytes.fromhex(color[1:]), np.uint8)).all(axis=2).sum())


@pytest.mark.parametrize(
    ("draw", "x", "count"),
    [(quality_against_evaluations, 5, count) for count in (1, 8, 30)] + [(quality_against_length, 0.05, 2)],
)
def test_every_series_is_drawn_and_named_in_its_colour(tmp_path: Path, draw: Any, x: float, count: int) -> None:
    series = {f"sampler {number}": [(4 * x, 2 + number), (x, 9 + number)] for number in range(count)}
    draw(series, "fid", tmp_path / "sweep.png", ("held-out images", 1.5))
    picture = pixels(tmp_path / "sweep.png")
    names = picture[:, 800:]
    for color in COLORS[:count]:
        assert count_of(picture, color) > 100
        assert count_of(names, color) > 20


def test_names_are_drawn_as_they_are_and_not_as_formulas(tmp_path: Path) -> None:
    quality_against_evaluations({r"$weights$ of \$x_{": [(5.0, 1.0), (10.0, 2.0)]}, "fid", tmp_path / "plot.png")
    assert pixels(tmp_path / "plot.png").size


def test_the_order_of_points_does_not_matter_and_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    quality_against_evaluations({"a": [(5, 3), (10, 2), (50, 1)]}, "fid", tmp_path / "plain.png")
    mixed = {"a": [(50.0, 1.0), (5.0, 3.0), (20.0, np.inf), (10.0, 2.0)], "b": [(1.0, np.nan)]}
    quality_against_evaluations(mixed, "fid", tmp_path / "mixed.png")
    np.testing.assert_array_equal(pixels(tmp_path / "plain.png"), pixels(tmp_path / "mixed.png"))


@pytest.mark.parametrize(("series", "count"), [({}, 0), ({"a": [(5.0, np.nan)], "b": [(5.0, np.inf)]}, 2)])
def test_a_plot_without_scores_is_refused(
    tmp_path: Path, series: dict[str, list[tuple[float, float]]], count: int
) -> None:
    with pytest.raises(EvaluationError, match=f"sweep.png: none of {count} values of fid is a number"):
        quality_against_evaluations(series, "fid", tmp_path / "sweep.png")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_names_keep_their_order_their_distance_and_the_page(heights: list[float]) -> None:
    moved = np.array(_apart(heights, 0.05))
    order = np.argsort(heights, kind="stable")
    assert (np.diff(moved[order]) >= 0.05 - 1e-9).all()
    assert (moved >= 0).all()
    assert (moved <= 1 + 1e-9).all()


def test_names_that_have_room_stay_where_they_are_and_others_move_alike() -> None:
    assert _apart([0.9, 0.1, 0.5], 0.1) == pytest.approx([0.9, 0.1, 0.5])
    assert _apart([0.5, 0.5, 0.9], 0.1) == pytest.approx([0.45, 0.55, 0.9])


def ink_of(picture: np.ndarray, color: str) -> int:
    """Pixels of the plot, without its title, that have this colour."""
    return count_of(picture[60:], color)


@pytest.mark.parametrize("steps", [2, 30, 1000])
def test_terms_of_the_bound_are_drawn_for_chains_of_any_length(tmp_path: Path, steps: int) -> None:
    bound_terms(1 / np.arange(1, steps + 1) ** 1.5, tmp_path / "terms.png")
    picture = pixels(tmp_path / "terms.png")
    assert picture.shape == (540, 960, 3)
    assert ink_of(picture, COLORS[0]) > 300


def test_terms_that_have_no_logarithm_are_left_out(tmp_path: Path) -> None:
    bound_terms([1.0, 0.0, 0.2, -0.0], tmp_path / "with.png")
    assert ink_of(pixels(tmp_path / "with.png"), COLORS[0]) > 300


@pytest.mark.parametrize("terms", [[], [0.0, 0.0], [np.nan, np.inf], [[1.0, 2.0]]])
def test_a_bound_without_terms_is_refused(tmp_path: Path, terms: list[float]) -> None:
    with pytest.raises(EvaluationError, match=r"terms\.png: none of \d terms of the bound is a positive number"):
        bound_terms(terms, tmp_path / "terms.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("steps", [2, 30, 1000])
def test_rate_and_distortion_are_drawn_for_chains_of_any_length(tmp_path: Path, steps: int) -> None:
    rate = np.linspace(0, 2, steps)
    rate_distortion_curve(rate, 80 * np.exp(-rate), tmp_path / "rate.png")
    picture = pixels(tmp_path / "rate.png")
    assert picture.shape == (540, 960, 3)
    assert ink_of(picture, COLORS[0]) > 30


@pytest.mark.parametrize(
    ("rate", "distortion"), [([], []), ([1.0, 2.0], [3.0]), ([1.0, np.nan], [3.0, 2.0]), ([[1.0]], [[2.0]])]
)
def test_rates_without_their_distortions_are_refused(
    tmp_path: Path, rate: list[float], distortion: list[float]
) -> None:
    match = r"rate\.png: \d rates and \d distortions, expected as many of each and all finite"
    with pytest.raises(EvaluationError, match=match):
        rate_distortion_curve(rate, distortion, tmp_path / "rate.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [VPCosine(T=20), VPLinear(zero_terminal_snr=True), EDMPath(), RectifiedFlow()])
def test_the_path_is_drawn_on_both_sides_whatever_its_times(tmp_path: Path, path: GaussianPath) -> None:
    t = path.training_time(torch.linspace(0, 1, 200, dtype=torch.float64)).unique()
    path_curves(t.numpy(), path.alpha(t).numpy(), path.sigma(t).numpy(), tmp_path / "path.png")
    picture = pixels(tmp_path / "path.png")
    assert picture.shape == (432, 960, 3)
    assert all(count_of(half, COLORS[0]) > 100 for half in np.array_split(picture, 2, axis=1))


@pytest.mark.parametrize("sigma", [[], [0.0, 1.0], [1.0]])
def test_a_path_without_noise_at_each_time_is_refused(tmp_path: Path, sigma: list[float]) -> None:
    match = rf"path\.png: 2 times, 2 alphas and {len(sigma)} sigmas, expected as many"
    with pytest.raises(EvaluationError, match=match):
        path_curves([1, 2], [1, 0.5], sigma, tmp_path / "path.png")
    assert not list(tmp_path.iterdir())
