"""The command `plan`: what a run would take of time, devices, storage and network, and what limits it, before it does.

Operations are counted on the network. How fast they go is measured in a trial on this machine, or for devices that are
elsewhere taken from `devices.py`; what was not measured there is called so, and the assumption in its place named.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ..errors import ConfigError
from ..figures import duration, flops, size
from ..runfile.config import Config
from ..runfile.configfile import load
from .costs import (
    ADAPTIVE_EVALUATIONS,
    Speeds,
    StageCost,
    Step,
    Work,
    measured_here,
    sent_bytes,
    stage_costs,
    taken_from_table,
)
from .devices import ASSUMED_HOP_S, ASSUMED_NETWORK_BYTES_PER_S, Device, device_named
from .trial import measure
from .volumes import (
    averages_kept,
    checkpoint_bytes,
    checkpoints_written,
    chunk_bytes,
    feature_counts,
    features_bytes,
    gradient_bytes,
    images_of,
    network_of,
    sample_bytes,
    shard_bytes,
    weights_bytes,
)

_FEATURES_OF = 100
_CLASSES = 10  # of data whose number of classes only `prepare` sees


@dataclass(frozen=True)
class Plan:
    """A run's costs."""

    config: Config
    speeds: Speeds
    work: Work
    stages: tuple[StageCost, ...]

    @classmethod
    def of(cls, config: Config, speeds: Speeds) -> "Plan":
        """By these speeds."""
        work = Work.of(config)
        return cls(config, speeds, work, tuple(stage_costs(config, speeds, work)))

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(stage.seconds for stage in self.stages)

    def seconds_of(self, name: str) -> float:
        """Of one stage."""
        return next(stage.seconds for stage in self.stages if stage.name == name)


def run_plan(options: argparse.Namespace, console: Console) -> None:
    """Plans for the devices that the command names, or else for this machine, and prints it."""
    if options.gpus is not None and options.device is None:
        raise ConfigError("--gpus: of which kind? Name it, as in --device h200")
    config = load(options.file, options.overrides, Config)
    plan = (
        _here(config)
        if options.device is None
        else plan_for(options.file, options.overrides, options.device, options.gpus)
    )
    print_plan(plan, console)


def plan_for(file: Path, overrides: Sequence[str], device: str, count: int | None) -> Plan:
    """A plan for so many devices of this name; None: as many as the file's training has workers at most.

    ConfigError for an unknown device, or where there are more than images in a batch.
    """
    chosen: Device = device_named(device)
    if count is not None:
        overrides = [*overrides, f"train.num_workers={count}", "cluster.num_samplers=null"]
    config = load(file, overrides, Config)
    devices = config.train.worker_range[1]
    return Plan.of(config, taken_from_table(config, chosen, devices, Work.of(config)))


