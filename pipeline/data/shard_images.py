"""Between the image of a sample, as it stands in a tar, and uint8 pixels: PNG by libpng, arrays, the rest by PIL.

What is not exactly a plain PNG of the right size and mode is left to PIL, which decodes or refuses it; the short way
never gives other pixels. Arrays are read without pickle, and nothing is allocated on the word of a header.
"""

import io
import math
from functools import lru_cache
from typing import Literal

import numpy as np
from imagecodecs import PngError, png_decode
from PIL import Image

from ..errors import DataError
from .image_files import FORMATS, MODES, Pixels, open_image, unreadable

ShardFormat = Literal["png", "npy"]

ARRAY_EXTENSION = "npy"
_ARRAY_MAGIC = b"\x93NUMPY"


def encode(pixels: Pixels, form: ShardFormat = "png") -> bytes:
    """[H, W, C] -> the member of a tar, which its extension, `form`, names; the same bytes for the same pixels."""
    buffer = io.BytesIO()
    if form == "npy":
        np.lib.format.write_array(buffer, np.ascontiguousarray(pixels), version=(1, 0), allow_pickle=False)
    else:
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def decode(encoded: bytes, image_size: int, channels: int) -> Pixels:
    """The pixels of an image that must already have this size and mode. -> uint8 [image_size, image_size, channels].

    DataError, which does not know where the image is from, says what is wrong with it.
    """
    shape = (image_size, image_size, channels)
    if encoded.startswith(_ARRAY_MAGIC):
        return _decode_array(encoded, shape)
    if encoded.startswith(_plain_png(image_size, channels)) and b"acTL" not in encoded:  # which would be an animation
        try:
            return png_decode(encoded).reshape(shape)
        except (PngError, ValueError):  # damaged, or with transparency
            pass
    return _decode_image(encoded, image_size, channels)


def shape_of(encoded: bytes) -> tuple[int, int, Literal[1, 3]]:
    """(width, height, channels) by the header of an image. DataError, as in `decode`, unless we can train on it."""
    if encoded.startswith(_ARRAY_MAGIC):
        (height, width, *rest), _, _ = _array_header(io.BytesIO(encoded))
        return width, height, 1 if rest in ([], [1]) else 3
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            (width, height), mode = image.size, image.mode
    except Exception as error:  # as in open_image
        raise unreadable(error) from error
    if mode not in MODES.values():
        raise DataError(f"an image of mode {mode}, expected L (grey) or RGB; convert the images")
    return width, height, 1 if mode == "L" else 3


@lru_cache(maxsize=8)
def _plain_png(image_size: int, channels: int) -> bytes:
    """How a PNG of 8 bits a channel begins, without palette, alpha, interlacing. PNG specification, 11.2.1."""
    colour_type = {1: 0, 3: 2}[channels]
    side = image_size.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + side + side + bytes([8, colour_type, 0, 0, 0])


def _decode_image(encoded: bytes, image_size: int, channels: int) -> Pixels:
    expected = (MODES[channels], image_size, image_size)

    def refuse(image: Image.Image) -> None:
        width, height = image.size
        raise DataError(
            f"a {width}x{height} image of mode {image.mode}, expected {image_size}x{image_size} of "
            f"mode {MODES[channels]}; correct data.image_size and data.channels, or convert the image"
        )

    def check_size(image: Image.Image) -> None:
        if image.size != expected[1:]:
            refuse(image)

    image = open_image(io.BytesIO(encoded), check_size)
    if (image.mode, *image.size) != expected:
        refuse(image)
    return np.asarray(image, np.uint8).reshape(image_size, image_size, channels)


def _decode_array(encoded: bytes, shape: tuple[int, int, int]) -> Pixels:
    """An `.npy` of this shape, or without its last axis where that is one channel."""
    ours = _array_as_packed(shape)
    if encoded.startswith(ours) and len(encoded) == len(ours) + math.prod(shape):
        return np.frombuffer(encoded, np.uint8, offset=len(ours)).reshape(shape)
    file = io.BytesIO(encoded)
    found, fortran_order, dtype = _array_header(file)
    if dtype != np.uint8 or found not in ([shape, shape[:2]] if shape[2] == 1 else [shape]):
        raise DataError(
            f"an array of {dtype} {list(found)}, expected uint8 {list(shape)}; correct data.image_size and "
            "data.channels, or convert the array"
        )
    count = len(encoded) - file.tell()
    if count != math.prod(shape):
        raise DataError(f"an array of {count} bytes, its header asks for {math.prod(shape)}; replace or remove it")
    pixels = np.frombuffer(encoded, np.uint8, offset=file.tell()).reshape(found, order="F" if fortran_order else "C")
    return np.ascontiguousarray(pixels).reshape(shape)


@lru_cache(maxsize=8)
def _array_as_packed(shape: tuple[int, int, int]) -> bytes:
    """The header that `encode` writes: parsing one takes longer than all else."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _array_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """(shape, whether in Fortran order, type) of an `.npy` of an image."""
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran_order, dtype = readers[version](file)
    except Exception as error:  # its header is a Python literal, whose damage can raise nearly anything
        raise DataError(f"not a readable array ({error or type(error).__name__}); replace or remove it") from error
    if dtype.hasobject:
        raise DataError("an array of Python objects, which is a pickle, and can run code; convert it to uint8")
    if len(shape) not in (2, 3):
        raise DataError(f"an array of {dtype} {list(shape)}, expected uint8 [H, W, C]; convert the array")
    return shape, fortran_order, dtype
