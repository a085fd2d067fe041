"""Where images come from: one record per kind of source.

To add a source, write one more record with `kind`, `shape`, `fingerprint` and `open` and put its name in `Source`.
What is marked `Resource` says where the images lie, not which they are: `prepare` is keyed by `fingerprint`,
the stages after it by the digest of the images themselves.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeGuard

import numpy as np
from pydantic import Field, model_validator

from model import Record

from ..errors import DataError
from ..files import sha256_of
from ..runfile.keyroles import Resource
from .array_files import read_array
from .image_files import IMAGE_EXTENSIONS, Pixels, ResizeRule, load_file
from .remote import is_remote
from .shard_index import MANIFEST, ShardIndex
from .source_images import SourceImages, images_in_memory
from .tar_locations import expanded, tar_locations

Fingerprint = dict[str, Any]
"""JSON-able, cheap, equal for equal content: of files their names, sizes and times, without reading them."""

Stamp = str | list[str | int]
"""Of one file: its name, size and time of change; of a remote one, its URL."""

Shape = tuple[int, int] | None
"""(image_size, channels) that every image of a source has; None: known only when it is opened."""


class Digits(Record):
    """scikit-learn's 1,797 handwritten digits: 8x8, grey, ten classes; needs no download."""

    kind: Literal["digits"] = "digits"
    shape: ClassVar[Shape] = (8, 1)

    def fingerprint(self) -> Fingerprint:
        return {"kind": self.kind}

    def open(self, image_size: int, channels: int) -> SourceImages:
        from sklearn.datasets import load_digits  # three seconds to import

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
        names = tuple(str(name) for name in digits.target_names)
        return images_in_memory(pixels, digits.target, names, "scikit-learn's digits", image_size, channels)


class _Torchvision(Record):
    """The training part of a torchvision data set; its test part is left for others to score against."""

    dataset: ClassVar[str]
    shape: ClassVar[Shape]
    root: Annotated[Path | None, Resource] = None
    """Folder that torchvision keeps the data set in; null: ~/.cache/diffusion-pipeline."""
    download: Annotated[bool, Resource] = False
    """Allow torchvision to download the data set into root when it is not there."""

    @model_validator(mode="after")
    def _can_be_found(self) -> "_Torchvision":
        if self.root is None and not self.download:
            raise ValueError("give root (the folder that holds the data set) or allow download: true")
        return self

    def fingerprint(self) -> Fingerprint:
        return {"kind": self.dataset}  # published once, never changed

    def open(self, image_size: int, channels: int) -> SourceImages:
        from torchvision import datasets  # seven seconds to import

        root = (self.root or Path("~/.cache/diffusion-pipeline")).expanduser()
        try:
            dataset = getattr(datasets, self.dataset)(root, train=True, download=self.download)
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            raise DataError(
                f"{self.dataset} in {root}: {error}; correct data.source.root or set download: true"
            ) from error
        pixels, labels = np.asarray(dataset.data), np.asarray(dataset.targets)
        return images_in_memory(pixels, labels, tuple(dataset.classes), self.dataset, image_size, channels)


class Cifar10(_Torchvision):
    """The 50,000 training images of CIFAR-10: 32x32, colour, ten classes."""

    kind: Literal["cifar10"] = "cifar10"
    dataset = "CIFAR10"
    shape: ClassVar[Shape] = (32, 3)


class Mnist(_Torchvision):
    """The 60,000 training images of MNIST: 28x28, grey, ten digits."""

    kind: Literal["mnist"] = "mnist"
    dataset = "MNIST"
    shape: ClassVar[Shape] = (28, 1)


class FashionMnist(_Torchvision):
    """The 60,000 training images of Fashion-MNIST: 28x28, grey, ten kinds of clothing."""

    kind: Literal["fashion_mnist"] = "fashion_mnist"
    dataset = "FashionMNIST"
    shape: ClassVar[Shape] = (28, 1)


class Arrays(Record):
    """Images, and labels where there are any, in .npz, .npy or IDX files (IDX also gzipped)."""

    kind: Literal["arrays"] = "arrays"
    images: Annotated[Path, Resource]
    """File of uint8 images, [N, H, W] or [N, H, W, C]."""
    labels: Annotated[Path | None, Resource] = None
    """File of integer labels [N], from 0; may be the images' .npz again; null: images without classes."""
    images_key: str = "images"
    """Name of the images in an .npz."""
    labels_key: str = "labels"
    """Name of the labels in an .npz."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of their labels; empty: the labels themselves."""
    shape: ClassVar[Shape] = None

    @model_validator(mode="after")
    def _names_have_labels(self) -> "Arrays":
        if self.class_names and self.labels is None:
            raise ValueError("class_names without labels; give the file of the labels too")
        return self

    def fingerprint(self) -> Fingerprint:
        files = [path.expanduser() for path in (self.images, self.labels) if path]
        return {"kind": self.kind, "files": [_file_stamp(path, path.name) for path in files]}

    def open(self, image_size: int, channels: int) -> SourceImages:
        pixels = read_array(self.images.expanduser(), self.images_key)
        if self.labels is None:
            labels = np.full(pixels.shape[:1], -1)
        else:
            labels = read_array(self.labels.expanduser(), self.labels_key)
        return images_in_memory(pixels, labels, self.class_names, str(self.images), image_size, channels)