def _here(config: Config) -> Plan:
    """As many processes as the file asks for, and fit. ConfigError where those do not."""
    on_gpu = torch.cuda.is_available() and config.cluster.device != "cpu"
    fewest, most = config.train.worker_range
    threads, cores = config.cluster.cpus_per_worker, os.cpu_count() or 1
    room = min(cores // threads, torch.cuda.device_count()) if on_gpu else cores // threads
    if fewest > room:
        raise ConfigError(
            f"train.num_workers: {fewest} with {threads} CPU each, but this machine has room for {room}; lower it, or "
            "name a device, as in --device h200"
        )
    return Plan.of(config, measured_here(measure(config, min(most, room), on_gpu)))


def print_plan(plan: Plan, console: Console) -> None:
    """Stages, then storage, traffic, and what all of it rests on."""
    console.print(f"{plan.config.name} on {plan.speeds.devices} x {plan.speeds.title}", style="bold")
    console.print()
    stages = Table("stage", "time", "device-hours", "basis", "what limits", box=None, padding=(0, 3, 0, 0))
    for stage in plan.stages:
        hours = f"{stage.seconds * plan.speeds.devices / 3600:,.3g}"
        stages.add_row(stage.name, duration(stage.seconds), hours, _basis(stage.measured), stage.limit)
    total_hours = f"{plan.seconds * plan.speeds.devices / 3600:,.3g}"
    stages.add_row("total", duration(plan.seconds), total_hours, "", "")
    console.print(stages)
    for heading, lines in {"storage": storage(plan), "network": traffic(plan), "rests on": dict(grounds(plan))}.items():
        console.print(f"\n{heading}", style="bold")
        table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
        for name, line in lines.items():
            table.add_row(name, line)
        console.print(table)


def _basis(measured: bool) -> str:
    return "measured" if measured else "not measured"


def one_checkpoint(config: Config) -> int:
    """Bytes of the last one."""
    points = -(-config.train.images // config.train.log_images)
    return checkpoint_bytes(network_of(config), 1 + len(config.train.also_averaged), points)


def storage(plan: Plan) -> dict[str, str]:
    """What lies on the disk at the end."""
    config, network = plan.config, network_of(plan.config)
    written, lasting = checkpoints_written(config.train), averages_kept(config.train)
    kept = min(written, config.train.keep_checkpoints + 1)
    images, pixels = images_of(config.data), config.data.image_size**2 * config.data.channels
    counts = feature_counts(config.evaluate.extractor, config.conditioning.classes or _CLASSES)
    drawn, each = config.sample.images, config.sample.chunk_images
    chunks = -(-drawn // each)
    lines = {
        "checkpoints": f"{size(kept * one_checkpoint(config))}: at most {kept} of {written:,} stay, "
        f"{size(one_checkpoint(config))} each",
        "averages": f"{size((1 + lasting) * weights_bytes(network))}: the model, {lasting:,} kept for sample.sigma_rel",
        "chunks": f"{size(chunks * chunk_bytes(each, pixels))}: {drawn:,} images in {chunks:,} files",
        "features": f"{size(chunks * features_bytes(each, *counts))} of drawn images",
    }
    if images is None:
        return {"shards": "not known before the images are there", **lines}
    held_out = -int(-images * config.data.heldout_fraction // 1)
    shards = shard_bytes(config.data, [images - held_out, held_out])
    real = -(-images // _FEATURES_OF) * features_bytes(_FEATURES_OF, *counts)
    packed = f"{size(shards)}: {images:,} images, a PNG taken for as large as its pixels"
    return {"shards": packed, **lines, "features of real images": size(real)}


def traffic(plan: Plan) -> dict[str, str]:
    """What goes over the network, where workers and storage are not one machine's."""
    config, devices, network = plan.config, plan.speeds.devices, network_of(plan.config)
    step = Step.of(config, plan.speeds)
    sent = sent_bytes(gradient_bytes(network), devices, config.train.parallel)
    read = config.train.batch_size * sample_bytes(config.data) / step.seconds
    reads = f"{size(read)}/s of all workers together"
    if config.data.cache != "none":
        reads += ", in the first epoch; then nothing, where the images fit"
    chunks = -(-config.sample.images // config.sample.chunk_images)
    pixels = config.data.image_size**2 * config.data.channels
    counts = feature_counts(config.evaluate.extractor, config.conditioning.classes or _CLASSES)
    each = config.sample.chunk_images
    drawn = chunks * (chunk_bytes(each, pixels) + features_bytes(each, *counts))
    between_s = config.train.checkpoint_images / config.train.batch_size * step.seconds
    checkpoint = one_checkpoint(config)
    return {
        "gradients": f"{size(sent)} a step, {size(sent / step.seconds)}/s, sent by each of {devices:,} workers",
        "reader": reads,
        "checkpoints": f"{size(checkpoint)} every {duration(between_s)}, {size(checkpoint / between_s)}/s on average, "
        "by the first worker",
        "sampling": f"{size(drawn / plan.seconds_of('sample'))}/s written, {size(weights_bytes(network))} read by each "
        f"of {devices:,}",
    }


def grounds(plan: Plan) -> Iterator[tuple[str, str]]:
    """What the figures rest on, assumptions among them."""
    config, work = plan.config, plan.work
    yield (
        "counted",
        (
            f"{flops(work.train_flops)} to train on an image, {flops(work.evaluation_flops)} for each of "
            f"{work.evaluations:,} evaluations to draw one"
        ),
    )
    yield from plan.speeds.because.items()
    if not plan.speeds.because["training"].startswith("measured now"):
        yield (
            "exchange",
            (
                f"not measured: published links in a host, {ASSUMED_NETWORK_BYTES_PER_S * 8 / 1e9:g} Gbit/s between "
                f"hosts, {ASSUMED_HOP_S * 1e6:g} us a hop; hidden behind two thirds of the arithmetic"
            ),
        )
    if not any(stage.measured for stage in plan.stages if stage.name == "reference"):
        yield "features", "not measured: at the rate of operations of drawing"
    if config.sample.sampler.evaluations(config.path) is None:
        yield (
            "sampler",
            f"not measured: {config.sample.sampler.kind} is assumed to need {ADAPTIVE_EVALUATIONS} evaluations",
        )
    if config.evaluate.likelihoods or config.evaluate.curve_images or config.sample.shards:
        yield "not counted", "evaluate.likelihoods, evaluate.curve_images and sample.shards"
