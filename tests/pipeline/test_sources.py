"""Every kind of source: what it reads, and what it refuses."""

import gzip
import hashlib
import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from sklearn.datasets import load_digits
from torchvision import datasets

from pipeline.data.array_files import read_array
from pipeline.data.image_files import load_file
from pipeline.data.shard_images import encode
from pipeline.data.source_images import images_in_memory
from pipeline.data.sources import (
    Arrays,
    Cifar10,
    Digits,
    FashionMnist,
    ImageFolder,
    Mnist,
    Shards,
    Source,
)
from pipeline.errors import DataError
from pipeline.runfile.data_config import DataConfig
from pipeline.runfile.keyroles import identity

RANDOM = np.random.default_rng(0)


def random_images(*shape: int) -> npt.NDArray[np.uint8]:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_digits_are_all_1797_scaled_to_bytes() -> None:
    images = Digits().open(8, 1)
    original = load_digits()
    assert len(images) == 1797
    assert images.class_names == tuple("0123456789")
    np.testing.assert_array_equal(images.labels, original.target)
    np.testing.assert_array_equal(images.read(5)[..., 0], np.rint(original.images[5] * 255 / 16))
    assert images.read(0).dtype == np.uint8
    assert images.read(0).shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("source", "size", "channels"),
    [(Digits(), 8, 3), (Mnist(root=Path("x")), 32, 1), (Cifar10(root=Path("x")), 32, 1)],
)
def test_an_impossible_shape_is_refused_before_anything_is_read(source: Any, size: int, channels: Any) -> None:
    with pytest.raises(ValidationError, match=f"but source {source.kind} has image_size"):
        DataConfig(source=source, image_size=size, channels=channels)


def test_torchvision_needs_a_root_or_leave_to_download() -> None:
    with pytest.raises(ValidationError, match=r"give root .* or allow download: true"):
        Cifar10()


