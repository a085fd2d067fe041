"""Pictures hold the right pixels in the right places, and are whole files."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evaluation.errors import EvaluationError
from evaluation.pictures import (
    COLORS,
    _apart,
    _running_mean,
    bound_terms,
    denoising_strip,
    headed_rows,
    image_grid,
    loss_curve,
    quality_against_evaluations,
    quality_against_length,
    rate_distortion_curve,
    real_and_generated,
)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def shades(*values: int) -> np.ndarray:
    """One uniform grey 8x8 image for each value."""
    return np.tile(np.array(values, dtype=np.uint8)[:, None, None, None], (1, 8, 8, 1))


def test_grid_enlarges_tiny_images_by_whole_factors_without_blurring(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, size=(1, 8, 8, 1), dtype=np.uint8)
    image_grid(image, 4, tmp_path / "grid.png", min_pixels=20)
    picture = pixels(tmp_path / "grid.png")
    assert picture.shape == (3 * 8 + 4, 3 * 8 + 4, 3)
    np.testing.assert_array_equal(picture[3:-2:3, 3:-2:3, :1], image[0])
    assert set(np.unique(picture)) <= {*np.unique(image), 255}


def test_grid_reads_row_by_row_and_leaves_the_rest_white(tmp_path: Path) -> None:
    image_grid(shades(10, 20, 30, 40, 50), 3, tmp_path / "grid.png", min_pixels=8)
    picture = pixels(tmp_path / "grid.png")[:, :, 0]
    assert picture.shape == (2 * 10 + 2, 3 * 10 + 2)
    assert picture[6:24:10, 6::10].tolist() == [[10, 20, 30], [40, 50, 255]]
    assert (picture[:2] == 255).all()


def test_colour_images_keep_their_colours(tmp_path: Path) -> None:
    image = np.zeros((1, 60, 60, 3), dtype=np.uint8)
    image[..., 2] = 200
    image_grid(image, 1, tmp_path / "grid.png")
    assert pixels(tmp_path / "grid.png")[30, 30].tolist() == [0, 0, 200]


def test_real_images_are_on_the_left_under_their_heading(tmp_path: Path) -> None:
    real_and_generated(shades(0, 0, 0, 0), shades(100, 100), 2, tmp_path / "both.png")
    picture = pixels(tmp_path / "both.png")
    left, right = np.array_split(picture, 2, axis=1)
    assert (left == 100).all(axis=2).sum() == 0
    assert (left[30:] == 0).all(axis=2).sum() == 4 * 48 * 48
    assert (right == 100).all(axis=2).sum() == 2 * 48 * 48
    for half in (left, right):
        assert (half[:30] < 128).any()  # ink


def test_strip_shows_an_image_a_row_and_a_state_a_column(tmp_path: Path) -> None:
    frames = np.stack([shades(10, 40), shades(20, 50), shades(30, 60)])
    denoising_strip(frames, [999, 500, -1], tmp_path / "strip.png")
    picture = pixels(tmp_path / "strip.png")[30:, :, 0]
    cell = picture.shape[1] // 3
    assert picture[cell // 2 :: cell, cell // 2 :: cell].tolist() == [[10, 20, 30], [40, 50, 60]]


def test_rows_stand_under_their_headings_and_behind_their_names(tmp_path: Path) -> None:
    rows = np.stack([shades(10, 20, 30), shades(40, 50, 60)])
    headed_rows(rows, ["a", "", "c"], tmp_path / "bare.png", min_pixels=8)
    headed_rows(rows, ["a", "", "c"], tmp_path / "named.png", ["one", "two"], min_pixels=8)
    bare, named = pixels(tmp_path / "bare.png"), pixels(tmp_path / "named.png")
    assert [bare[45 + row * 26, 5 + column * 26, 0] for row in (0, 1) for column in (0, 1, 2)] == [
        10,
        20,
        30,
        40,
        50,
        60,
    ]
    margin = named.shape[1] - bare.shape[1]
    np.testing.assert_array_equal(named[:, margin:], bare)
    assert [(half < 128).any() for half in np.array_split(named[30:, :margin], 2)] == [True, True]


def test_images_are_enlarged_for_a_long_heading(tmp_path: Path) -> None:
    headed_rows(shades(10, 20)[None], ["a heading of some length", ""], tmp_path / "long.png")
    assert pixels(tmp_path / "long.png").shape[1] > 2 * 160


@pytest.mark.parametrize(("headings", "names"), [(["a"], []), (["a", "b"], ["one", "two"])])
def test_rows_without_a_heading_for_each_column_are_refused(
    tmp_path: Path, headings: list[str], names: list[str]
) -> None:
    with pytest.raises(EvaluationError, match=rf"{len(headings)} headings and {len(names)} names, expected"):
        headed_rows(shades(10, 20)[None], headings, tmp_path / "rows.png", names)


@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (2, 2, 8, 8, 1)])
def test_strip_without_a_time_for_each_state_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(EvaluationError, match=re.escape(f"frames {list(shape)} and 3 times")):
        denoising_strip(np.zeros(shape, dtype=np.uint8), [2, 1, -1], tmp_path / "strip.png")


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 8, 8, 1)),
        np.zeros((8, 8, 1), dtype=np.uint8),
        np.zeros((0, 8, 8, 1), dtype=np.uint8),
        np.zeros((1, 8, 8, 2), dtype=np.uint8),
    ],
)
def test_anything_but_uint8_images_is_refused(tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(EvaluationError, match=r"expected uint8 \[N, H, W, 1 or 3\]"):
        image_grid(images, 4, tmp_path / "grid.png")
    with pytest.raises(EvaluationError, match=r"expected uint8 \[N, H, W, 1 or 3\]"):
        real_and_generated(shades(1), images, 4, tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


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
