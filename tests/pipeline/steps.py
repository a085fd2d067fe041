"""Training steps for tests, in this process or by several: `python steps.py RANK WORKERS PORT OPTIONS FOLDER`."""

import json
import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from model import DDPMUNet, Denoising, ModelSpec, Simple, Unconditional, VPCosine
from pipeline.files import write_json
from pipeline.runfile.train_config import TrainConfig
from pipeline.training.checkpoint import Snapshot, restore
from pipeline.training.train_step import Batch, Recipe, TrainStep, share_of

STEPS, BATCH = 40, 17  # which two workers cannot share evenly
SPEC = ModelSpec(
    image_size=8,
    channels=1,
    # small, for its compilation is what takes long
    network=DDPMUNet(base_channels=16, channel_multipliers=(1,), blocks_per_level=1, attention_sizes=(), dropout=0),
    path=VPCosine(),
)


def new_step(options: Mapping[str, Any], world_size: int = 1) -> TrainStep:
    """`options` are keys of `train`."""
    train = {
        "images": STEPS * BATCH,
        "batch_size": BATCH,
        "learning_rate": 3e-3,
        "also_averaged": [{"kind": "power_function"}],
        "precision": "fp32",
    }
    recipe = Recipe(Denoising(SPEC, Simple()), TrainConfig.model_validate(train | options), Unconditional())
    return TrainStep(recipe, torch.device("cpu"), world_size)


def share(position: int, rank: int, world_size: int) -> Batch:
    """A worker's part of the batch that begins at this position: a bright square somewhere in each image."""
    places = share_of(BATCH, rank, world_size)
    images = torch.zeros(BATCH, 8, 8, 1, dtype=torch.uint8)
    for image in range(BATCH):
        corner = (position + 5 * image) % 5
        images[image, corner : corner + 3, 4 - corner : 7 - corner] = 255
    return Batch(position + places.start, images[places.start : places.stop], torch.full((len(places),), -1))


def losses(step: TrainStep, first: int, last: int, rank: int = 0, world_size: int = 1) -> list[float]:
    """Of the global batch at each of these steps."""
    found = []
    for number in range(first, last):
        step(share(number * BATCH, rank, world_size))
        found.append(step.take_figures()["loss"])
    return found


def train_together(rank: int, world_size: int, options: dict[str, Any], folder: Path) -> None:
    """Trains to the middle, leaves a checkpoint, and to the end; another step goes on from that checkpoint as well.

    In the folder are then the losses of both, and the checkpoints of their ends.
    """
    step = new_step(options, world_size)
    before = losses(step, 0, STEPS // 2, rank, world_size)
    snapshot = Snapshot.of(step.state, {})
    if rank == 0:
        snapshot.write(folder)
    torch.distributed.barrier()
    resumed = new_step(options, world_size)
    restore(resumed.state, folder / snapshot.name, {})
    for name, some in (("whole", step), ("resumed", resumed)):
        found = before + losses(some, STEPS // 2, STEPS, rank, world_size)
        end = Snapshot.of(some.state, {})
        if rank == 0:
            end.write(folder / name / "checkpoints")
            write_json(folder / name / "losses.json", found)


def main() -> None:
    """One of the processes."""
    rank, world_size, port = map(int, sys.argv[1:4])
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=300), rank=rank, world_size=world_size)
    train_together(rank, world_size, json.loads(sys.argv[4]), Path(sys.argv[5]))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
