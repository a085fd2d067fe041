"""Folders of diffusers' DDPMPipeline and DDIMPipeline: `python -m pipeline import` and `export`.

Such a folder holds `model_index.json`, and in `unet/` and `scheduler/` a config each and the weights; in the oldest
ones these lie beside the index. Diffusers itself is needed for neither command.
"""

import json
import shlex
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save
from torch import Tensor

from model import DDIM, ModelSpec, Record

from ..errors import ConfigError
from ..files import read_json, write_bytes, write_json
from ..runfile.configfile import load
from ..terminal import Terminal
from .description import DESCRIPTION, FORMAT, Description
from .diffusers_layers import to_ours, to_theirs
from .diffusers_scheduler import Scheduler, foreign_steps, scheduler_of
from .diffusers_unet import UNet2D, foreign_layers, norm_groups, unet_of
from .stored_model import StoredModel, load_stored
from .weights import read_weights

Schema = TypeVar("Schema", bound=Record)

_INDEX, _UNET, _SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
_WEIGHTS, _OUR_WEIGHTS = "diffusion_pytorch_model.safetensors", "weights.safetensors"
_CLASSES = "class_embedding.weight"


def run_import(options: Namespace, terminal: Terminal) -> None:
    """Writes a model's folder from one of diffusers, and says how to use it. options: as the command line gives them.

    ConfigError, with all that our models cannot be, where that is none of ours.
    """
    into = _target(options.into, DESCRIPTION)
    described, weights = read_folder(options.folder.expanduser(), last_class_is_none=options.last_class_is_none)
    write_bytes(_made(into) / _OUR_WEIGHTS, save(weights))
    write_json(into / DESCRIPTION, described.model_dump(mode="json"))
    spec, sampler = described.spec, described.sampler
    parameters = sum(tensor.numel() for tensor in weights.values())
    size, colour = spec.image_size, "grey" if spec.channels == 1 else "colour"
    terminal.facts(
        {
            "network": f"{spec.network.kind}, {parameters:,} parameters",
            "images": f"{size}x{size} pixels, {colour}, of {spec.classes or 'no'} classes",
            "path": f"{spec.path.kind}, target {spec.target.kind}, variance {spec.variance.kind}",
            "sampler": f"{sampler.kind}, {sampler.evaluations(spec.path):,} steps",
            "draw": f"python -m pipeline generate {shlex.quote(str(into))}",
            "score": f"python -m pipeline run FILE {shlex.join(_overrides(described, into))}",
        }
    )


def run_export(options: Namespace, terminal: Terminal) -> None:
    """Writes a folder of diffusers from a model, and says how to use it. options: as the command line gives them.

    ConfigError, with all that diffusers cannot express, where that is none of theirs.
    """
    into = _target(options.into, _INDEX)
    stored = load_stored(options.model, options.overrides, options.tracking_uri, "cpu")
    pipeline, call = write_folder(stored, into)
    facts = {"load": f"pipeline = diffusers.{pipeline}.from_pretrained({str(into)!r})", "draw": f"pipeline({call})"}
    if none := stored.model.spec.classes:
        facts["draw"] = (
            f"call pipeline.unet with class_labels, 0 to {none - 1}, {none} for none; the pipelines take no class"
        )
    terminal.facts(facts)


def read_folder(folder: Path, *, last_class_is_none: bool) -> tuple[Description, dict[str, Tensor]]:
    """The model in a folder of diffusers, and its weights by our names, float32.

    last_class_is_none: the last of its classes stands for none, as after training for classifier-free guidance; else it
    knows no such class, and ours has zeros for it. ConfigError with all that our models cannot be.
    """
    unet_folder, scheduler_folder = _part(folder, "unet"), _part(folder, "scheduler")
    unet_file, scheduler_file = unet_folder / _UNET, scheduler_folder / _SCHEDULER
    for file in (unet_file, scheduler_file):
        if not file.is_file():
            raise ConfigError(f"{file}: no such file; give a folder in which a pipeline of diffusers was saved")
    mistakes = [*_other_parts(folder / _INDEX)]
    unet, scheduler = _config(unet_file, UNet2D, mistakes), _config(scheduler_file, Scheduler, mistakes)
    if unet and scheduler:
        mistakes += _disagreements(unet, scheduler, last_class_is_none)
    if mistakes or not unet or not scheduler:
        raise ConfigError("\n".join(mistakes))
    described = Description(
        format=FORMAT,
        spec=_spec(unet, scheduler, last_class_is_none),
        sampler=scheduler.sampler,
        labels_withheld=last_class_is_none,
        weights=_OUR_WEIGHTS,
    )
    return described, _weights(unet_folder, described, unet.layers_per_block)


