"""Everything that a resumed training needs, on disk: weights, average, optimizer, and the number of images seen.

A checkpoint is a folder; `manifest.json` is written last and holds the sha256 of the other files, so that a folder
without a manifest, or with other bytes than it says, is never mistaken for a checkpoint. Nothing in it is a pickle of
our classes.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from model import EMA

from .errors import TrainingError
from .files import read_json, sha256_of, write_json

FORMAT = 1
WEIGHTS, SPEC = "model.safetensors", "spec.json"  # what a finished training leaves beside its checkpoints
NETWORK, AVERAGE, OPTIMIZER, MANIFEST = (
    "network.safetensors",
    "ema.safetensors",
    "optimizer.pt",
    "manifest.json",
)


@dataclass
class TrainState:
    """All that changes while training."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    images_seen: int = 0

    def save(self, folder: Path, identity: str) -> None:
        """Writes the state into the empty `folder`; `identity` is the digest of the configuration that it belongs
        to.
        """
        # save_file would keep the files from every other user of a shared disk
        (folder / NETWORK).write_bytes(save(self.network.state_dict()))
        (folder / AVERAGE).write_bytes(save(self.ema.state_dict()))
        torch.save(self.optimizer.state_dict(), folder / OPTIMIZER)
        manifest = {
            "format": FORMAT,
            "identity": identity,
            "images_seen": self.images_seen,
            "sha256": {name: sha256_of(folder / name) for name in (NETWORK, AVERAGE, OPTIMIZER)},
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
        self.optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True))
        self.images_seen = manifest["images_seen"]


def verified_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all there and unchanged. TrainingError otherwise, naming the
    file.
    """
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


def weights_digest(weights: dict[str, torch.Tensor]) -> str:
    """sha256 over names, shapes, types and bytes of the weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
