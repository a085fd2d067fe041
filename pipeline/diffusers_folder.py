"""Folders of diffusers' DDPMPipeline and DDIMPipeline: `python -m pipeline import` and `export`.

Diffusers itself is needed for neither.
"""

import json
import shlex
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors.torch import save
from torch import Tensor

from model import DDIM, ModelSpec

from .configfile import load
from .diffusers_layers import to_ours, to_theirs
from .diffusers_scheduler import Scheduler, scheduler_of
from .diffusers_unet import UNet2D, norm_groups, unet_of
from .errors import ConfigError
from .files import read_json, write_bytes, write_json
from .stored_model import DESCRIPTION, FORMAT, Description, StoredModel, load_stored, read_weights
from .terminal import Terminal

_INDEX, _UNET, _SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_OUR_WEIGHTS = "weights.safetensors"
_CLASSES = "class_embedding.weight"


def run_import(options: Namespace, terminal: Terminal) -> None:
    """Writes a model folder of ours from a folder of diffusers. options: as the command line gives them.

    ConfigError, with all that our models cannot be, where it is no such folder.
    """
    into = _new_folder(options.into, DESCRIPTION)
    described, weights = read_folder(options.folder.expanduser(), options.last_class_is_none)
    write_bytes(into / _OUR_WEIGHTS, save(weights))
    write_json(into / DESCRIPTION, described.model_dump(mode="json"))
    spec, sampler = described.spec, described.sampler
    terminal.facts(
        {
            "network": f"{spec.network.kind}, {sum(tensor.numel() for tensor in weights.values()):,} parameters",
            "images": f"{spec.image_size}x{spec.image_size}x{spec.channels}, of {spec.classes or 'no'} classes",
            "path": f"{spec.path.kind}, target {spec.target.kind}, variance {spec.variance.kind}",
            "sampler": f"{sampler.kind}, {sampler.evaluations(spec.path):,} steps",
            "model": str(into),
            "in a run file": " ".join(shlex.quote(each) for each in _overrides(described, into)),
        }
    )


def run_export(options: Namespace, terminal: Terminal) -> None:
    """Writes a folder of diffusers from a model of ours. options: as the command line gives them.

    ConfigError, with all that diffusers cannot express, where it has no such model.
    """
    into = _new_folder(options.into, _INDEX)
    stored = load_stored(options.model, options.overrides, options.tracking_uri, "cpu")
    pipeline = write_folder(stored, into)
    facts = {
        "pipeline": f"pipeline = diffusers.{pipeline}.from_pretrained({str(into)!r})",
        "draws as ours": f"pipeline(num_inference_steps={stored.sampler.steps}...)",
    }
    terminal.facts(facts)


def read_folder(folder: Path, last_class_is_none: bool) -> tuple[Description, dict[str, Tensor]]:
    """The model in a folder of diffusers, and its weights, float32, by our names.

    last_class_is_none: its last class stands for none, as training for classifier-free guidance has it; else it knows
    no such class, and ours gets one of zeros. ConfigError with all that our models cannot be.
    """
    places = {name: folder / name if (folder / name).is_dir() else folder for name in ("unet", "scheduler")}
    files = (places["unet"] / _UNET, places["scheduler"] / _SCHEDULER)
    if missing := [file for file in files if not file.is_file()]:
        raise ConfigError(
            f"{missing[0]}: no such file; give a folder of diffusers, as DDPMPipeline.save_pretrained writes it"
        )
    mistakes = [*_strangers(folder)]
    unet, scheduler = _read(files[0], UNet2D, mistakes), _read(files[1], Scheduler, mistakes)
    if unet and scheduler:
        mistakes += _disagreements(unet, scheduler, files[0], last_class_is_none)
    if mistakes or not unet or not scheduler:
        raise ConfigError("\n".join(mistakes))
    spec = _spec(unet, scheduler, last_class_is_none)
    weights = _read_weights(places["unet"], spec, last_class_is_none)
    ...
