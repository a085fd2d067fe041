"""What a run file asks for, in numbers, before anything is spent on it."""

import torch
from rich.console import Console
from rich.table import Table

from ..errors import DataError
from ..redaction import redacted
from ..runfile.config import Config
from ..runfile.train_config import TrainConfig
from ..stage import Run
from ..terminal import Terminal


def print_outline(config: Config, console: Console) -> None:
    """Prints each stage with what it will do."""
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    for name, fact in outline(config).items():
        table.add_row(name, fact)
    console.print(table)


def outline(config: Config) -> dict[str, str]:
    """Stage or part to one line about it."""
    run = Run(config, Terminal())
    sample = config.sample
    shape = f"{config.data.image_size}x{config.data.image_size}x{config.data.channels}"
    return {
        "run": config.name,
        "data": f"{config.data.source.kind}, {shape}, {config.data.heldout_fraction:.0%} held out",
        "network": f"{config.network.kind}, {parameters(config):,} parameters",
        "path": f"{config.path.kind}, t = {config.path.t_min:g} to {config.path.t_max:g}; target {config.target.kind}, "
        f"variance {config.variance.kind}; codec {config.codec.kind}",
        "conditioning": f"{config.conditioning.kind}; guidance {config.sample.guidance.kind}",
        "train": _training(config.train),
        **({"warm start": str(run.warm_start)} if run.warm_start else {}),
        "sample": f"{sample.images:,} images by {sample.sampler.kind}, {_evaluations(config)}, in chunks of "
        f"{sample.chunk_images}",
        "evaluate": f"{config.evaluate.extractor.kind} features, against those of "
        f"{config.evaluate.reference or 'the training images'}",
        "register": config.register_.model_name,
        "cluster": f"{config.cluster.address}, {config.cluster.cpus_per_worker} CPU for each process, "
        f"device {config.cluster.device}",
        "tracking": redacted(run.tracking_uri),
        "output": _folder(run),
    }


def _training(train: TrainConfig) -> str:
    if not train.images:
        return "no training; the model of train.warm_start as it is"
    fewest, most = train.worker_range
    workers, largest = str(most), f"{-(-train.batch_size // fewest):,}"
    if fewest != most:
        workers, largest = f"{fewest} to {most}", f"{train.batch_size // most:,} to {largest}"
    return (
        f"{train.images:,} images in {train.steps:,} steps of {train.batch_size:,}, on {workers} workers {largest} "
        f"each; weighting {train.weighting.kind}, times {train.times.kind}; precision {train.precision}"
    )


def _folder(run: Run) -> str:
    """The run's folder, whose name depends on the data; the rest of the outline does without."""
    try:
        return str(run.folder)
    except DataError as error:
        return f"in {run.output}; {error}"


def _evaluations(config: Config) -> str:
    count = config.sample.sampler.evaluations(config.path)
    if count is None:
        return "network evaluations as it finds necessary"
    return f"{count * config.sample.guidance.evaluations:,} network evaluations each"


def parameters(config: Config) -> int:
    """Trainable numbers of the network, counted without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in config.spec.build().parameters())
