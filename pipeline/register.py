"""Last stage: the model becomes a version in the MLflow registry, with all that a reader needs to trust it."""

from pathlib import Path
from typing import Any

import numpy as np

from evaluation.pictures import denoising_strip, image_grid, loss_curve, real_and_generated

from .checkpoint import WEIGHTS
from .curve import read_curve
from .evaluate import PROTOCOL
from .files import digest, read_arrays, read_json, write_json
from .likelihood import draw_likelihoods
from .model_package import ModelPackage
from .reader import ShardReader
from .registry import register
from .sample import STRIP, Chunks
from .stage import Facts, Run, Stage
from .stored_model import DESCRIPTION
from .trained_model import ModelFolders, described

CONFIG = "config.yaml"
_SPEEDS = {"train_images_per_s": "train", "sample_images_per_s": "sample"}
_GRID_IMAGES, _GRID_COLUMNS, _BESIDE_IMAGES, _BESIDE_COLUMNS = 100, 10, 48, 6


class Register(Stage):
    """Pictures, run record and model version. Never skipped: MLflow may be another one than last time."""

    name = "register"
    uses_cluster = False

    def identity(self, run: Run) -> Any:
        guide = run.results.get("guide")
        return {
            "scores": run.results["evaluate"].key,
            "train": run.results["train"].key,
            "guide": guide and guide.key,
            "model_name": run.config.register_.model_name,
        }

    def recall(self, run: Run) -> None:
        """Nothing is recalled: registering again finds the version that is there."""

    def compute(self, run: Run, folder: Path) -> Facts:
        assert run.tracked is not None
        package = self._package(run, folder)
        speeds = {name: run.results[stage].facts["images_per_s"] for name, stage in _SPEEDS.items()}
        sampled = {name: run.results["sample"].facts[name] for name in ("network_evaluations", "reconstruction_error")}
        guide = run.results.get("guide")
        guided = {"guide_cross_entropy": guide.facts["loss"]} if guide else {}
        run.tracked.log_metrics(speeds | sampled | guided, package.trained_images, package.trained_ms)
        run.tracked.log_files([package.config, run.results["evaluate"].folder / PROTOCOL])
        run.tracked.log_files(package.pictures, "pictures")
        registered = register(run.tracked, package, run.config.register_.model_name)
        return {
            "model_name": registered.name,
            "model_version": registered.version,
            "model_uri": registered.uri,
            "is_champion": registered.is_champion,
            "verdict": registered.verdict,
        }

    def figure(self, facts: Facts) -> str:
        champion = ", champion" if facts["is_champion"] else ""
        return f"{facts['model_name']} version {facts['model_version']}{champion}"

    def _package(self, run: Run, folder: Path) -> ModelPackage:
        train, evaluate, guide = run.results["train"], run.results["evaluate"], run.results.get("guide")
        write_json(folder / DESCRIPTION, described(run.config))
        return ModelPackage(
            run_key=digest(self.identity(run)),
            weights=ModelFolders.of(run).weights,
            description=folder / DESCRIPTION,
            classifier=guide.folder / WEIGHTS if guide else None,
            config=run.folder / CONFIG,
            protocol=read_json(evaluate.folder / PROTOCOL),
            protocol_digest=evaluate.facts["protocol_digest"],
            scores=evaluate.facts["scores"],
            primary_score=evaluate.facts["primary_score"],
            data_digest=run.results["prepare"].facts["data_digest"],
            trained_images=train.facts["images"],
            pictures=tuple(draw_pictures(run)),
        )


def draw_pictures(run: Run) -> list[Path]:
    """Sample grid, samples beside real images, denoising strip and, of a training, loss curve, in the run's folder."""
    config, sample = run.config.sample, run.results["sample"]
    drawn = Chunks(sample.folder, config, sample.facts["device_type"]).read_all(min(_GRID_IMAGES, config.images))
    reader = ShardReader(run.index, "train", "none", run.config.data.shard_cache)
    real = reader.read(np.arange(min(_BESIDE_IMAGES, len(reader))))
    frames, times = read_arrays(sample.folder / STRIP, "frames", "times")
    points = [point for point in read_curve(run.results["train"].folder) if "loss" in point]
    names = ["samples.png", "real_and_generated.png", "denoising.png", *(["loss.png"] if points else [])]
    paths = [run.folder / name for name in names]
    image_grid(drawn, _GRID_COLUMNS, paths[0])
    real_and_generated(real, drawn[:_BESIDE_IMAGES], _BESIDE_COLUMNS, paths[1])
    denoising_strip(frames, times.tolist(), paths[2])
    if points:
        loss_curve([point["images"] for point in points], [point["loss"] for point in points], paths[3])
    return [*paths, *draw_likelihoods(run.results["evaluate"].folder, run.folder)]
