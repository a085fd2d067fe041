"""What an opened source is: labelled images of one size that can be read in any order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .image_files import Pixels

Labels = npt.NDArray[np.int64]
"""Class of each image [N], from 0; -1 throughout where the images have no class."""

_MAX_CLASSES = 100_000


@dataclass(frozen=True)
class SourceImages:
    """Labelled images that can be read in any order, by several threads at once."""

    labels: Labels
    class_names: tuple[str, ...]
    read: Callable[[int], Pixels]
    """Index -> uint8 [H, W, C] of the size and channels that were asked for."""

    def __len__(self) -> int:
        return len(self.labels)


def named_classes(labels: Labels, given: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Names of all classes, after a check that every label has one; () for images without classes."""
    if not len(labels) or (labels == -1).all():
        return ()
    lowest, highest = int(labels.min()), int(labels.max())
    limit = len(given) or _MAX_CLASSES
    if lowest < 0 or highest >= limit:
        raise DataError(f"{where}: labels from {lowest} to {highest}, expected 0 to {limit - 1}; correct the labels")
    return given or tuple(str(label) for label in range(highest + 1))


def images_in_memory(
    pixels: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    names: tuple[str, ...],
    where: str,
    image_size: int,
    channels: int,
) -> SourceImages:
    """Arrays as a source: uint8 [N, H, W] or [N, H, W, C] and integers [N], refused unless they fit."""
    found = f"{pixels.dtype} {list(pixels.shape)}"
    pixels = pixels[..., np.newaxis] if pixels.ndim == 3 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (image_size, image_size, channels):
        raise DataError(
            f"{where}: images are {found}, expected uint8 [N, {image_size}, {image_size}, {channels}]; "
            f"correct data.image_size and data.channels, or convert the array"
        )
    if labels.shape != pixels.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{where}: labels are {labels.dtype} {list(labels.shape)}, expected integers [{len(pixels)}]")
    labels = labels.astype(np.int64)
    return SourceImages(labels, named_classes(labels, names, where), lambda index: pixels[index])
