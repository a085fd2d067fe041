"""What goes into a model version, and how it lies in the version's folder."""

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import model

from ..code_version import code_version, environment
from ..figures import score_words
from ..redaction import redacted
from ..runfile.configfile import flatten

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_REQUIREMENTS = ("mlflow", "numpy", "pillow", "pydantic", "safetensors", "torch")


@dataclass(frozen=True)
class ModelPackage:
    """Everything that goes into a model version."""

    run_key: str
    """Digest of all that decided the model and its scores; registered twice, it is one version."""
    weights: Path
    """Safetensors, the names as in `ModelSpec.build().state_dict()`."""
    description: Path
    """`model.json`, as `description_of` has it."""
    config: Path
    """The resolved configuration, YAML."""
    protocol: Mapping[str, Any]
    """How the scores were measured, as JSON."""
    protocol_digest: str
    """Scores are compared only where this is equal."""
    scores: Mapping[str, float | None]
    """By name; None where a score cannot be had."""
    primary_score: str
    """Name of the score that decides, lower is better."""
    data_digest: str
    """Digest of the shard index."""
    trained_images: int
    """How long it was trained, in images."""
    classifier: Path | None = None
    """Safetensors of the classifier that guides; None: there is none."""
    pictures: tuple[Path, ...] = ()
    """Sample grid and the like, PNG."""
    report: Path | None = None
    """The page of the run, HTML; None: there is none."""

    @property
    def trained_ms(self) -> int:
        """When the weights were written, Unix time: whatever is logged again at this time adds no second point."""
        return self.weights.stat().st_mtime_ns // 1_000_000


def write_model(folder: Path, package: ModelPackage, run_id: str, model_id: str) -> None:
    """An MLflow pyfunc model in `folder`: code as files, weights as safetensors, no pickle."""
    package_source = Path(model.__file__).parent
    with TemporaryDirectory() as staging, warnings.catch_warnings():
        # Said by MLflow's own modules while they are imported, about their own type hints.
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        import mlflow.pyfunc
        from mlflow.models import Model

        code = Path(staging, "model")
        shutil.copytree(package_source, code, ignore=shutil.ignore_patterns("__pycache__"))
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={
                "weights": str(package.weights),
                "description": str(package.description),
                "package": str(code),
                **({"classifier": str(package.classifier)} if package.classifier else {}),
            },
            mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
            signature=_signature(json.loads(package.description.read_text())["spec"]),
            input_example={"seed": [0, 1]},
            pip_requirements=[f"{name}=={installed_version(name).partition('+')[0]}" for name in _REQUIREMENTS],
        )
    _write_evidence(folder, package)


def _write_evidence(folder: Path, package: ModelPackage) -> None:
    """What a reader of the version wants beside the model: where it came from, how it scored, what it draws."""
    shutil.copy(package.config, folder / "config.yaml")
    evidence = {"digest": package.protocol_digest, "protocol": package.protocol, "scores": package.scores}
    (folder / "scores.json").write_text(json.dumps(evidence, indent=2, default=dict) + "\n")
    (folder / "card.md").write_text(card(package))
    (folder / "environment.txt").write_text(environment())
    code = code_version()
    (folder / "code.json").write_text(json.dumps({"commit": code.commit, "changed": bool(code.changes)}) + "\n")
    if code.changes:
        (folder / "changes.diff").write_text(redacted(code.changes))
    if package.report is not None:
        shutil.copy(package.report, folder / "report.html")
    (folder / "pictures").mkdir()
    for picture in package.pictures:
        shutil.copy(picture, folder / "pictures")


def _signature(spec: Mapping[str, Any]) -> "ModelSignature":
    import numpy
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    image = (spec["image_size"], spec["image_size"], spec["channels"])
    return ModelSignature(
        inputs=Schema([ColSpec("long", "seed"), ColSpec("long", "label", required=False)]),
        outputs=Schema([TensorSpec(numpy.dtype("uint8"), (-1, *image))]),
        params=ParamSchema(
            [
                ParamSpec("steps", "long", 0),
                ParamSpec("guidance_scale", "double", -1.0),
                ParamSpec("format", "string", "array"),
            ]
        ),
    )


def card(package: ModelPackage) -> str:
    """The version's description in the UI, Markdown: what it is, its scores, how they were measured."""
    spec = json.loads(package.description.read_text())["spec"]
    size, colour = spec["image_size"], "grey" if spec["channels"] == 1 else "RGB"
    trained = (
        f"trained on {package.trained_images:,} (repeats counted)" if package.trained_images else "not trained here"
    )
    scores = "\n".join(
        f"| {'**' + name + '**' if name == package.primary_score else name} | {score_words(value)} |"
        for name, value in package.scores.items()
    )
    primary = f"{package.primary_score} {score_words(package.scores[package.primary_score])}"
    protocol = "; ".join(f"{name} {value}" for name, value in flatten(package.protocol).items())
    return f"""{primary}; {size} x {size} {colour} images, {trained}.

| score | value |
|---|---|
{scores}

**{package.primary_score}** decides, lower is better. Scores compare only under one protocol, this one
being `{package.protocol_digest[:12]}`: {protocol}.

Data `{package.data_digest[:12]}`, {code_version()}. Configuration, scores, pictures, environment and report are files
of the model.
"""
