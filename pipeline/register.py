"""Last stage: what the run made becomes a version in the MLflow registry, with everything that a reader needs to
trust it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from evaluation.pictures import denoising_strip, image_grid, loss_curve, real_and_generated

from .checkpoint import WEIGHTS
from .curve import read_curve
from .evaluate import PROTOCOL
from .files import digest, read_json, write_json
from .model_package import ModelPackage
from .reader import ShardReader
from .registry import register
from .sample import STRIP, Chunks
from .stage import Facts, Run, Stage

CONFIG = "config.yaml"
_SPEEDS = {"train_images_per_s": "train", "sample_images_per_s": "sample"}
_GRID_IMAGES, _GRID_COLUMNS, _BESIDE_IMAGES, _BESIDE_COLUMNS = 100, 10, 48, 6


class Register(Stage):
    """Pictures, run record and model version. Never skipped: MLflow may be another one than last time."""

    name = "register"
    uses_cluster = False

    def identity(self, run: Run) -> Any:
        return {
            "scores": run.results["evaluate"].key,
            "train": run.results["train"].key,
            "model_name": run.config.register_.model_name,
        }

    def recall(self, run: Run) -> None:  # noqa: ARG002
        """Nothing is recalled: registering again finds the version that is there."""
        return

    def compute(self, run: Run, folder: Path) -> Facts:
        assert run.tracked is not None
        tracked, results = run.tracked, run.results
        scores, train = results["evaluate"].facts, results["train"]
        pictures = draw_pictures(run)
        description = folder / "model.json"
        write_json(
            description,
            {
                "format": 1,
                "spec": run.config.spec.model_dump(mode="json"),
                "sampler": run.config.sample.sampler.model_dump(mode="json"),
            },
        )
        protocol = results["evaluate"].folder / PROTOCOL
        package = ModelPackage(
            run_key=digest(self.identity(run)),
            weights=train.folder / WEIGHTS,
            description=description,
            config=run.folder / CONFIG,
            protocol=read_json(protocol),
            protocol_digest=scores["protocol_digest"],
            scores=scores["scores"],
            primary_score=scores["primary_score"],
            data_digest=results["prepare"].facts["data_digest"],
            trained_images=train.facts["images"],
            pictures=tuple(pictures),
        )
        speeds = {name: results[stage].facts["images_per_s"] for name, stage in _SPEEDS.items()}
        # With the weights' own time, logging them again adds nothing.
        trained_ms = package.weights.stat().st_mtime_ns // 1_000_000
        tracked.log_metrics(speeds, package.trained_images, trained_ms)
        tracked.log_files([run.folder / CONFIG, protocol])
        tracked.log_files(pictures, "pictures")
        registered = register(tracked, package, run.config.register_.model_name)
        return {
            "model_name": registered.name,
            "model_version": registered.version,
            "model_uri": registered.uri,
            "is_champion": registered.is_champion,
            "verdict": registered.verdict,
        }

    def figure(self, facts: Facts) -> str:
        return f"{facts['model_name']} version {facts['model_version']}" + (
            ", champion" if facts["is_champion"] else ""
        )


def draw_pictures(run: Run) -> list[Path]:
    """Sample grid, samples beside real images, denoising strip and loss curve, in the run's folder."""
    config, sample = run.config.sample, run.results["sample"]
    drawn = Chunks(sample.folder, config, sample.facts["device_type"]).read_all(min(_GRID_IMAGES, config.images))
    reader = ShardReader(run.index, "train", "none")
    real = reader.read(np.arange(min(_BESIDE_IMAGES, len(reader))))
    with np.load(sample.folder / STRIP, allow_pickle=False) as strip:
        frames, times = strip["frames"], strip["times"].tolist()
    points = [point for point in read_curve(run.results["train"].folder) if "loss" in point]
    names = ("samples.png", "real_and_generated.png", "denoising.png", "loss.png")
    paths = [run.folder / name for name in names]
    image_grid(drawn, _GRID_COLUMNS, paths[0])
    real_and_generated(real, drawn[:_BESIDE_IMAGES], _BESIDE_COLUMNS, paths[1])
    denoising_strip(frames, times, paths[2])
    loss_curve([point["images"] for point in points], [point["loss"] for point in points], paths[3])
    return paths
