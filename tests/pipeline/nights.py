"""What a night on handwritten digits needs: a folder of images that grows, a run file, a registry."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.__main__ import main
from pipeline.tracking.mlflow_store import connect

from .commands import FILE_NAME, new_folder

RUN_FILE = """\
version: 1
name: night
data: {{source: {{kind: image_folder, path: {images}}}, image_size: 8, channels: 1, heldout_fraction: 0.2}}
network:
  {{kind: ddpm_unet, base_channels: 16, channel_multipliers: [1, 2], blocks_per_level: 1, attention_sizes: [4], \
   dropout: 0.0}}
path: {{kind: vp_cosine}}
train: {{images: 19_200, batch_size: 64, num_workers: 1, learning_rate: 3.0e-3, ema: {{half_life_images: 2_000}}}}
sample: {{images: 200, chunk_images: 20, sampler: {{kind: ddim, steps: 10, grid: uniform}}}}
evaluate: {{extractor: {{kind: classifier, images: 8_000, width: 4, features: 16}}}}
register: {{model_name: night, gate: {{most_copies: 1, most_loss: 0.9}}}}
cluster: {{address: auto}}
"""


def add_digits(images: Path, first: int, last: int) -> None:
    """Writes some of scikit-learn's digits as PNG files, a folder for each class."""
    digits = load_digits()
    for number in range(first, last):
        folder = images / str(digits.target[number])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.rint(digits.images[number] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")


def new_nights(tmp_path_factory: pytest.TempPathFactory, name: str, images: int) -> Path:
    """A folder with a run file of nights on this many digits."""
    source = tmp_path_factory.mktemp("images")
    add_digits(source, 0, images)
    return new_folder(tmp_path_factory, name, RUN_FILE.format(images=source))


def images_of(folder: Path) -> Path:
    """Where the nights' images are."""
    return Path((folder / FILE_NAME).read_text().partition("path: ")[2].partition("}")[0])


def uri_of(folder: Path) -> str:
    """The registry of nights in this folder."""
    return f"sqlite:///{folder / 'outputs/mlflow.db'}"


def aliases_of(folder: Path) -> dict[str, int]:
    """The version behind each alias of the nights' model."""
    found = connect(uri_of(folder)).get_registered_model("night").aliases
    return {name: int(number) for name, number in found.items()}


def verb(folder: Path, *arguments: str) -> int:
    """A command on the nights' registry, in this process. -> its exit code."""
    return main([*arguments, "--tracking-uri", uri_of(folder)])
