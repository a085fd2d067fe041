"""Everything that a resumed training needs, on disk: weights, averages, optimizer, losses, the number of images seen.

A checkpoint is a folder; `manifest.json` is written last and holds the sha256 of the other files, so that a folder
without a manifest, or with other bytes than it says, is never mistaken for a checkpoint. Nothing in it is a pickle of
our classes. It is written by a thread from a copy of the state, under another name until it is whole and on the disk,
so that training neither waits for the storage nor leaves half a checkpoint behind.
"""

import io
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from model import EMASnapshot, PowerFunctionEMA

from ..errors import TrainingError
from ..files import mismatch, read_json, sha256_of, write_json
from ..runfile.configfile import flatten
from .averages import AVERAGES, keep
from .parallel import load_whole, sharded_like, whole
from .train_state import TrainState

FORMAT = 5
WEIGHTS, SPEC = "model.safetensors", "spec.json"  # what a finished training leaves beside its checkpoints
NETWORK, AVERAGE, HISTORY = "network.safetensors", "ema.safetensors", "history.safetensors"
OPTIMIZER, MANIFEST = "optimizer.pt", "manifest.json"
CHECKPOINTS = "checkpoints"  # folder of a training's checkpoints, named by the images seen
_PREFIX, _UNFINISHED = "images-", ".writing-"


def images_of(path: Path) -> int:
    """The images seen at a checkpoint, by its folder's name or that of its picture."""
    return int(path.stem.removeprefix(_PREFIX))


def average_file(number: int) -> str:
    """Of the average of this number; that of 0 is the one that images are drawn from."""
    return AVERAGE if number == 0 else f"ema-{number}.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """The state of one moment, in memory."""

    tensors: dict[str, dict[str, Tensor]]
    """By file."""
    optimizer: dict[str, Any]
    manifest: dict[str, Any]
    """Without the digests of the files."""
    kept: dict[str, EMASnapshot]
    """Its files that stay when the checkpoint is removed, and which average each holds."""

    @classmethod
    def of(cls, state: TrainState, identity: Mapping[str, Any]) -> "Snapshot":
        """A copy that later steps do not change. identity: all that decided the state, as JSON.

        Where workers hold shards of the network, each of them must ask.
        """
        tensors = {NETWORK: state.network.state_dict()}
        tensors |= {average_file(number): ema.state_dict() for number, ema in enumerate(state.ema.averages)}
        if state.history is not None:
            tensors[HISTORY] = state.history.state_dict()
        manifest = {
            "format": FORMAT,
            "identity": identity,
            "images_seen": state.images_seen,
            "skipped": state.skipped.tolist(),
            "sums": state.sums,
            "curve": list(state.curve),
        }
        kept = {
            average_file(number): EMASnapshot(images_seen=state.images_seen, sigma_rel=profile.sigma_rel)
            for number, profile in enumerate(state.ema.profiles)
            if isinstance(profile, PowerFunctionEMA)
        }
        return cls(whole(tensors), whole(state.optimizer.state_dict()), manifest, kept)

    @property
    def name(self) -> str:
        """Folder name of its checkpoint."""
        return f"{_PREFIX}{self.manifest['images_seen']:012d}"

    def write(self, folder: Path) -> Path:
        """The checkpoint, whole and on the disk, within `folder`; what is kept of it, in the folder `averages` beside.

        -> its path. OSError where the storage refuses.
        """
        final, draft = folder / self.name, folder / f"{_UNFINISHED}{self.name}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, content in self.tensors.items():
            # save_file would keep the files from every other user of a shared disk
            (draft / name).write_bytes(save(content))
        buffer = io.BytesIO()
        torch.save(self.optimizer, buffer)  # to a file it would hide what the storage says behind an error of its own
        (draft / OPTIMIZER).write_bytes(buffer.getbuffer())
        names = [*self.tensors, OPTIMIZER]
        for name in names:
            _to_disk(draft / name)
        write_json(draft / MANIFEST, self.manifest | {"sha256": {name: sha256_of(draft / name) for name in names}})
        for name, moment in self.kept.items():  # before it has its name: who goes on from it finds them kept
            keep(draft / name, folder.parent / AVERAGES, moment)
        if self.kept:
            _to_disk(folder.parent / AVERAGES)
        shutil.rmtree(final, ignore_errors=True)  # the same moment, of an attempt before this one
        draft.rename(final)
        _to_disk(folder)
        return final


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class CheckpointWriter:
    """Writes one training's checkpoints, one at a time, while it goes on; keeps the newest and the best.

    A write that the storage refuses is told by `tell` and does not stop the training, which tries again at its next
    checkpoint; `refusals` of them in a row do, and so does a write that takes longer than `timeout_s` seconds, which is
    cluster.timeout_s. `on_written` is called with the path of each that is whole, by the thread that wrote it.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        timeout_s: float,
        tell: Callable[[str], None],
        refusals: int = 3,
        on_written: Callable[[Path], None] = lambda _: None,
    ) -> None:
        self.folder, self.keep, self.timeout_s, self.refusals = folder, keep, timeout_s, refusals
        self._tell, self._on_written = tell, on_written
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._refused = 0

    def save(self, snapshot: Snapshot) -> None:
        """Begins to write it, once the one before is done; TrainingError where `wait` would raise it."""
        self.wait()
        self._writing = self._thread.submit(self._write, snapshot)

    def wait(self) -> None:
        """Returns once nothing is being written. TrainingError where the storage is refusing or too slow."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        if wait([writing], self.timeout_s).not_done:
            raise TrainingError(
                f"{self.folder}: a checkpoint has been waited for {self.timeout_s:g} s (cluster.timeout_s); is the "
                "storage alive? Earlier ones are kept, and the same command goes on from there"
            )
        try:
            writing.result()
            self._refused = 0
        except OSError as error:
            self._refused += 1
            if self._refused >= self.refusals:
                raise TrainingError(
                    f"{self.folder}: {self._refused} checkpoints in a row could not be written ({error}); earlier ones "
                    f"are kept; mend the storage, and the same command goes on from there"
                ) from error
            self._tell(f"{self.folder}: checkpoint not written ({error}); training goes on and tries again")

    def close(self) -> None:
        """The last write must succeed: OSError, or TrainingError, where it does not."""
        self.refusals = min(self.refusals, self._refused + 1)
        self.wait()
        self._thread.shutdown()

    def _write(self, snapshot: Snapshot) -> None:
        try:
            written = snapshot.write(self.folder)
        except OSError:
            clear_unfinished(self.folder)  # its room is needed by whatever is tried next
            raise
        retain(self.folder, self.keep, written.name)
        self._on_written(written)


def retain(folder: Path, keep: int, newest: str) -> None:
    """Removes all checkpoints but the newest `keep` and the one whose training loss was the lowest.

    newest: the one that has just been written; later ones are damaged, or it would not have been, and do not count.
    """
    paths = [path for path in _by_age(folder) if path.name <= newest]
    losses = {path: _loss(path) for path in paths}
    kept = {*paths[:keep], min(paths, key=lambda path: losses[path])} if paths else set()
    for path in paths:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _loss(path: Path) -> float:
    """At the checkpoint's own point of the curve; infinite where there is none."""
    try:
        curve = read_json(path / MANIFEST)["curve"]
    except (OSError, ValueError, KeyError):
        return float("inf")
    return float(curve[-1].get("loss", "inf")) if curve else float("inf")