@pytest.mark.parametrize("source", [Mnist, FashionMnist])
def test_mnist_is_read_from_its_root(tmp_path: Path, source: type[Mnist] | type[FashionMnist]) -> None:
    raw = tmp_path / source.dataset / "raw"
    raw.mkdir(parents=True)
    pixels, labels = random_images(20, 28, 28), np.arange(20, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    images = source(root=tmp_path).open(28, 1)
    np.testing.assert_array_equal(images.read(7)[..., 0], pixels[7])
    np.testing.assert_array_equal(images.labels, labels)
    assert len(images.class_names) == 10


def test_cifar10_is_read_from_its_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    pixels = random_images(6, 3, 32, 32)
    names = [f"class {number}" for number in range(10)]
    batch = pickle.dumps({"data": pixels.reshape(6, -1), "labels": [5, 4, 3, 2, 1, 0]})
    meta = pickle.dumps({"label_names": names})
    (folder / "data_batch_1").write_bytes(batch)
    (folder / "batches.meta").write_bytes(meta)
    files = [["data_batch_1", hashlib.md5(batch).hexdigest()]]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", files)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [])
    described = {"filename": "batches.meta", "key": "label_names", "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr(datasets.CIFAR10, "meta", described)
    images = Cifar10(root=tmp_path).open(32, 3)
    np.testing.assert_array_equal(images.read(2), pixels[2].transpose(1, 2, 0))
    assert images.labels.tolist() == [5, 4, 3, 2, 1, 0]
    assert images.class_names == tuple(names)


def test_an_absent_torchvision_data_set_is_refused_with_its_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"CIFAR10 in {tmp_path}: .* correct data.source.root or set download: true"):
        Cifar10(root=tmp_path).open(32, 3)


@pytest.mark.parametrize("form", ["npz", "npy", "idx", "idx.gz"])
def test_arrays_of_every_form_give_the_same_images(tmp_path: Path, form: str) -> None:
    pixels, labels = random_images(5, 6, 6), np.array([0, 2, 1, 2, 0], np.uint8)
    images_file, labels_file = tmp_path / "a", tmp_path / "b"
    if form == "npz":
        labels_file = images_file
        with images_file.open("wb") as file:
            np.savez(file, images=pixels, labels=labels)
    for path, array in ((images_file, pixels), (labels_file, labels)):
        if form == "npy":
            with path.open("wb") as file:
                np.save(file, array)
        elif form.startswith("idx"):
            path.write_bytes(gzip.compress(idx(array)) if form.endswith("gz") else idx(array))
    images = Arrays(images=images_file, labels=labels_file).open(6, 1)
    np.testing.assert_array_equal([images.read(number)[..., 0] for number in range(5)], pixels)
    np.testing.assert_array_equal(images.labels, labels)
    assert images.class_names == ("0", "1", "2")


def test_arrays_without_labels_have_no_classes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", random_images(4, 6, 6, 3))
    images = Arrays(images=tmp_path / "a.npy").open(6, 3)
    assert images.class_names == ()
    assert images.labels.tolist() == [-1] * 4


def test_class_names_without_labels_are_refused() -> None:
    with pytest.raises(ValidationError, match="class_names without labels"):
        Arrays(images=Path("a.npy"), class_names=("cat",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .*No such file"),
        (gzip.compress(idx(random_images(9, 2, 2)), mtime=0)[:-9], "cannot be read .*end-of-stream"),
        (b"\x93NUMPY\x01\x00", "cannot be read"),
        (b"PK\x03\x04 but no more", "cannot be read .*not a zip file"),
        (idx(random_images(9, 2, 2))[:-1], "51 bytes, its header asks for 52"),
        (idx(random_images(9, 2, 2))[:9], "9 bytes, its header asks for"),
        (b"\0\0\x0d\x01" + bytes(8), "neither .npz, .npy nor an IDX file"),
        (b"", "neither .npz, .npy nor an IDX file"),
    ],
    ids=["no file", "cut gzip", "cut npy", "cut npz", "one byte short", "cut header", "unknown type", "empty"],
)
def test_a_file_that_is_no_whole_array_is_refused_with_its_name(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "broken"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path}: .*{message}"):
        read_array(path, "images")


def test_a_pickle_inside_an_array_file_is_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"cannot be read .*allow_pickle=False"):
        read_array(tmp_path / "a.npy", "images")


def test_a_missing_key_of_an_npz_is_refused_with_those_found(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=random_images(2, 2, 2))
    with pytest.raises(DataError, match=r"a.npz: no array 'images'; found x_train"):
        read_array(tmp_path / "a.npz", "images")


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((3, 6, 6), np.float32),
        random_images(3, 6, 7),
        random_images(3, 6, 6, 3),
        random_images(3, 1, 6, 6),
        random_images(3),
    ],
    ids=lambda pixels: f"{pixels.dtype}{pixels.shape}",
)
def test_an_array_that_does_not_fit_is_refused_with_both_shapes(pixels: npt.NDArray[Any]) -> None:
    with pytest.raises(DataError, match=rf"a.npy: images are {pixels.dtype} \[.*\], expected uint8 \[N, 6, 6, 1\]"):
        images_in_memory(pixels, np.zeros(3, np.int64), (), "a.npy", 6, 1)


@pytest.mark.parametrize("labels", [np.zeros(2, int), np.zeros((3, 1), int), np.zeros(3)], ids=str)
def test_labels_that_do_not_fit_the_images_are_refused(labels: npt.NDArray[Any]) -> None:
    with pytest.raises(DataError, match=r"labels are .*, expected integers \[3\]"):
        images_in_memory(random_images(3, 6, 6), labels, (), "a.npy", 6, 1)


@pytest.mark.parametrize(
    ("labels", "names"), [([0, 1, 2], ("a", "b")), ([0, -1, 1], ()), ([0, 1, 100_000], ())], ids=str
)
def test_labels_out_of_range_are_refused(labels: list[int], names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"labels from -?\d+ to \d+, expected 0 to"):
        images_in_memory(random_images(3, 6, 6), np.array(labels), names, "a.npy", 6, 1)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def test_an_image_folder_has_a_class_for_each_sub_folder(tmp_path: Path) -> None:
    for name in ("dog/b.png", "cat/deep/c.PNG", "cat/a.jpg", "cat/.hidden.png", ".git/x/y.png"):
        save(tmp_path / name, Image.new("RGB", (9, 7), "red"))
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    images = ImageFolder(path=tmp_path).open(4, 3)
    assert images.class_names == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(images.read(2), np.full((4, 4, 3), [255, 0, 0], np.uint8))


