"""PNG pictures for people: sample grids, the denoising process, samples beside real images, loss curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .atomic import whole_file
from .errors import EvaluationError

PAPER, INK, FAINT, ACCENT = "#ffffff", "#333333", "#9db4d0", "#1f4e8c"
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


def denoising_strip(frames: NDArray[np.uint8], timesteps: Sequence[int], path: Path, min_pixels: int = 72) -> None:
    """From noise to image, left to right: one row per image, one column per state.

    frames: uint8 [S, N, H, W, C], noise first; timesteps: the times t of the S states, -1 for the image.
    """
    if frames.ndim != 5 or len(frames) != len(timesteps):
        raise EvaluationError(
            f"denoising strip: frames {list(frames.shape)} and {len(timesteps)} timesteps, expected "
            f"[S, N, H, W, C] and S of them"
        )
    states, count = frames.shape[:2]
    tiles = frames.swapaxes(0, 1).reshape(states * count, *frames.shape[2:])  # row by row: all states of one image
    _check_images(tiles)
    strip = _tiled(tiles, states, min_pixels)
    page = Image.new("RGB", (strip.width, strip.height + LINE_PIXELS), PAPER)
    page.paste(strip, (0, LINE_PIXELS))
    for column, t in enumerate(timesteps):
        _write(page, f"t = {t}" if t >= 0 else "image", round((column + 0.5) * strip.width / states))
    _save(page, path)


def loss_curve(images_seen: Sequence[float], loss: Sequence[float], path: Path) -> None:
    """Loss against images seen, with its running mean; a loss that is not finite is left out."""
    seen, values = np.asarray(images_seen, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if seen.shape != values.shape or seen.ndim != 1:
        raise EvaluationError(
            f"loss curve: {seen.size} image counts and {values.size} losses, expected as many of each"
        )
    drawn = np.isfinite(values) & (values > 0)
    if not drawn.any():
        raise EvaluationError(
            f"loss curve: none of the {values.size} losses is a positive number; was anything logged?"
        )
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    _draw_loss(figure, seen[drawn], values[drawn])
    with whole_file(path) as draft:
        figure.savefig(draft)


def _draw_loss(figure: Figure, seen: NDArray[np.float64], loss: NDArray[np.float64]) -> None:
    axes = figure.add_subplot(xlabel="images seen", ylabel="loss (mean squared error)")
    axes.plot(seen, loss, color=FAINT, linewidth=1, marker="o" if len(loss) < 40 else "", label="as logged")
    axes.plot(seen, _running_mean(loss), color=ACCENT, linewidth=2, label="running mean")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if loss.max() > 3 * loss.min():  # below that a logarithmic axis has hardly a tick to read
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#e8e8e8")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a window of a twentieth of the curve, shorter at its ends."""
    reach = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - reach, 0)
    last = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    mean: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return mean


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


def _write(page: Image.Image, text: str, center: int) -> None:
    """One line of text in the margin above, centred."""
    ImageDraw.Draw(page).text(
        (center, LINE_PIXELS // 2), text, fill=INK, anchor="mm", font=ImageFont.load_default(TEXT_PIXELS)
    )


def _save(page: Image.Image, path: Path) -> None:
    with whole_file(path) as draft:
        page.save(draft, optimize=True)