class ImageFolder(Record):
    """Image files of any size, in the order of their names; what is transparent is laid over white."""

    kind: Literal["image_folder"] = "image_folder"
    path: Annotated[Path, Resource]
    """Folder of the images, or of one sub-folder for each class."""
    classes: Literal["sub_folders", "none"] = "sub_folders"
    """sub_folders: each direct sub-folder is a class of that name; none: images at any depth, no classes."""
    resize: ResizeRule = "center_crop"
    """center_crop: the largest centred square, resized; stretch: all of it, resized; none: it must fit."""
    shape: ClassVar[Shape] = None

    def fingerprint(self) -> Fingerprint:
        return {"kind": self.kind, "sha256": hashlib.sha256(repr(self.stamps()).encode()).hexdigest()}

    def stamps(self) -> list[Stamp]:
        """Of each image, in order."""
        root = self.path.expanduser()
        return [_file_stamp(file, str(file.relative_to(root))) for file in self._files()]

    def open(self, image_size: int, channels: int) -> SourceImages:
        files = self._files()
        classes = [file.relative_to(self.path.expanduser()).parts[0] for file in files]
        names = () if self.classes == "none" else tuple(sorted(set(classes)))
        numbers = {name: number for number, name in enumerate(names)}
        labels = np.array([numbers.get(name, -1) for name in classes], np.int64)

        def read(index: int) -> Pixels:
            return load_file(files[index], image_size, channels, self.resize)

        return SourceImages(labels, names, read)

    def _files(self) -> list[Path]:
        root = self.path.expanduser()
        if not root.is_dir():
            raise DataError(f"{root}: not a folder; correct data.source.path")
        files = sorted(_image_files(root))
        if not files:
            known = ", ".join(sorted(IMAGE_EXTENSIONS))
            raise DataError(f"{root}: a folder with no images in it or below; known are {known}")
        loose = [file for file in files if file.parent == root]
        if self.classes == "sub_folders" and loose:
            raise DataError(
                f"{loose[0]}: one of {len(loose)} images outside a class sub-folder; move them into one, "
                f"or set data.source.classes: none"
            )
        return files


class Shards(Record):
    """Webdataset tars: in each sample one image (or `.npy`) of the right size and, where labelled, a `.cls`."""

    kind: Literal["shards"] = "shards"
    urls: Annotated[tuple[str, ...], Resource] = ()
    """Paths, globs or URLs (http, s3, gs, ...) of uncompressed, unchanging tars; {000..041} expands."""
    index: Annotated[Path | None, Resource] = None
    """Instead of urls: folder of an index that `python -m pipeline index` has made of them."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of their labels; empty: the labels themselves, or the index's names."""
    shape: ClassVar[Shape] = None

    @model_validator(mode="after")
    def _can_be_found(self) -> "Shards":
        if bool(self.urls) == (self.index is not None):
            raise ValueError("give either urls (tars, to be indexed now) or index (the folder of an index of them)")
        if self.index is not None and self.class_names:
            raise ValueError("class_names beside index, which has names already; leave one out")
        expanded(self.urls)
        return self

    def fingerprint(self) -> Fingerprint:
        # The index of local tars points at them, so here the place is part of the identity.
        if self.index is not None:
            folder = self.index.expanduser().absolute()
            ShardIndex.load(folder)  # refuses what is none
            stamp = [str(folder), sha256_of(folder / MANIFEST)]
            return {"kind": self.kind, "index": hashlib.sha256(repr(stamp).encode()).hexdigest()}
        return {"kind": self.kind, "sha256": hashlib.sha256(repr(self.stamps()).encode()).hexdigest()}

    def stamps(self) -> list[Stamp]:
        """Of each tar, in order."""
        return _stamps(self.locations())

    def locations(self) -> list[str]:
        """Every tar once, in order: remote URLs as they are, local ones as absolute paths."""
        return tar_locations(self.urls, "data.source.urls")


class Stream(Record):
    """Tars like those of `shards`, streamed without an index: some images come twice in an epoch, some not at all."""

    kind: Literal["stream"] = "stream"
    urls: Annotated[tuple[str, ...], Resource] = Field(min_length=1)
    """Paths, globs or URLs (http, s3, gs, ...) of uncompressed, unchanging tars; {000..041} expands."""
    reference_images: int = Field(10_000, ge=2)
    """So many of the first images are prepared: scores compare with them, and held-out images are some of them."""
    shuffle_buffer: int = Field(10_000, ge=1)
    """Images that each worker holds, not decoded, to draw the next one from."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of their labels; empty: the labels of the first images themselves."""
    shape: ClassVar[Shape] = None

    @model_validator(mode="after")
    def _can_be_found(self) -> "Stream":
        expanded(self.urls)
        return self

    def fingerprint(self) -> Fingerprint:
        return {"kind": self.kind, "sha256": hashlib.sha256(repr(_stamps(self.locations())).encode()).hexdigest()}

    def locations(self) -> list[str]:
        """Every tar once, in order: remote URLs as they are, local ones as absolute paths."""
        return tar_locations(self.urls, "data.source.urls")


def _stamps(tars: list[str]) -> list[Stamp]:
    return [url if is_remote(url) else _file_stamp(Path(url), url) for url in tars]


Source = Annotated[
    Digits | Cifar10 | Mnist | FashionMnist | Arrays | ImageFolder | Shards | Stream, Field(discriminator="kind")
]


def can_grow(source: Source) -> TypeGuard[ImageFolder | Shards]:
    """Whether files may be added to the source, so that what is new can be told from what was there."""
    return isinstance(source, ImageFolder) or (isinstance(source, Shards) and source.index is None)


def _image_files(folder: Path) -> Iterator[Path]:
    """Below `folder` at any depth; what is hidden (and so not meant as data) is left out."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
                yield Path(parent, name)


def _file_stamp(path: Path, name: str) -> Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    return [name, status.st_size, status.st_mtime_ns]