def write_folder(stored: StoredModel, into: Path) -> tuple[str, str]:
    """Writes a model as diffusers has it. -> the pipeline that draws as ours does, and what it is told for that.

    ConfigError with all that diffusers cannot express.
    """
    spec, sampler = stored.model.spec, stored.sampler
    reasons = [*foreign_layers(spec), *foreign_steps(spec, sampler)]
    if stored.guidance.kind != "none":
        reasons.append(
            f"guidance: diffusers' pipelines do not guide a UNet2DModel, and this model has {stored.guidance.kind}; "
            "give guidance.kind=none"
        )
    if reasons:
        raise ConfigError("\n  ".join([f"{stored.name}: diffusers cannot be given this model", *reasons]))
    scheduler = scheduler_of(spec, sampler)
    pipeline = scheduler.class_name.replace("Scheduler", "Pipeline")
    weights = {name.removeprefix("network."): tensor for name, tensor in stored.model.network.state_dict().items()}
    unet = unet_of(spec)
    content = save(to_theirs(weights, unet.layers_per_block), metadata={"format": "pt"})
    parts = {"scheduler": ["diffusers", scheduler.class_name], "unet": ["diffusers", "UNet2DModel"]}
    write_bytes(_made(into / "unet") / _WEIGHTS, content)
    write_json(into / "unet" / _UNET, unet.model_dump(mode="json", by_alias=True))
    write_json(_made(into / "scheduler") / _SCHEDULER, scheduler.written())
    write_json(into / _INDEX, {"_class_name": pipeline, **parts})
    call = f"num_inference_steps={sampler.evaluations(spec.path)}"
    if isinstance(sampler, DDIM):
        call += f", eta={sampler.eta:g}, use_clipped_model_output={sampler.clip == 'x0_and_eps'}"
    return pipeline, call


def _target(into: Path, last: str) -> Path:
    """The folder to write. ConfigError where there is such a one already. last: the file that makes it one."""
    folder = into.expanduser().absolute()
    if (folder / last).exists():
        raise ConfigError(f"--into {into}: {last} is there already; give another folder, or remove that one")
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _part(folder: Path, name: str) -> Path:
    """Where a part of a pipeline is: in a folder of its name, or else beside the index."""
    return folder / name if (folder / name).is_dir() else folder


def _config(file: Path, schema: type[Schema], mistakes: list[str]) -> Schema | None:
    """The config in a file; None, and a mistake more, where it is none of ours."""
    try:
        return load(file, [], schema)
    except ConfigError as error:
        mistakes.append(str(error))
        return None


def _other_parts(index: Path) -> Iterator[str]:
    """What a pipeline has beside a U-Net and a scheduler, such as an autoencoder of latents."""
    if not index.is_file():
        return
    try:
        parts = {name for name, kind in read_json(index).items() if not name.startswith("_") and kind != [None, None]}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{index}: no index of a pipeline ({error}); save it anew") from None
    if others := sorted(parts - {"unet", "scheduler"}):
        yield f"{index}: found {', '.join(others)}, expected unet and scheduler alone, which draw pixels by themselves"


def _disagreements(unet: UNet2D, scheduler: Scheduler, last_class_is_none: bool) -> Iterator[str]:
    expected = scheduler.variance.outputs * unet.in_channels
    if unet.out_channels != expected:
        yield f"{_UNET}: out_channels: found {unet.out_channels}, expected {expected}, which the scheduler makes use of"
    least = 2 + last_class_is_none
    if (rows := unet.num_class_embeds) is None:
        if last_class_is_none:
            yield "--last-class-is-none: the network is not told of classes; leave it out"
    elif rows < least:
        yield f"{_UNET}: num_class_embeds: found {rows}, expected at least {least}"
    try:
        scheduler.sampler.check(scheduler.path)
    except ValueError as error:
        yield f"{_SCHEDULER}: {error}"


def _spec(unet: UNet2D, scheduler: Scheduler, last_class_is_none: bool) -> ModelSpec:
    spec = ModelSpec.model_validate(
        {
            "image_size": unet.sample_size,
            "channels": unet.in_channels,
            "network": unet.network,
            "path": scheduler.path,
            "target": scheduler.target,
            "variance": scheduler.variance,
            "classes": (unet.num_class_embeds or 0) - last_class_is_none,
        }
    )
    usual = spec.model_copy(update={"network": unet.network.model_copy(update={"norm_groups": None})})
    return usual if norm_groups(usual) == {unet.norm_num_groups} else spec


def _weights(folder: Path, described: Description, blocks_per_level: int) -> dict[str, Tensor]:
    file, spec = folder / _WEIGHTS, described.spec
    if not file.is_file():
        found = ", ".join(sorted(path.name for path in folder.glob("diffusion_pytorch_model*"))) or "no weights"
        raise ConfigError(
            f"{file}: no such file, but {found}; only safetensors in one file are read, since a .bin can run code; "
            "save the pipeline anew with the diffusers of today"
        )
    theirs = {name: tensor.float() for name, tensor in read_weights(file).items()}
    if spec.classes and not described.labels_withheld and _CLASSES in theirs:
        rows = theirs[_CLASSES]
        theirs[_CLASSES] = torch.cat([rows, torch.zeros_like(rows[:1])])
    with torch.device("meta"):
        network = spec.build()
    try:
        return to_ours(theirs, network, blocks_per_level)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}; these are the weights of another network") from None


def _overrides(described: Description, into: Path) -> Iterator[str]:
    """What a run file must say to take this model as it is."""
    spec = described.spec
    sections = {
        "network": spec.network,
        "path": spec.path,
        "target": spec.target,
        "variance": spec.variance,
        "conditioning": described.conditioning,
        "sample.sampler": described.sampler,
    }
    yield from ("train.images=0", f"train.warm_start={json.dumps(str(into))}")
    yield from (f"data.image_size={spec.image_size}", f"data.channels={spec.channels}")
    for key, section in sections.items():
        values = {"kind": section.kind} | section.model_dump(mode="json", exclude_defaults=True)
        yield f"{key}={json.dumps(values)}"