def test_an_image_folder_can_be_read_without_classes(tmp_path: Path) -> None:
    for name in ("a.png", "x/b.png"):
        save(tmp_path / name, Image.new("L", (4, 4)))
    images = ImageFolder(path=tmp_path, classes="none").open(4, 1)
    assert images.class_names == ()
    assert images.labels.tolist() == [-1, -1]


def test_a_folder_with_no_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(DataError, match=rf"{tmp_path}: a folder with no images in it or below"):
        ImageFolder(path=tmp_path).open(4, 1)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: not a folder; correct data.source.path"):
        ImageFolder(path=tmp_path / "nowhere").fingerprint()


def test_images_outside_a_class_sub_folder_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "x/b.png"):
        save(tmp_path / name, Image.new("L", (4, 4)))
    with pytest.raises(DataError, match=r"a.png: one of 1 images outside a class sub-folder"):
        ImageFolder(path=tmp_path).open(4, 1)


def test_center_crop_keeps_the_middle_and_stretch_keeps_all(tmp_path: Path) -> None:
    wide = Image.new("L", (30, 10), 0)
    wide.paste(255, (10, 0, 20, 10))
    path = save(tmp_path / "a.png", wide)
    assert load_file(path, 10, 1, "center_crop").min() == 255
    stretched = load_file(path, 9, 1, "stretch")[4, :, 0]
    assert stretched[0] == stretched[-1] == 0
    assert stretched[4] == 255


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    path = save(tmp_path / "a.png", Image.fromarray(board.astype(np.uint8)))
    small = load_file(path, 8, 1, "center_crop")
    assert abs(small.astype(int) - 127).max() <= 2  # without it: 0 or 255


@pytest.mark.parametrize("resize", ["center_crop", "stretch", "none"])
def test_an_image_that_fits_is_left_as_it_is(tmp_path: Path, resize: Any) -> None:
    pixels = random_images(8, 8, 3)
    path = save(tmp_path / "a.png", Image.fromarray(pixels))
    np.testing.assert_array_equal(load_file(path, 8, 3, resize), pixels)


def test_an_image_of_another_size_is_refused_where_it_must_fit(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("L", (7, 8)))
    with pytest.raises(DataError, match=r"a.png: a 7x8 image, expected 8x8; set data.source.resize"):
        load_file(path, 8, 1, "none")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_8_bit_mode_becomes_grey_or_colour(tmp_path: Path, mode: str, channels: int) -> None:
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    path = save(tmp_path / f"a.{suffix}", Image.new("RGB", (8, 8), "white").convert(mode))
    np.testing.assert_array_equal(load_file(path, 8, channels, "none"), np.full((8, 8, channels), 255, np.uint8))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    transparent = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    options = {"transparency": b"\0" * 256} if mode == "P" else {}
    path = save(tmp_path / "a.png", transparent.convert(mode), **options)
    assert load_file(path, 8, 3, "none").min() == 255


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 200
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: upside down
    path = save(tmp_path / "a.png", Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(load_file(path, 8, 1, "none")[..., 0], pixels[::-1])


def test_more_than_8_bits_a_channel_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(np.full((8, 8), 40_000, np.uint16)))
    with pytest.raises(DataError, match=r"a.png: I;16 pixels \(more than 8 bits a channel\)"):
        load_file(path, 8, 1, "none")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_an_animated_image_is_refused(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 255)]
    path = save(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=rf"a.{suffix}: an animated or multi-page image"):
        load_file(path, 8, 1, "none")


