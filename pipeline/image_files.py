"""Between encoded images and uint8 pixels: everything that PIL does here, each refusal naming the image."""

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from .errors import DataError

Pixels = npt.NDArray[np.uint8]
"""One image [H, W, C] or many [N, H, W, C]; C is 1 (grey) or 3 (red, green, blue); values 0..255."""

ResizeRule = Literal["center_crop", "stretch", "none"]

IMAGE_EXTENSIONS = frozenset(["bmp", "gif", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp"])

_MODES = {1: "L", 3: "RGB"}
_AT_ONCE = 256  # images in flight in `in_order`: bounds memory, and is how often progress can be told

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def load_file(path: Path, image_size: int, channels: int, resize: ResizeRule) -> Pixels:
    """Any still image file as uint8 [H, W, C]: turned upright, laid over white where transparent, fitted."""
    image = _open(path, str(path))
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{path}: {image.mode} pixels (more than 8 bits a channel); convert the file to 8 bits first")
    try:
        image = _over_white(ImageOps.exif_transpose(image)).convert(_MODES[channels])
    except Exception as error:  # as in _open
        raise _unreadable(str(path), error) from error
    return _pixels(_fitted(image, image_size, resize, str(path)), channels)


def decode(encoded: bytes, image_size: int, channels: int, where: str) -> Pixels:
    """The pixels of an encoded image that must already have this size and mode; `where` begins a refusal."""
    expected = (_MODES[channels], image_size, image_size)

    def refuse(image: Image.Image) -> None:
        width, height = image.size
        raise DataError(
            f"{where}: a {width}x{height} image of mode {image.mode}, expected {image_size}x{image_size} of "
            f"mode {_MODES[channels]}; correct data.image_size and data.channels, or convert the image"
        )

    def check_size(image: Image.Image) -> None:
        if image.size != expected[1:]:
            refuse(image)

    image = _open(io.BytesIO(encoded), where, check_size)
    if (image.mode, *image.size) != expected:
        refuse(image)
    return _pixels(image, channels)


def shape_of(encoded: bytes, where: str) -> tuple[int, int, Literal[1, 3]]:
    """(width, height, channels) by the header of an encoded image. DataError unless its mode is one we train on."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            size, mode = image.size, image.mode
    except Exception as error:  # as in _open
        raise _unreadable(where, error) from error
    if mode not in _MODES.values():
        raise DataError(f"{where}: an image of mode {mode}, expected L (grey) or RGB; convert the images")
    return (*size, 1 if mode == "L" else 3)


def encode_png(pixels: Pixels) -> bytes:
    """[H, W, C] -> PNG bytes; the same bytes for the same pixels and zlib."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def in_order(function: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    """`map` by threads, results in order, a bounded number in flight. PIL lets go of the interpreter lock."""
    with ThreadPoolExecutor(thread_name_prefix="images") as pool:
        for start in range(0, len(items), _AT_ONCE):
            yield from pool.map(function, items[start : start + _AT_ONCE])


def _open(file: Path | io.BytesIO, where: str, check: Callable[[Image.Image], None] | None = None) -> Image.Image:
    """Decoded, so that a truncated file fails here and not at the first use of a pixel.

    check: refuses by the header, before memory is spent on the pixels that it promises.
    """
    try:
        with Image.open(file) as image:
            if check:
                check(image)
            # MPO is what phones call a JPEG with previews: its first frame is the photograph.
            still = image.format == "MPO" or getattr(image, "n_frames", 1) == 1
            if still:
                image.load()
    except DataError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything inside PIL's format parsers
        raise _unreadable(where, error) from error
    if not still:
        raise DataError(f"{where}: an animated or multi-page image; split it into single images or remove it")
    return image


def _unreadable(where: str, error: Exception) -> DataError:
    return DataError(f"{where}: not a readable image ({error or type(error).__name__}); replace or remove it")


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


def _pixels(image: Image.Image, channels: int) -> Pixels:
    width, height = image.size
    return np.asarray(image, dtype=np.uint8).reshape(height, width, channels)
