"""Pictures hold the right pixels in the right places, and are whole files."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.errors import EvaluationError
from evaluation.pictures import denoising_strip, headed_rows, image_grid, noising_strip, real_and_generated


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


def test_the_way_to_noise_is_laid_out_like_the_way_back(tmp_path: Path) -> None:
    frames = np.stack([shades(10, 40), shades(20, 50), shades(30, 60)])
    noising_strip(frames, [-1, 500, 999], tmp_path / "there.png")
    denoising_strip(frames, [999, 500, -1], tmp_path / "back.png")
    there, back = pixels(tmp_path / "there.png"), pixels(tmp_path / "back.png")
    np.testing.assert_array_equal(there[30:], back[30:])
    assert not np.array_equal(there[:30], back[:30])  # "image" stands first


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


@pytest.mark.parametrize("strip", [denoising_strip, noising_strip])
@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (2, 2, 8, 8, 1)])
def test_strip_without_a_time_for_each_state_is_refused(tmp_path: Path, shape: tuple[int, ...], strip: Any) -> None:
    with pytest.raises(EvaluationError, match=re.escape(f"frames {list(shape)} and 3 times")):
        strip(np.zeros(shape, dtype=np.uint8), [2, 1, -1], tmp_path / "strip.png")


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
