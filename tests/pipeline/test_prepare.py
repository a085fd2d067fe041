"""What cannot be trained on or scored is refused once the images are known, before training is begun."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.order import Blocks
from pipeline.data.prepare import Prepare, check_prepared
from pipeline.errors import DataError
from pipeline.runfile.config import Config
from pipeline.stage import Run
from pipeline.terminal import Terminal
from pipeline.training.train import Train

from .conftest import Served


def prepared(folder: Path, images: int, batch_size: int, labels: bool = True, **data: Any) -> Run:
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
                **data,
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


def test_the_order_is_no_reason_to_pack_anew(tmp_path: Path) -> None:
    run = prepared(tmp_path, 4, 4)
    data = run.config.data.model_copy(update={"order": Blocks(shards=2)})
    other = Run(run.config.model_copy(update={"data": data}), Terminal(), results=run.results)
    assert Prepare().folder(run) == Prepare().folder(other)
    assert Train().folder(run) != Train().folder(other)


def test_a_shard_cache_too_small_for_the_order_is_refused(tmp_path: Path, served: Served) -> None:
    for path in prepared(tmp_path, 8, 4, shard_images=2).index.folder.glob("*.tar"):
        (served.folder / path.name).write_bytes(path.read_bytes())
    size_bytes = (served.folder / "train-000000.tar").stat().st_size
    remote = {
        "source": {"kind": "shards", "urls": [f"{served.url}/train-{{000000..000003}}.tar"]},
        "shard_cache": {"folder": str(tmp_path / "cache"), "limit_bytes": 2 * size_bytes},
    }
    check_prepared(prepared(tmp_path, 8, 4, **remote, order={"kind": "blocks", "shards": 1}))
    with pytest.raises(DataError, match=rf"=blocks reads {4 * size_bytes:,} bytes of .*{2 * size_bytes:,}"):
        check_prepared(prepared(tmp_path, 8, 4, **remote, order={"kind": "blocks", "shards": 2}))
    with pytest.raises(DataError, match=r"data.order.kind=permutation reads [\d,]+ bytes of remote shards at"):
        check_prepared(prepared(tmp_path, 8, 4, **remote))
