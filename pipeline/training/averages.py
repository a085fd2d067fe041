"""Power-function averages of a training, kept at each of its checkpoints, and averages of other lengths made of them.

Karras et al. 2024, section 3.2. Checkpoints are removed when newer ones are written; these files stay, in the folder
`averages` of the training's folder. Their names say the images seen and the relative width. Beside them lie post-hoc
averages: those of other widths, made of the kept ones once the training has ended.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from evaluation.atomic import whole_file
from model import EMASnapshot, Reconstruction, combine_weights, reconstruct_average

from ..errors import TrainingError
from ..files import mismatch, sha256_of, write_bytes

AVERAGES = "averages"
LARGE_ERROR = 0.1
"""Error of a reconstruction, as a share of the wanted profile's norm, from which on the terminal advises against it.
Where weights scatter like white noise around their mean, an average scatters in proportion to its profile's norm: an
error of 0.1 then adds a hundredth to the variance of the average."""

_KEPT, _POSTHOC = "images-{:012d}-sigma_rel-{}.safetensors", "sigma_rel-{}.safetensors"


def keep(file: Path, folder: Path, moment: EMASnapshot) -> None:
    """Keeps a checkpoint's file in `folder`, as a hard link where the file system can. OSError where it refuses.

    moment: what the file holds. One of the same moment is replaced: a training that resumed from before makes it again.
    """
    with whole_file(folder / _KEPT.format(moment.images_seen, moment.sigma_rel)) as draft:
        draft.unlink(missing_ok=True)  # of an attempt that was killed
        try:
            os.link(file, draft)
        except OSError:  # no links there, or another file system; anything else that is wrong fails the copy, too
            shutil.copyfile(file, draft)


def clear_after(folder: Path, images_seen: int) -> None:
    """Removes what a kill has left half kept, and averages later than where the training goes on: of steps that are
    undone, which may be taken otherwise, by another number of workers for instance.
    """
    for path in folder.glob(".*.safetensors"):
        path.unlink(missing_ok=True)
    for path in folder.glob("images-*.safetensors"):
        if _moment(path.name).images_seen > images_seen:
            path.unlink(missing_ok=True)


def clear_posthoc(folder: Path) -> None:
    """Removes post-hoc averages: a training that has gone on since they were made may have kept others."""
    for path in folder.glob(_POSTHOC.format("*")):
        path.unlink()


def kept(folder: Path) -> dict[str, str]:
    """File name -> sha256 of the averages that a training has kept in `folder`."""
    return {path.name: sha256_of(path) for path in sorted(folder.glob("images-*.safetensors"))}


@dataclass(frozen=True)
class KeptAverage:
    """One that a training has kept at a checkpoint."""

    path: Path
    sha256: str
    """Of the file, as `kept` found it when the training ended."""

    @property
    def images_seen(self) -> int:
        """At that checkpoint."""
        return _moment(self.path.name).images_seen

    def checked(self) -> Path:
        """The file, which is still what it was. TrainingError where it is missing or damaged."""
        if wrong := mismatch(self.path, self.sha256):
            training = self.path.parent.parent
            raise TrainingError(
                f"{wrong}; restore this average, or set sample.sigma_rel=null and evaluate.curve_images=0, or "
                f"remove {training} to train anew"
            )
        return self.path


def along_the_way(folder: Path, kept: Mapping[str, str]) -> list[KeptAverage]:
    """Those of the narrowest width, which follow the network most closely, in the order of the training.

    folder, kept: as in `PostHocAverage`.
    """
    widths = {name: _moment(name).sigma_rel for name in kept}
    narrowest = [KeptAverage(folder / name, kept[name]) for name in kept if widths[name] == min(widths.values())]
    return sorted(narrowest, key=lambda average: average.images_seen)


def _moment(name: str) -> EMASnapshot:
    """What the file of this name holds."""
    images, sigma_rel = name.removeprefix("images-").removesuffix(".safetensors").split("-sigma_rel-")
    return EMASnapshot(images_seen=int(images), sigma_rel=float(sigma_rel))


@dataclass(frozen=True)
class PostHocAverage:
    """A power-function average of any relative width, at the end of a training, made of those that it has kept."""

    folder: Path
    """Where the training has kept them."""
    kept: Mapping[str, str]
    """File name -> sha256, as `kept` found them when the training ended."""
    wanted: EMASnapshot

    @property
    def file(self) -> Path:
        """Where it is once `make` has been called."""
        return self.folder / _POSTHOC.format(self.wanted.sigma_rel)

    @cached_property
    def reconstruction(self) -> Reconstruction:
        """Coefficients in the order of `kept`, and the error. TrainingError where nothing was kept."""
        if not self.kept:
            raise TrainingError(
                f"{self.folder}: no averages were kept; set sample.sigma_rel=null, or remove {self.folder.parent} to "
                "train anew"
            )
        return reconstruct_average([_moment(name) for name in self.kept], self.wanted)

    def __str__(self) -> str:
        """In a line for the terminal, with what to do where the error is large."""
        error = self.reconstruction.error
        words = f"sigma_rel {self.wanted.sigma_rel:g}: made of {len(self.kept):,} kept averages, {error:.1%} off"
        if error <= LARGE_ERROR:
            return words
        return (
            f"{words}; keep two widths in train.also_averaged, or remove {self.folder.parent} to train anew with a "
            "smaller train.checkpoint_images"
        )

    def make(self) -> None:
        """Writes the file. TrainingError where one that was kept is missing or damaged."""
        coefficients = self.reconstruction.coefficients
        parts = [
            (coefficient, partial(self._load, name)) for coefficient, name in zip(coefficients, self.kept, strict=True)
        ]
        write_bytes(self.file, save(combine_weights(parts)))

    def _load(self, name: str) -> dict[str, Tensor]:
        return load_file(KeptAverage(self.folder / name, self.kept[name]).checked())
