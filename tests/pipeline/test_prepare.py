"""What cannot be trained on or scored is refused once the images are known, before training is begun."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Config
from pipeline.errors import DataError
from pipeline.prepare import Prepare, check_prepared
from pipeline.stage import Run
from pipeline.terminal import Terminal


def prepared(folder: Path, images: int, batch_size: int, labels: bool = True) -> Run:
    np.savez(folder / "data.npz", images=np.zeros((images, 8, 8), np.uint8), labels=np.arange(images) % 2)
    source = {"kind": "arrays", "images": str(folder / "data.npz")}
    config = Config.model_validate(
        {
            "name": "tiny",
            "data": {
                "source": source | ({"labels": str(folder / "data.npz")} if labels else {}),
                "image_size": 8,
                "channels": 1,
                "heldout_fraction": 0,
            },
            "network": {"kind": "ddpm_unet", "channel_multipliers": [1], "attention_sizes": [8]},
            "path": {"kind": "vp_cosine"},
            "train": {"images": 8, "batch_size": batch_size},
            "sample": {"images": 2, "sampler": {"kind": "ddim"}},
            "evaluate": {"extractor": {"kind": "classifier"}},
            "register": {"model_name": "tiny"},
            "output": str(folder / "out"),
        }
    )
    run = Run(config, Terminal())
    run.results["prepare"] = Prepare().finish(run)
    return run


def test_enough_labelled_images_are_accepted(tmp_path: Path) -> None:
    check_prepared(prepared(tmp_path, images=4, batch_size=4))


def test_fewer_images_than_one_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"4 images to train on are fewer than train\.batch_size 5; lower"):
        check_prepared(prepared(tmp_path, images=4, batch_size=5))


def test_one_image_is_too_few_for_a_score(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 image to train on; scores need at least 2"):
        check_prepared(prepared(tmp_path, images=1, batch_size=1))


def test_the_classifier_is_refused_without_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"kind=classifier learns from labels, and these images have none"):
        check_prepared(prepared(tmp_path, images=4, batch_size=4, labels=False))