def clear_unfinished(folder: Path) -> None:
    """Removes what writes that were interrupted have left."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _by_age(folder: Path) -> list[Path]:
    """The newest first."""
    return sorted(folder.glob(f"{_PREFIX}*"), key=lambda path: path.name, reverse=True)


def newest_checkpoint(folder: Path, tell: Callable[[str], None] = lambda _: None) -> Path | None:
    """The whole checkpoint with the most images seen in a training's folder. `tell` hears of damaged ones."""
    for path in _by_age(folder / CHECKPOINTS):
        try:
            verified_manifest(path)
        except TrainingError as error:
            tell(f"{error}; going on from the one before")
            continue
        return path
    return None


def verified_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. TrainingError, with the file's name, unless all files are there and unchanged."""
    try:
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
        found, sha256 = manifest["format"], dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainingError(f"{folder}: no readable {MANIFEST} ({error}); remove this unfinished checkpoint") from None
    if found != FORMAT:
        raise TrainingError(f"{folder}: checkpoint format {found}, this version reads {FORMAT}")
    if strange := {name for name in sha256 if Path(name).name != name} | ({NETWORK, AVERAGE, OPTIMIZER} - set(sha256)):
        raise TrainingError(f"{folder}: {MANIFEST} names other files than a checkpoint has ({min(strange)}); remove it")
    for name, expected in sha256.items():
        if wrong := mismatch(folder / name, expected):
            raise TrainingError(f"{wrong}; remove this damaged checkpoint")
    return manifest


def restore(state: TrainState, folder: Path, identity: Mapping[str, Any]) -> None:
    """The state becomes that in `folder`. TrainingError where it is damaged or belongs to another configuration."""
    manifest = verified_manifest(folder)
    found, expected = flatten(manifest["identity"]), flatten(identity)
    differing = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    if differing:
        differences = "; ".join(
            f"{key}: {found.get(key, 'absent')} there, {expected.get(key, 'absent')} here" for key in differing
        )
        raise TrainingError(
            f"{folder}: this checkpoint belongs to another configuration ({differences}); move "
            f"{folder.parent} away to train anew"
        )
    load_whole(state.network, load_file(folder / NETWORK))
    for number, ema in enumerate(state.ema.averages):
        load_whole(ema, load_file(folder / average_file(number)))
    if state.history is not None:
        state.history.load_state_dict(load_file(folder / HISTORY))
    optimizer, parameters = torch.load(folder / OPTIMIZER, weights_only=True), list(state.network.parameters())
    for number, kept in optimizer["state"].items():  # Adam keeps two tensors like each parameter
        kept |= sharded_like(kept, dict.fromkeys(("exp_avg", "exp_avg_sq"), parameters[number]))
    state.optimizer.load_state_dict(optimizer)
    state.images_seen = manifest["images_seen"]
    state.curve = manifest["curve"]
    state.skipped.copy_(torch.tensor(manifest["skipped"]))
    state.sums = manifest["sums"]
