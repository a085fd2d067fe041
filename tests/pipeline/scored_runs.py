"""A run whose files are there without a cluster: packed, drawn from random weights, with figures of the tests' own."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.data.prepare import Prepare
from pipeline.files import write_json
from pipeline.runfile.config import Config
from pipeline.sampling.chunks import Chunks, ChunkTask
from pipeline.sampling.drawer import Drawer, Equipment
from pipeline.scoring.evaluate import PROTOCOL
from pipeline.scoring.report import write_report
from pipeline.scoring.run_pictures import draw_pictures
from pipeline.stage import Result, Run
from pipeline.terminal import Terminal
from pipeline.training.checkpoint import SPEC, WEIGHTS
from pipeline.training.curve import CURVE
from pipeline.training.trained_model import ModelFolders

from .trainings import TINY

CLASSES, IMAGES = 10, 24
CONFIG = TINY | {
    "train": {"images": 1_000, "batch_size": 8, "learning_rate": 1e-3},
    "sample": {"images": IMAGES, "chunk_images": 10, "sampler": {"kind": "ddim", "steps": 2}},
}


def a_run(folder: Path, extractor: str = "classifier", **sections: Any) -> Run:
    """Packed, drawn from random weights, and scored with figures of the test's own."""
    run = Run(Config.model_validate(CONFIG | {"output": str(folder)} | sections), Terminal())
    run.folder.mkdir(parents=True)
    run.results["prepare"] = Prepare().finish(run)

    def finished(name: str, **facts: Any) -> Path:
        where = folder / "stages" / f"{name}-0123456789ab"
        where.mkdir()
        run.results[name] = Result(where, facts, 83.0, reused=name == "train")
        return where

    identity = {"kind": extractor, "digest": "e" * 64}
    spec = run.config.spec
    training = finished("train", parameters=12_345, images=1_000, images_per_s=2_319.0)
    (training / CURVE).write_text('{"images": 500, "loss": 0.5}\n{"images": 1000, "loss": 0.25}\n')
    torch.manual_seed(0)
    save_file(spec.build().state_dict(), training / WEIGHTS)
    (training / SPEC).write_text(spec.model_dump_json())
    finished("reference", extractor=identity)
    drawn = finished(
        "sample",
        images=IMAGES,
        network_evaluations=2.0,
        images_per_s=None,
        device_type="cpu",
        devices=["CPU"],
        weights_digest="f" * 64,
    )
    chunks = Chunks(drawn, run.config.sample, "cpu")
    model = ModelFolders(training, None, training / WEIGHTS)
    drawer = Drawer(Equipment.of(run.config.sample, model, "cpu"), 1)
    for chunk in range(chunks.count):
        drawer.draw(ChunkTask(chunks, chunk))
    scored = finished(
        "evaluate",
        scores={"fid_a": 1.25, "fid_a_se": 0.03, "fid_a_bias_corrected": 1.2, "kid_a": None, "precision_a": 0.5},
        reasons={"kid_a": "fewer than <1000> images"},
        primary_score="fid_a",
        extractor=identity,
        protocol_digest="a" * 64,
    )
    write_json(scored / PROTOCOL, {"images": IMAGES, "reference": {"images": 1_437, "split": "train"}})
    return run


def reported(run: Run) -> tuple[set[str], str]:
    """Names of the pictures, each of which is one, and the page, which is in the run's folder."""
    pictures = draw_pictures(run)
    for picture in pictures:
        with Image.open(picture) as opened:
            opened.load()
    config = run.folder / "config.yaml"
    config.write_text("name: tiny # <b>\n")
    page = write_report(run, pictures, config).read_text()
    assert page.count("<img") == len(pictures)
    return {picture.stem for picture in pictures}, page
