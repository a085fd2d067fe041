"""Everything that a resumed training needs, on disk: weights, average, optimizer, losses, the number of images seen.

A checkpoint is a folder; `manifest.json` is written last and holds the sha256 of the other files, so that a folder
without a manifest, or with other bytes than it says, is never mistaken for a checkpoint. Nothing in it is a pickle of
our classes.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from model import EMA, LossHistory

from .curve import Point
from .errors import TrainingError
from .files import read_json, sha256_of, write_json

FORMAT = 3
WEIGHTS, SPEC = "model.safetensors", "spec.json"  # what a finished training leaves beside its checkpoints
NETWORK, AVERAGE, HISTORY = "network.safetensors", "ema.safetensors", "history.safetensors"
OPTIMIZER, MANIFEST = "optimizer.pt", "manifest.json"
CHECKPOINTS, START = "checkpoints", "start"  # folders: of the attempt that is under way, and what it began from


@dataclass
class TrainState:
    """All that changes while training."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    images_seen: int = 0
    curve: list[Point] = field(default_factory=list)
    """Its points so far, on rank 0: a kill may keep the last ones from the driver's file."""
    history: LossHistory | None = None
    """Where the times depend on the losses so far."""

    def save(self, folder: Path, identity: str) -> None:
        """Writes the state into the empty `folder`. identity: digest of the configuration that it belongs to."""
        # save_file would keep the files from every other user of a shared disk
        tensors = {NETWORK: self.network.state_dict(), AVERAGE: self.ema.state_dict()}
        if self.history is not None:
            tensors[HISTORY] = self.history.state_dict()
        for name, content in tensors.items():
            (folder / name).write_bytes(save(content))
        torch.save(self.optimizer.state_dict(), folder / OPTIMIZER)
        manifest = {
            "format": FORMAT,
            "identity": identity,
            "images_seen": self.images_seen,
            "curve": self.curve,
            "sha256": {name: sha256_of(folder / name) for name in (*tensors, OPTIMIZER)},
        }
        write_json(folder / MANIFEST, manifest)

    def load(self, folder: Path, identity: str) -> None:
        """Takes over the state in `folder`. TrainingError where it is damaged or belongs to another configuration."""
        manifest = verified_manifest(folder)
        if manifest["identity"] != identity:
            raise TrainingError(
                f"{folder}: this checkpoint belongs to another configuration (identity {manifest['identity'][:12]}, "
                f"expected {identity[:12]}); remove the folder to train anew"
            )
        self.network.load_state_dict(load_file(folder / NETWORK))
        self.ema.load_state_dict(load_file(folder / AVERAGE))
        if self.history is not None:
            self.history.load_state_dict(load_file(folder / HISTORY))
        self.optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True))
        self.images_seen = manifest["images_seen"]
        self.curve = manifest["curve"]


def verified_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. TrainingError, with the file's name, unless all files are there and unchanged."""
    try:
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
    except (OSError, json.JSONDecodeError) as error:
        raise TrainingError(f"{folder}: no readable {MANIFEST} ({error}); remove this unfinished checkpoint") from None
    if manifest["format"] != FORMAT:
        raise TrainingError(f"{folder}: checkpoint format {manifest['format']}, this version reads {FORMAT}")
    for name, expected in manifest["sha256"].items():
        found = sha256_of(folder / name) if (folder / name).is_file() else "no file"
        if found != expected:
            raise TrainingError(
                f"{folder / name}: sha256 {found[:12]}, expected {expected[:12]}; remove this damaged checkpoint"
            )
    return manifest


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint below a training's folder with the most images seen; damaged ones are passed over."""
    for path in sorted(folder.glob("*/images-*"), key=lambda path: path.name, reverse=True):
        try:
            verified_manifest(path)
        except TrainingError:
            continue
        return path
    return None


def set_aside(folder: Path) -> Path | None:
    """Moves the newest checkpoint of earlier attempts out of Ray's way and clears away the rest. -> its new place.

    Ray Train would go on by its own snapshot of what there is, which lags behind and which a kill may leave half
    written, or naming a checkpoint that has been removed; then it starts no more.
    """
    newest = newest_checkpoint(folder)
    if newest is not None and newest.parent.name != START:
        kept = folder / START / newest.name
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(exist_ok=True)
        newest = newest.rename(kept)
    for path in [folder / CHECKPOINTS, *folder.glob(f"{START}/*")]:
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)
    return newest


def weights_digest(weights: dict[str, torch.Tensor]) -> str:
    """sha256 over names, shapes, types and bytes of the weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
