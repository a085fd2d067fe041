"""Drawn images as webdataset tars: read by webdataset and by our own reader, the same bytes each time, found again."""

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from safetensors.torch import save_file

from pipeline.__main__ import main
from pipeline.data.prepare import Prepare, check_prepared
from pipeline.data.reader import ShardReader
from pipeline.data.shard_index import ShardIndex
from pipeline.files import sha256_of
from pipeline.runfile.config import Config
from pipeline.sampling.chunks import Chunks, ChunkTask
from pipeline.sampling.drawer import Drawer, Equipment
from pipeline.sampling.sample import Sample
from pipeline.sampling.sample_shards import SampleShards
from pipeline.stage import Result, Run
from pipeline.terminal import Terminal
from pipeline.training.checkpoint import SPEC, WEIGHTS
from pipeline.training.trained_model import ModelFolders

from .trainings import TINY

IMAGES, SEED = 24, 100
CONFIG = TINY | {
    "train": {"images": 64, "batch_size": 8},
    "sample": {
        "images": IMAGES,
        "seed": SEED,
        "chunk_images": 10,
        "sampler": {"kind": "ddim", "steps": 2},
        "shards": True,
    },
}


def drawn(folder: Path, **sections: Any) -> Run:
    """Drawn from random weights."""
    run = Run(Config.model_validate(CONFIG | {"output": str(folder)} | sections), Terminal())
    run.results["prepare"] = Prepare().finish(run)
    training, samples = folder / "train-0123456789ab", folder / "sample-0123456789ab"
    training.mkdir()
    torch.manual_seed(0)
    save_file(run.config.spec.build().state_dict(), training / WEIGHTS)
    (training / SPEC).write_text(run.config.spec.model_dump_json())
    run.results["sample"] = Result(samples, {"device_type": "cpu"}, 1.0, reused=False)
    chunks = Chunks.of(run)
    drawer = Drawer(Equipment.of(run.config.sample, ModelFolders(training, None, training / WEIGHTS), "cpu"), 1)
    for chunk in range(chunks.count):
        drawer.draw(ChunkTask(chunks, chunk))
    return run


def told_classes(folder: Path) -> Run:
    return drawn(folder, conditioning={"kind": "class_label", "classes": 10})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_finds_seed_class_and_image_of_each_sample_in_order(tmp_path: Path) -> None:
    run = told_classes(tmp_path)
    folder = SampleShards().finish(run).folder
    tars = sorted(str(tar) for tar in folder.glob("*.tar"))
    assert len(tars) == 3
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("l8"))
    gc.collect()  # it leaves files open; let that be said here
    assert [sample["json"]["seed"] for sample in samples] == list(range(SEED, SEED + IMAGES))
    assert [sample["__key__"] for sample in samples] == [f"{SEED + number:012d}" for number in range(IMAGES)]
    assert [sample["cls"] for sample in samples] == [(SEED + number) % 10 for number in range(IMAGES)]
    images = np.stack([sample["png"] for sample in samples])[..., None]
    np.testing.assert_array_equal(images, Chunks.of(run).read_all(IMAGES))


def test_the_folder_is_a_source_of_data_wherever_it_lies(tmp_path: Path) -> None:
    run = told_classes(tmp_path / "drawn")
    result = SampleShards().finish(run)
    moved = result.folder.rename(tmp_path / "shared")
    data = {"source": {"kind": "shards", "index": str(moved)}, "image_size": 8, "channels": 1, "heldout_fraction": 0}
    training = Run(Config.model_validate(CONFIG | {"output": str(tmp_path / "out"), "data": data}), Terminal())
    training.results["prepare"] = Prepare().finish(training)
    check_prepared(training)
    reader = ShardReader(training.index, "train", "none")
    np.testing.assert_array_equal(reader.read(np.arange(IMAGES)), Chunks.of(run).read_all(IMAGES))
    assert reader.labels.tolist() == [(SEED + number) % 10 for number in range(IMAGES)]
    assert training.index.class_names == run.index.class_names


def test_the_index_of_the_command_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = SampleShards().finish(drawn(tmp_path / "drawn"))
    assert main(["index", f"{result.folder}/samples-*.tar", "--into", str(tmp_path / "index")]) == 0
    assert "24 of 8x8 pixels, grey" in capsys.readouterr().out
    assert ShardIndex.load(tmp_path / "index").digest == result.facts["data_digest"]


def test_images_that_were_asked_to_be_of_no_class_have_none(tmp_path: Path) -> None:
    run = drawn(tmp_path)
    index = ShardIndex.load(SampleShards().finish(run).folder)
    assert index.class_names == ()
    assert (index.labels("train") == -1).all()


def test_an_interrupted_stage_keeps_whole_tars_and_makes_the_same_bytes_of_the_others(tmp_path: Path) -> None:
    run, stage = told_classes(tmp_path), SampleShards()
    folder = stage.finish(run).folder
    first, second, last = sorted(folder.glob("*.tar"))
    digests = [sha256_of(tar) for tar in (first, second, last)]
    second.unlink()
    (folder / "done.json").unlink()
    before = first.stat().st_mtime_ns
    assert stage.finish(run).facts == json.loads((folder / "done.json").read_text())["facts"]
    assert [sha256_of(tar) for tar in (first, second, last)] == digests
    assert first.stat().st_mtime_ns == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_tars_change_neither_the_run_nor_its_samples(tmp_path: Path) -> None:
    run = drawn(tmp_path)
    plain = run.config.model_copy(update={"sample": run.config.sample.model_copy(update={"shards": False})})
    assert (SampleShards().wanted(run.config), SampleShards().wanted(plain)) == (True, False)
    without = Run(plain, Terminal(), results=run.results)
    run.results["train"] = Result(tmp_path, {"weights_digest": "w"}, 1.0, reused=False)
    assert (without.key, Sample().folder(without)) == (run.key, Sample().folder(run))
