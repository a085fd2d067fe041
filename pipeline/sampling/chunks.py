"""The files of a sample set: fixed chunks of seeds, each a file that is whole or absent.

Chunk c holds the images c * B to (c + 1) * B and is always drawn as one batch of B, the last one too, whose surplus
is dropped: so an image does not depend on how many images, actors or attempts there were. A chunk says how often the
network was called for it, on which device, and the sha256 of its pixels: one that is drawn again must have the same.
Beside it lie its features, taken where it was drawn; beside the first also how its first images emerged, and what is
between two of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, SamplingError
from ..features.features import Batch, FeatureFiles
from ..files import read_arrays, remove_drafts
from ..runfile.config import SampleConfig
from ..stage import Run

STRIP, INTERPOLATION = "strip.npz", "interpolation.npz"


@dataclass(frozen=True)
class Chunks:
    """The files of a sample set: which there are, and what each must hold."""

    folder: Path
    config: SampleConfig
    device_type: str
    """cpu or cuda; an image is the same to the bit only on one type, so chunks of two never mix."""

    @classmethod
    def of(cls, run: Run) -> "Chunks":
        """Those of a run whose images have been drawn."""
        drawn = run.results["sample"]
        return cls(drawn.folder, run.config.sample, drawn.facts["device_type"])

    @property
    def count(self) -> int:
        """Number of chunks of the whole set."""
        return -(-self.config.images // self.config.chunk_images)

    def images_of(self, chunk: int) -> int:
        """Images that this chunk adds to the set; the last one may add fewer than it draws."""
        return min(self.config.chunk_images, self.config.images - chunk * self.config.chunk_images)

    def path(self, chunk: int) -> Path:
        """Where the chunk's file is, or is to be."""
        return self.folder / f"chunk-{chunk:06d}-{self.device_type}.npz"

    @property
    def strip(self) -> Path:
        """Where the denoising strip of the first images is, or is to be: frames uint8 [S, N, H, W, C], their times."""
        return self.folder / STRIP

    @property
    def interpolation(self) -> Path:
        """Where the images from the first seed to the second are, or are to be: frames uint8 [F, H, W, C]."""
        return self.folder / INTERPOLATION

    def seeds(self, chunk: int) -> NDArray[np.int64]:
        """Seeds of the whole chunk. -> int64 [chunk_images]."""
        start = self.config.seed + chunk * self.config.chunk_images
        return np.arange(start, start + self.config.chunk_images)

    def read(self, chunk: int) -> NDArray[np.uint8]:
        """The chunk's images, uint8 [images_of, H, W, C]. DataError where the file is missing or damaged."""
        path = self.path(chunk)
        try:
            seeds, images, _ = read_arrays(path, "seeds", "images", "network_evaluations")
        except DataError as error:
            raise DataError(f"{error}; {self._remedy}") from None
        expected = self.seeds(chunk)[: self.images_of(chunk)]
        if not np.array_equal(seeds, expected) or len(images) != len(expected):
            raise DataError(
                f"{path}: {len(images)} images of seeds from {seeds[:1]}, expected {len(expected)} from "
                f"{expected[:1]}; {self._remedy}"
            )
        return np.asarray(images)

    def pick(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """These images of the set, in their order; each chunk is read once. int64 [n], n > 0 -> uint8 [n, H, W, C]."""
        chunks, places = np.divmod(numbers, self.config.chunk_images)
        read = {chunk: self.read(chunk) for chunk in np.unique(chunks).tolist()}
        return np.stack([read[chunk][place] for chunk, place in zip(chunks.tolist(), places.tolist(), strict=True)])

    @property
    def _remedy(self) -> str:
        return f"remove {self.folder / 'done.json'}, and the same command draws anew what is missing or damaged"

    def is_whole(self, chunk: int) -> bool:
        """Whether the chunk is there, the first with its strips; a damaged file is removed, to be drawn again."""
        try:
            self.read(chunk)
        except DataError:
            self.path(chunk).unlink(missing_ok=True)
            return False
        return chunk > 0 or (self.strip.exists() and self.interpolation.exists())

    def missing(self) -> list["ChunkTask"]:
        """What is still to be drawn, in order; what a kill has left half written is removed."""
        remove_drafts(self.folder)
        return [ChunkTask(self, chunk) for chunk in range(self.count) if not self.is_whole(chunk)]

    def read_all(self, images: int) -> NDArray[np.uint8]:
        """The first `images` images of the set. -> uint8 [images, H, W, C]."""
        last = -(-images // self.config.chunk_images)
        return np.concatenate([self.read(chunk) for chunk in range(last)])[:images]

    def batch(self, chunk: int) -> Batch:
        """The chunk as images whose features are taken together."""
        return Batch("samples", chunk, self.images_of(chunk))

    def batches(self) -> Iterator[Batch]:
        """All chunks, in order."""
        return map(self.batch, range(self.count))

    def features(self, extractor_digest: str) -> FeatureFiles:
        """Where the features of the chunks are, or are to be, by the extractor of these weights."""
        return FeatureFiles(self.folder, extractor_digest, self.device_type)

    def check_same(self, chunk: int, device: str, pixels_sha256: str) -> None:
        """SamplingError where the chunk is there, was drawn on such a device, and has other pixels."""
        try:
            kept_sha256, kept_device = (str(each) for each in read_arrays(self.path(chunk), "pixels_sha256", "device"))
        except DataError:
            return
        if kept_device == device and kept_sha256 != pixels_sha256:
            raise SamplingError(
                f"{self.path(chunk)}: non-deterministic sampler: drawn again on {device}, its pixels have sha256 "
                f"{pixels_sha256[:12]} and not {kept_sha256[:12]}; scores would depend on chance. Are nodes of one "
                f"device of different software? Else report it; remove {self.folder} to draw all of it anew"
            )

    def devices(self) -> list[str]:
        """Names of the devices that drew the set, sorted."""
        return sorted({str(read_arrays(self.path(chunk), "device")[0]) for chunk in range(self.count)})

    def network_evaluations(self) -> float:
        """Calls of the network for each image, mean over the whole set. DataError where a chunk is missing."""
        chunks = range(self.count)
        each = [float(read_arrays(self.path(chunk), "network_evaluations")[0]) for chunk in chunks]
        return float(np.average(each, weights=[self.images_of(chunk) for chunk in chunks]))


class ChunkTask(NamedTuple):
    """One chunk to be drawn, whichever set it is of."""

    chunks: Chunks
    number: int

    @property
    def images(self) -> int:
        """Images that it adds to its set."""
        return self.chunks.images_of(self.number)
