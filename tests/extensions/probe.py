"""What the four diffs add, used without a cluster, in a process whose tree has them. Prints JSON."""

import io
import json
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.scores import vendi_score
from model import VPSDE, Prediction
from model.chain_samplers import ERSDE
from pipeline.__main__ import main
from pipeline.files import write_arrays
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load
from pipeline.runfile.keys import choices_markdown
from pipeline.sampling.chunks import Chunks
from pipeline.scoring import duplicates
from pipeline.stage import Result, Run
from pipeline.terminal import Terminal

DIGITS = Path("pipeline/runs/digits.yaml")
MEAN, STD = 0.2, 0.5  # of images of one pixel


def sampler() -> dict[str, Any]:
    """Mean and deviation of what it draws by the denoiser that is exact for normal data."""
    path, generator = VPSDE(), torch.Generator().manual_seed(0)

    def exact(x: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = (each.view(-1, 1, 1, 1) for each in (path.alpha(t), path.sigma(t)))
        off = (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return Prediction(MEAN + alpha * STD**2 * off, sigma * off)

    def noise(_number: int) -> Tensor:
        return torch.randn(4_000, 1, 1, 1, dtype=torch.float64, generator=generator)

    *_, last = ERSDE(steps=200, clip="none").trajectory(exact, path, noise(0), noise)
    return {"mean": float(last.x.mean()), "std": float(last.x.std())}


def dataset() -> dict[str, Any]:
    """What a run file that names it opens."""
    overrides = ["data.source.kind=photographs", "data.image_size=16", "data.channels=3", "network.attention_sizes=[8]"]
    source = load(DIGITS, overrides, Config).data.source.open(16, 3)
    counts = np.bincount(source.labels).tolist()
    return {"counts": counts, "names": source.class_names, "contrast": float(source.read(0).std())}


def metric() -> dict[str, Any]:
    """Of images that are all the same, of four kinds, and of broken features."""
    same, four = np.ones((50, 4)), np.eye(4).repeat(25, axis=0)
    return {"same": vendi_score(same).value, "four": vendi_score(four).value, "nan": vendi_score(same * np.nan).reason}


def stage() -> dict[str, Any]:
    """Of twelve images in two chunks, of which the last is the first again."""
    run = Run(load(DIGITS, ["sample.images=12", "sample.chunk_images=6"], Config), Terminal())
    run.results["sample"] = Result(Path("sample-0").absolute(), {"device_type": "cpu"}, 1.0, reused=False)
    images = np.random.default_rng(0).integers(256, size=(12, 8, 8, 1), dtype=np.uint8)
    images[11] = images[0]
    chunks = Chunks.of(run)
    chunks.folder.mkdir()
    for chunk, part in enumerate(np.split(images, 2)):
        write_arrays(chunks.path(chunk), seeds=chunks.seeds(chunk), images=part, network_evaluations=np.array(50.0))
    counted, shown = duplicates.Duplicates(), io.StringIO()
    with redirect_stdout(shown), suppress(SystemExit):
        main(["duplicates", "--help"])
    return {"figure": counted.figure(counted.finish(run).facts), "help": shown.getvalue()}


if __name__ == "__main__":
    found = {each.__name__: each() for each in (sampler, dataset, metric, stage)}
    print(json.dumps(found | {"choices": choices_markdown(Config)}))