def test_the_photograph_of_a_phone_is_not_taken_for_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")]
    path = save(tmp_path / "a.jpg", frames[0], format="MPO", save_all=True, append_images=frames[1:])
    assert load_file(path, 8, 3, "none")[0, 0].argmax() == 0


def huge_png() -> bytes:
    return encode(np.zeros((1, 1, 1), np.uint8)).replace(
        struct.pack(">II", 1, 1), struct.pack(">II", 30_000, 30_000), 1
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"GIF89a", b"not an image", huge_png(), encode(random_images(8, 8, 3))[:-30]],
    ids=["empty", "only a header", "text", "a gigapixel", "truncated"],
)
def test_an_unreadable_image_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.png: not a readable image \(.+\)"):
        load_file(path, 8, 1, "center_crop")


def test_an_image_with_damaged_metadata_is_refused_with_its_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", (8, 8)), exif=b"Exif\0\0garbage!")
    with pytest.raises(DataError, match=r"a.png: not a readable image"):
        load_file(path, 8, 3, "none")


def test_a_jpeg_cut_anywhere_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(random_images(40, 40, 3)).save(buffer, "JPEG")
    path = tmp_path / "a.jpg"
    for cut in range(0, len(buffer.getvalue()) - 2, 97):
        path.write_bytes(buffer.getvalue()[:cut])
        with pytest.raises(DataError, match=r"a.jpg: not a readable image"):
            load_file(path, 40, 3, "none")


def test_a_fingerprint_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    first = save(tmp_path / "one" / "x" / "a.png", Image.new("L", (4, 4)))
    before = ImageFolder(path=tmp_path / "one").fingerprint()
    (tmp_path / "one").rename(tmp_path / "two")
    assert ImageFolder(path=tmp_path / "two").fingerprint() == before
    save(tmp_path / "two" / "x" / first.name, Image.new("L", (5, 5)))
    assert ImageFolder(path=tmp_path / "two").fingerprint() != before


def test_the_fingerprint_of_arrays_changes_with_either_file(tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, np.zeros(3))
    source = Arrays(images=tmp_path / "a.npy", labels=tmp_path / "b.npy")
    before = source.fingerprint()
    np.save(tmp_path / "b.npy", np.zeros(4))
    assert source.fingerprint() != before
    (tmp_path / "b.npy").unlink()
    with pytest.raises(DataError, match=r"b.npy: cannot be read \(No such file"):
        source.fingerprint()


def test_shard_urls_expand_and_keep_their_order(tmp_path: Path) -> None:
    for name in ("b-1.tar", "b-0.tar", "a.tar"):
        (tmp_path / name).touch()
    source = Shards(urls=("s3://bucket/{x,y}.tar", f"{tmp_path}/b-{{1..0}}.tar", f"file://{tmp_path}/a*.tar"))
    local = [str(tmp_path / name) for name in ("b-1.tar", "b-0.tar", "a.tar")]
    assert source.locations() == ["s3://bucket/x.tar", "s3://bucket/y.tar", *local]
    before = source.fingerprint()
    (tmp_path / "a.tar").write_bytes(b"more")
    assert source.fingerprint() != before


def test_a_pattern_that_matches_no_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none-\*.tar: no such shard; correct data.source.urls"):
        Shards(urls=(f"{tmp_path}/none-*.tar",)).locations()


def test_a_shard_listed_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    with pytest.raises(DataError, match=r"a.tar: listed twice"):
        Shards(urls=(f"{tmp_path}/*.tar", f"{tmp_path}/a.tar")).locations()


def test_only_what_decides_the_images_enters_the_identity_of_a_source() -> None:
    here = DataConfig(source=Mnist(root=Path("/here")), image_size=28, channels=1, cache="none")
    there = DataConfig(source=Mnist(root=Path("/there"), download=True), image_size=28, channels=1)
    assert identity(here) == identity(there)
    assert identity(here) != identity(there.model_copy(update={"split_seed": 1}))


def test_a_source_is_chosen_by_its_kind() -> None:
    source = TypeAdapter(Source).validate_python({"kind": "shards", "urls": ["a.tar"]})
    assert source == Shards(urls=("a.tar",))
