"""Image files of any kind as uint8 pixels, by PIL."""

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ..errors import DataError

Pixels = npt.NDArray[np.uint8]
"""One image [H, W, C] or many [N, H, W, C]; C is 1 (grey) or 3 (red, green, blue); values 0..255."""

ResizeRule = Literal["center_crop", "stretch", "none"]

IMAGE_EXTENSIONS = frozenset(["bmp", "gif", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp"])

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""What is read, whatever a file calls itself: PIL knows others, of which some start programs (EPS: Ghostscript).
An MPO is opened as a JPEG."""

MODES = {1: "L", 3: "RGB"}
"""PIL's name of images with so many channels."""
_AT_ONCE = 256  # images in flight in `in_order`: bounds memory, and is how often progress can be told

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def load_file(path: Path, image_size: int, channels: int, resize: ResizeRule) -> Pixels:
    """Any still image file as uint8 [H, W, C]: turned upright, laid over white where transparent, fitted."""
    try:
        image = open_image(path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{path}: {image.mode} pixels (more than 8 bits a channel); convert the file to 8 bits first")
    try:
        image = _over_white(ImageOps.exif_transpose(image)).convert(MODES[channels])
    except Exception as error:  # as in open_image
        raise DataError(f"{path}: {unreadable(error)}") from error
    fitted = _fitted(image, image_size, resize, str(path))
    return np.asarray(fitted, np.uint8).reshape(image_size, image_size, channels)


def in_order(function: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    """`map` by threads, results in order, a bounded number in flight. PIL lets go of the interpreter lock."""
    with ThreadPoolExecutor(thread_name_prefix="images") as pool:
        for start in range(0, len(items), _AT_ONCE):
            yield from pool.map(function, items[start : start + _AT_ONCE])


def open_image(file: Path | io.BytesIO, check: Callable[[Image.Image], None] | None = None) -> Image.Image:
    """Decoded, so that a truncated file fails here and not at the first use of a pixel. DataError without its name.

    check: refuses by the header, before memory is spent on the pixels that it promises.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            if check:
                check(image)
            # MPO is what phones call a JPEG with previews: its first frame is the photograph.
            still = image.format == "MPO" or getattr(image, "n_frames", 1) == 1
            if still:
                image.load()
    except DataError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything inside PIL's format parsers
        raise unreadable(error) from error
    if not still:
        raise DataError("an animated or multi-page image; split it into single images or remove it")
    return image


def unreadable(error: Exception) -> DataError:
    """The refusal of an image at which PIL has failed so."""
    return DataError(f"not a readable image ({error or type(error).__name__}); replace or remove it")


def _over_white(image: Image.Image) -> Image.Image:
    """Dropping alpha instead would show whatever colour lies under transparent pixels."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _fitted(image: Image.Image, image_size: int, resize: ResizeRule, where: str) -> Image.Image:
    size = (image_size, image_size)
    if image.size == size:
        return image
    if resize == "center_crop":
        return ImageOps.fit(image, size, Image.Resampling.BICUBIC)  # PIL's resize is antialiased
    if resize == "stretch":
        return image.resize(size, Image.Resampling.BICUBIC)
    width, height = image.size
    raise DataError(
        f"{where}: a {width}x{height} image, expected {image_size}x{image_size}; "
        f"set data.source.resize to center_crop or stretch, or data.image_size to fit"
    )
