"""Last stage: the model becomes a version in the MLflow registry, with all that a reader needs to trust it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..files import digest, read_json, write_json
from ..models.description import DESCRIPTION, description_of
from ..scoring.evaluate import PROTOCOL
from ..scoring.measured import measured
from ..scoring.report import write_report
from ..scoring.run_pictures import draw_pictures
from ..stage import CONFIG, Facts, Run, Stage
from ..training.checkpoint import WEIGHTS
from ..training.trained_model import ModelFolders
from .model_package import ModelPackage
from .registry import register

_SPEEDS = {"train_images_per_s": "train", "sample_images_per_s": "sample"}


class Register(Stage):
    """Pictures, report, run record and model version. Never skipped: MLflow may be another one than last time."""

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
        if (curve := run.results.get("curve")) is not None:
            for images_seen, value in curve.facts["points"]:
                run.tracked.log_metrics({f"curve/{curve.facts['score']}": value}, images_seen, package.trained_ms)
        report = write_report(run, package.pictures, package.config)
        package = replace(package, report=report)
        run.tracked.log_files([report, package.config, run.results["evaluate"].folder / PROTOCOL])
        run.tracked.log_files(package.pictures, "pictures")
        wanted = run.config.register_
        registered = register(run.tracked, package, wanted.model_name, wanted.gate)
        facts = measured(run) | {"verdict": registered.verdict}
        run.tracked.describe("\n".join(f"- **{name}**: {fact}" for name, fact in facts.items()))
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
        write_json(folder / DESCRIPTION, description_of(run.config))
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
