"""What MLflow runs when it loads a registered model: seeds in, images out.

This file travels inside every model version, beside the weights (safetensors), `model.json` and a copy of the
`model` package, so it may import nothing of this repository. The copy is imported under a name of its own:
versions with different code live in one process, and a user's own module called `model` stays what it is.
"""

import base64
import hashlib
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pandas  # type: ignore[import-untyped]  # the type checker has no stubs for it
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file

MAX_SEEDS = 4096
MAX_STEPS = 1000
MAX_SCALE = 100.0
_CHUNK_IMAGES = 64


class ServedModel(PythonModel):
    """A model version in memory, on the GPU where there is one."""

    def load_context(self, context: PythonModelContext) -> None:
        """Reads the version's files. MLflow finds the argument by its name."""
        package = load_package(Path(context.artifacts["package"]))
        described = json.loads(Path(context.artifacts["description"]).read_text())
        self._package = package
        self._spec = package.ModelSpec.model_validate(described["spec"])
        self._sampler = TypeAdapter(package.Sampler).validate_python(described["sampler"])
        self._guidance = TypeAdapter(package.Guidance).validate_python(described["guidance"])
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with torch.random.fork_rng(devices=[]):  # `build` draws weights, which is no reason to disturb the caller
            network, classifier = self._spec.build(), None
            if "classifier" in context.artifacts:
                channels, image_size, _ = self._spec.latent_shape
                classifier = self._guidance.classifier.build(image_size, channels)
                classifier = _with_weights(classifier, context.artifacts["classifier"], self._device)
        execution = package.Execution(precision=described["precision"])
        network = _with_weights(network, context.artifacts["weights"], self._device)
        self._model = package.TrainedModel(self._spec, execution.of(network), classifier, self._spec.codec.build())

    def predict(
        self,
        context: PythonModelContext | None,  # noqa: ARG002  # MLflow's signature
        model_input: pandas.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> "NDArray[numpy.uint8] | list[str]":
        """uint8 [N, H, W, C] for a column `seed` of N integers; image i depends on row i alone.

        A model of several classes takes a column `label`, too: the class of each image, by default seed modulo classes.

        params: `steps` of the sampler and `guidance_scale`, where 0 and -1 mean the model's own; `format`, array or
        png, which gives N PNG files in base64.
        """
        asked: dict[str, Any] = {"steps": 0, "guidance_scale": -1.0, "format": "array"} | (params or {})
        if asked["format"] not in ("array", "png"):
            raise MlflowException.invalid_parameter_value(f"format: found {asked['format']!r}, expected array or png")
        sampler, guidance = self._of_steps(int(asked["steps"])), self._of_scale(float(asked["guidance_scale"]))
        frame = pandas.DataFrame(model_input)
        seeds = torch.from_numpy(_integers(frame, "seed", 2**63)).to(self._device)
        labels = self._package.default_label(self._spec, guidance, seeds)
        if "label" in frame:
            if labels is None:
                raise MlflowException.invalid_parameter_value("label: this model knows no classes; leave it out")
            classes = self._spec.classes or guidance.classes
            labels = torch.from_numpy(_integers(frame, "label", classes)).to(self._device)
        chunks = [
            self._package.generate(
                self._model, sampler, seeds[some], None if labels is None else labels[some], guidance
            )
            for some in torch.arange(len(seeds), device=self._device).split(_CHUNK_IMAGES)
        ]
        images: NDArray[numpy.uint8] = torch.cat(chunks).cpu().numpy()
        return images if asked["format"] == "array" else [_png(image) for image in images]

    def _of_steps(self, steps: int) -> Any:
        """The sampler with this many steps; 0: as it is."""
        if steps == 0:
            return self._sampler
        if not 1 <= steps <= MAX_STEPS:
            raise MlflowException.invalid_parameter_value(f"steps: found {steps}, expected 1 to {MAX_STEPS}")
        if not hasattr(self._sampler, "steps"):
            raise MlflowException.invalid_parameter_value(
                f"steps: this model's sampler {self._sampler.kind} chooses its own; leave it out"
            )
        try:
            sampler = type(self._sampler).model_validate(self._sampler.model_dump() | {"steps": steps})
            sampler.check(self._spec.path)
        except (ValidationError, ValueError) as error:
            raise MlflowException.invalid_parameter_value(f"steps: {error}") from None
        return sampler

    def _of_scale(self, scale: float) -> Any:
        """The guidance of this scale; -1: as it is."""
        if scale == -1:
            return self._guidance
        if not 0 <= scale <= MAX_SCALE:
            raise MlflowException.invalid_parameter_value(
                f"guidance_scale: found {scale:g}, expected 0 to {MAX_SCALE:g}"
            )
        if not hasattr(self._guidance, "scale"):
            raise MlflowException.invalid_parameter_value("guidance_scale: this model is not guided; leave it out")
        return self._guidance.model_copy(update={"scale": scale})


def _png(image: NDArray[numpy.uint8]) -> str:
    """A PNG file in base64. image: uint8 [H, W, C]."""
    from PIL import Image  # for this alone

    with io.BytesIO() as file:
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()


def _with_weights(network: torch.nn.Module, file: str, device: torch.device) -> torch.nn.Module:
    network.load_state_dict(load_file(file))
    return network.to(device).eval().requires_grad_(False)


def load_package(folder: Path) -> ModuleType:
    """The copy of the package `model` in `folder`, imported once per content."""
    sources = [(file.relative_to(folder).as_posix(), file.read_bytes()) for file in sorted(folder.rglob("*.py"))]
    name = f"_diffusion_model_{hashlib.sha256(repr(sources).encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # pydantic looks types up there while it runs
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _integers(frame: pandas.DataFrame, column: str, limit: int) -> NDArray[numpy.int64]:
    if column not in frame:
        raise MlflowException.invalid_parameter_value(
            f"no column '{column}', found {[*frame.columns]}; give it one integer for each image"
        )
    if list(frame.columns).count(column) > 1:
        raise MlflowException.invalid_parameter_value(f"column '{column}' is there twice; give it once")
    values: NDArray[Any] = frame[column].to_numpy()
    if not 1 <= len(values) <= MAX_SEEDS:
        raise MlflowException.invalid_parameter_value(
            f"{len(values)} rows, expected 1 to {MAX_SEEDS}; ask for more images in several requests"
        )
    if values.dtype.kind not in "iu":
        raise MlflowException.invalid_parameter_value(
            f"{column}: found {values.dtype}, expected integers, such as [0, 1, 2]"
        )
    if values.min() < 0 or values.max() >= limit:
        highest = "2^63 - 1" if limit == 2**63 else limit - 1
        raise MlflowException.invalid_parameter_value(
            f"{column}: found {values.min()} to {values.max()}, expected 0 to {highest}"
        )
    return values.astype(numpy.int64)


set_model(ServedModel())
