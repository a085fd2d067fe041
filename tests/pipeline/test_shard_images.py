"""The image of a sample: the quick way gives the pixels that PIL gives; what is not exactly right is refused."""

import io
import pickle
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipeline.data.shard_images import ShardFormat, decode, encode, shape_of
from pipeline.errors import DataError

COLOUR = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def npy(array: npt.NDArray[np.generic], **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def png(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def interlaced(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A PNG of 8x8 grey pixels in the seven passes of Adam7."""
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    rows = [row.tobytes() for y, dy, x, dx in passes for row in pixels[y::dy, x::dx]]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
        (b"IEND", b""),
    ]
    sealed = (struct.pack(">I", len(body)) + name + body + zlib.crc32(name + body).to_bytes(4) for name, body in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


@given(form=st.sampled_from(["png", "npy"]), side=st.integers(1, 20), channels=st.sampled_from([1, 3]), data=st.data())
def test_every_pixel_is_kept(form: ShardFormat, side: int, channels: int, data: st.DataObject) -> None:
    pixels = data.draw(arrays(np.uint8, (side, side, channels)))
    encoded = encode(pixels, form)
    np.testing.assert_array_equal(decode(encoded, side, channels), pixels)
    assert shape_of(encoded) == (side, side, channels)
    assert encode(pixels, form) == encoded


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_cut_or_changed_anywhere_is_decoded_as_pil_does_or_refused(channels: int) -> None:
    pixels = COLOUR[..., :channels]
    whole = encode(pixels)
    places = range(len(whole))
    damaged = [whole[:place] for place in places]
    damaged += [whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :] for place in places]
    refused = 0
    for encoded in damaged:
        try:
            found = decode(encoded, 8, channels)
        except DataError:
            refused += 1
            continue
        with Image.open(io.BytesIO(encoded)) as image:
            np.testing.assert_array_equal(found.squeeze(), np.asarray(image).squeeze())
    assert refused > len(damaged) // 2


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("P", 3), ("P", 1), ("RGBA", 3), ("LA", 1), ("I;16", 1), ("1", 1), ("L", 3), ("RGB", 1)],
)
def test_a_png_of_another_mode_is_refused(mode: str, channels: int) -> None:
    if mode == "I;16":
        image = Image.fromarray(COLOUR[..., 0].astype(np.uint16) * 256)
    else:
        image = Image.fromarray(COLOUR).convert(mode)
    expected = {1: "L", 3: "RGB"}[channels]
    with pytest.raises(DataError, match=f"a 8x8 image of mode {mode}, expected 8x8 of mode {expected}"):
        decode(png(image), 8, channels)


def test_an_animated_png_is_refused() -> None:
    encoded = png(Image.fromarray(COLOUR), save_all=True, append_images=[Image.fromarray(255 - COLOUR)])
    with pytest.raises(DataError, match="an animated or multi-page image"):
        decode(encoded, 8, 3)


def test_a_transparent_colour_is_shown_as_pil_shows_it() -> None:
    encoded = png(Image.fromarray(COLOUR), transparency=(1, 2, 3))
    np.testing.assert_array_equal(decode(encoded, 8, 3), COLOUR)


def test_an_interlaced_png_is_decoded() -> None:
    np.testing.assert_array_equal(decode(interlaced(COLOUR[..., 0]), 8, 1), COLOUR[..., :1])


def test_a_png_that_promises_a_gigapixel_is_refused_by_its_header() -> None:
    huge = encode(COLOUR).replace(struct.pack(">II", 8, 8), struct.pack(">II", 30_000, 30_000), 1)
    with pytest.raises(DataError, match="not a readable image"):
        decode(huge, 8, 3)
    with pytest.raises(DataError, match="not a readable image"):
        shape_of(huge)


@pytest.mark.parametrize(
    ("array", "channels"),
    [(COLOUR[..., 0], 1), (np.asfortranarray(COLOUR), 3), (np.asfortranarray(COLOUR[..., 0]), 1)],
    ids=["no axis of channels", "Fortran order", "both"],
)
def test_arrays_as_others_write_them_are_read(array: npt.NDArray[np.uint8], channels: int) -> None:
    expected = COLOUR[..., :channels]
    found = decode(npy(array), 8, channels)
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous


WHOLE = npy(COLOUR)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (npy(np.array([{"a": 1}]), allow_pickle=True), "an array of Python objects, which is a pickle"),
        (npy(COLOUR.astype(np.float32)), r"an array of float32 \[8, 8, 3\], expected uint8 \[8, 8, 3\]"),
        (npy(COLOUR.astype(np.int8)), "an array of int8"),
        (npy(COLOUR[:4]), r"an array of uint8 \[4, 8, 3\], expected uint8 \[8, 8, 3\]"),
        (npy(COLOUR.transpose(2, 0, 1)), r"an array of uint8 \[3, 8, 8\]"),
        (npy(COLOUR[..., 0]), r"an array of uint8 \[8, 8\], expected uint8 \[8, 8, 3\]"),
        (npy(COLOUR[None]), r"an array of uint8 \[1, 8, 8, 3\], expected uint8 \[H, W, C\]"),
        (WHOLE[:-1], "an array of 191 bytes, its header asks for 192"),
        (WHOLE + b"\0", "an array of 193 bytes, its header asks for 192"),
        (WHOLE[:60], "not a readable array"),
        (WHOLE[:6], "not a readable array"),
        (WHOLE.replace(b"(8, 8, 3)", b"(8, 8, x)"), "not a readable array"),
        (WHOLE.replace(b"\x93NUMPY\1", b"\x93NUMPY\7"), "not a readable array"),
        (b"\x93NUMPY\1\0" + struct.pack("<H", 60_000) + b"(" * 60_000, "not a readable array"),
        (WHOLE.replace(b"(8, 8, 3), ", b"(99999, 99999, 3), "), "not a readable array|expected uint8"),
        (pickle.dumps(COLOUR), "not a readable image"),
    ],
)
def test_a_hostile_or_damaged_array_is_refused(encoded: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode(encoded, 8, 3)


def test_an_array_that_promises_more_than_there_is_takes_no_memory() -> None:
    """As the first image of tars whose size nobody has given."""
    huge = npy(np.zeros((1, 1, 3), np.uint8)).replace(b"(1, 1, 3), ", b"(2000000000, 2000000000, 3), ")[:128]
    assert shape_of(huge) == (2_000_000_000, 2_000_000_000, 3)
    with pytest.raises(DataError, match="an array of 0 bytes, its header asks for 12000000000000000000"):
        decode(huge, 2_000_000_000, 3)


def test_an_array_cut_anywhere_is_refused() -> None:
    for place in range(len(WHOLE)):
        with pytest.raises(DataError):
            decode(WHOLE[:place], 8, 3)
