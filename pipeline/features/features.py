"""Features of images on disk: one file for each batch, whole or absent, and by whom they were made."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation import Extractor, Features, LoadedExtractor, WeightsFile, joined, load_extractor

from ..errors import DataError
from ..files import read_arrays, write_arrays
from ..runfile.keyroles import identity


class Batch(NamedTuple):
    """Images whose features are taken together: always the same ones, since rounding may depend on the batch."""

    source: str
    """Which set they are of: samples, train or heldout."""
    number: int
    images: int


def batches(source: str, images: int, batch_images: int) -> Iterator[Batch]:
    """All batches of a set of so many images, in order; the last one may be smaller."""
    for number in range(-(-images // batch_images)):
        yield Batch(source, number, min(batch_images, images - number * batch_images))


@dataclass(frozen=True)
class Extraction:
    """Which network makes features of images; its weights are known by now."""

    extractor: Extractor
    classifier: Path
    """The weights of the classifier that was trained on these data, where it is the extractor."""
    digest: str
    """sha256 of the weights file."""

    def load(self, device_type: str) -> LoadedExtractor:
        """The network, on a device of this type."""
        return load_extractor(self.extractor, self.classifier, device_type)


@dataclass(frozen=True)
class FeatureFiles:
    """The files with the features of sets of images, made by one extractor on one type of device."""

    folder: Path
    digest: str
    """Of the extractor's weights."""
    device_type: str

    def path(self, batch: Batch) -> Path:
        """Where the features of this batch are, or are to be."""
        name = f"features-{self.digest[:12]}-{batch.source}-{batch.number:06d}-{self.device_type}.npz"
        return self.folder / name

    def write(self, batch: Batch, features: Features) -> None:
        """Writes them, whole or not at all."""
        write_arrays(self.path(batch), pool=features.pool, logits=features.logits, extractor=np.array(self.digest))

    def read(self, batch: Batch) -> Features | None:
        """The features of this batch; None unless there is a whole file, made by this extractor."""
        try:
            pool, logits, made_by = read_arrays(self.path(batch), "pool", "logits", "extractor")
        except DataError:
            return None
        return Features(pool, logits) if str(made_by) == self.digest and len(pool) == batch.images else None

    def parts(self, of: Iterator[Batch]) -> Iterator[Features]:
        """The features of these batches, in order. DataError where they have gone since they were made."""
        for batch in of:
            part = self.read(batch)
            if part is None:
                raise DataError(
                    f"{self.path(batch)}: no whole features of {batch.images} images by the extractor "
                    f"{self.digest[:12]}; run the same command again, it makes them anew"
                )
            yield part

    def joined(self, of: Iterator[Batch]) -> Features:
        """The features of these batches as one set, in order. DataError as `parts`."""
        return joined(self.parts(of))


def extractor_identity(extractor: Extractor) -> Any:
    """What decides the features: of weights in a file, what they are and not where."""
    if isinstance(extractor, WeightsFile):
        chosen = extractor.model_dump(mode="json", exclude={"weights", "weights_sha256"})
        return chosen | {"weights": extractor.file_digest()}
    return identity(extractor)
