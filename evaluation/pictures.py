"""PNG pictures for people: sample grids, the way from noise to image and back, samples beside real images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .atomic import whole_file
from .errors import EvaluationError

PAPER, INK = "#ffffff", "#333333"
TEXT_PIXELS = 16
LINE_PIXELS = 30  # a line of text with its margins


def image_grid(images: NDArray[np.uint8], columns: int, path: Path, min_pixels: int = 48) -> None:
    """Images row by row. images: uint8 [N, H, W, C]; tiny ones are enlarged, see `_tiled`."""
    _check_images(images)
    _save(_tiled(images, columns, min_pixels), path)


def real_and_generated(
    real: NDArray[np.uint8], generated: NDArray[np.uint8], columns: int, path: Path, min_pixels: int = 48
) -> None:
    """Real images to the left, generated ones to the right, as many rows as the longer set needs."""
    _check_images(real)
    _check_images(generated)
    panels = [_tiled(images, columns, min_pixels) for images in (real, generated)]
    gap = 2 * LINE_PIXELS
    width = sum(panel.width for panel in panels) + gap
    page = Image.new("RGB", (width, max(panel.height for panel in panels) + LINE_PIXELS), PAPER)
    left = 0
    for panel, heading in zip(panels, (f"real ({len(real)})", f"generated ({len(generated)})"), strict=True):
        page.paste(panel, (left, LINE_PIXELS))
        _write(page, heading, left + panel.width // 2)
        left += panel.width + gap
    _save(page, path)


def headed_rows(
    rows: NDArray[np.uint8], headings: Sequence[str], path: Path, names: Sequence[str] = (), min_pixels: int = 72
) -> None:
    """Rows of images under the headings of their columns, each row behind its name where there are names.

    rows: uint8 [R, K, H, W, C]; headings: K, each above its column, for which tiny images are enlarged; names: R.
    """
    if rows.ndim != 5 or rows.shape[1] != len(headings) or len(names) not in (0, len(rows)):
        raise EvaluationError(
            f"headed rows: images {list(rows.shape)}, {len(headings)} headings and {len(names)} names, expected "
            f"[R, K, H, W, C], K of them and R or none"
        )
    images = rows.reshape(-1, *rows.shape[2:])
    _check_images(images)
    height, width = images.shape[1:3]
    widest = max(map(_text_width, headings))
    sheet = _tiled(images, len(headings), max(min_pixels, -(-widest * min(height, width) // width)))
    margin = max(map(_text_width, names), default=0) + TEXT_PIXELS if names else 0
    page = Image.new("RGB", (margin + sheet.width, LINE_PIXELS + sheet.height), PAPER)
    page.paste(sheet, (margin, LINE_PIXELS))
    for column, heading in enumerate(headings):
        _write(page, heading, margin + round((column + 0.5) * sheet.width / len(headings)))
    for row, name in enumerate(names):
        middle = LINE_PIXELS + round((row + 0.5) * sheet.height / len(rows))
        _write(page, name, margin // 2, middle)
    _save(page, path)


def denoising_strip(frames: NDArray[np.uint8], times: Sequence[float], path: Path) -> None:
    """From noise to image, left to right: one row per image, one column per state.

    frames: uint8 [S, N, H, W, C], noise first; times: t of the S states, of which the last is the image.
    """
    _check_times("denoising strip", frames, times)
    headed_rows(frames.swapaxes(0, 1), [*map(_at, times[:-1]), "image"], path)


def noising_strip(frames: NDArray[np.uint8], times: Sequence[float], path: Path) -> None:
    """From image to noise, left to right: one row per image, one column per time.

    frames: uint8 [S, N, H, W, C], the image first; times: t of the S states, of which the first is the image.
    """
    _check_times("noising strip", frames, times)
    headed_rows(frames.swapaxes(0, 1), ["image", *map(_at, times[1:])], path)


def _check_times(name: str, frames: NDArray[np.uint8], times: Sequence[float]) -> None:
    if frames.ndim != 5 or len(frames) != len(times):
        raise EvaluationError(
            f"{name}: frames {list(frames.shape)} and {len(times)} times, expected [S, N, H, W, C] and S of them"
        )


def _at(t: float) -> str:
    return f"t = {t:.0f}" if t >= 10 else f"t = {t:.2g}"


def _check_images(images: NDArray[Any]) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size or images.shape[3] not in (1, 3):
        raise EvaluationError(
            f"picture: images are {images.dtype} {list(images.shape)}, expected uint8 [N, H, W, 1 or 3]"
        )


def _tiled(images: NDArray[np.uint8], columns: int, min_pixels: int) -> Image.Image:
    """One sheet of all images on white, an even gap around each, the last row filled up with paper.

    Each is enlarged by the smallest whole factor that makes its shorter side `min_pixels` long.
    """
    count, height, width, _ = images.shape
    columns = min(columns, count)
    factor = max(1, -(-min_pixels // min(height, width)))
    gap = max(2, factor * min(height, width) // 16)
    rows = -(-count // columns)
    cell_height, cell_width = factor * height + gap, factor * width + gap
    sheet = np.full((rows * cell_height + gap, columns * cell_width + gap, 3), 255, dtype=np.uint8)
    for position, image in enumerate(images):
        top, left = position // columns * cell_height + gap, position % columns * cell_width + gap
        enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
        sheet[top : top + factor * height, left : left + factor * width] = enlarged  # grey spreads to R, G and B
    return Image.fromarray(sheet)


def _write(page: Image.Image, text: str, center: int, middle: int = LINE_PIXELS // 2) -> None:
    """One line of text, centred, in the margin above unless told."""
    ImageDraw.Draw(page).text((center, middle), text, fill=INK, anchor="mm", font=ImageFont.load_default(TEXT_PIXELS))


def _text_width(text: str) -> int:
    """Pixels, with a little air."""
    return round(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(text, font=ImageFont.load_default(TEXT_PIXELS))) + 8


def _save(page: Image.Image, path: Path) -> None:
    with whole_file(path) as draft:
        page.save(draft, optimize=True)
