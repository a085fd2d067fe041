"""Part of the fifth stage: how likely images are under the trained model, measured by Ray actors in fixed batches.

A batch is one file, whole or absent. What was measured is kept under a key of all that decided it, so that runs which
differ only in sampler, guidance or number of samples find it again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation import Likelihood, ODELikelihood, Results, VariationalBound
from evaluation.curves import bound_terms, rate_distortion_curve
from model import NO_GUIDANCE

from ..clusters.fan_out import finish_on_actors
from ..data.reader import ShardReader
from ..data.shard_cache import ShardCacheConfig
from ..data.shard_index import ShardIndex
from ..errors import DataError, TrainingError
from ..features.features import Batch, batches
from ..files import digest, in_turn, read_arrays, write_arrays
from ..runfile.keyroles import identity
from ..stage import Run
from ..training.trained_model import ModelFolders, weights_identity

CURVES = "bound.npz"
_LARGEST_ODE_BATCH = 64  # images: their gradients are kept


@dataclass(frozen=True)
class LikelihoodWork:
    """What the actors that measure one likelihood share."""

    likelihood: VariationalBound | ODELikelihood
    model: ModelFolders
    index_folder: Path
    folder: Path
    """For the results."""
    device_type: str
    shard_cache: ShardCacheConfig
    batch_images: int
    """Always the same, since rounding may depend on the batch."""

    @property
    def batches(self) -> list[Batch]:
        """All batches, in order; the last one may be smaller."""
        return list(batches(self.likelihood.split, self.likelihood.images, self.batch_images))

    def numbers(self, batch: Batch) -> NDArray[np.int64]:
        """Positions in the split of this batch's images. int64 [n]."""
        start = batch.number * self.batch_images
        return np.arange(start, start + batch.images)

    def path(self, batch: Batch) -> Path:
        """Where its results are, or are to be."""
        return self.folder / f"batch-{batch.number:06d}.npz"

    def read(self, batch: Batch) -> Results:
        """The results of this batch. DataError unless there is a whole file of as many images."""
        names, remedy = self.likelihood.results, "run the same command again, it measures them anew"
        try:
            found = dict(zip(names, read_arrays(self.path(batch), *names), strict=True))
        except DataError as error:
            raise DataError(f"{error}; {remedy}") from None
        if (images := len(found["bits"])) != batch.images:
            raise DataError(f"{self.path(batch)}: {images} images, expected {batch.images}; {remedy}")
        return found

    def is_whole(self, batch: Batch) -> bool:
        """Whether the batch has been measured."""
        try:
            self.read(batch)
        except DataError:
            return False
        return True

    def results(self) -> Results:
        """All of them, in the order of the images. DataError where some have gone since they were made."""
        parts = [self.read(batch) for batch in self.batches]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.likelihood.results}


class LikelihoodWriter:
    """Runs as an actor: loads the model once and writes the results of batches."""

    def __init__(self, work: LikelihoodWork, threads: int) -> None:
        torch.set_num_threads(threads)
        self.work = work
        self.device = torch.device(work.device_type)
        self.model = work.model.load(NO_GUIDANCE, self.device)
        self.reader = ShardReader(ShardIndex.load(work.index_folder), work.likelihood.split, "none", work.shard_cache)

    def ready(self) -> None:
        """Returns once the model is loaded."""

    def write(self, batch: Batch) -> None:
        """Measures and writes one batch."""
        numbers, likelihood = self.work.numbers(batch), self.work.likelihood
        images = torch.from_numpy(self.reader.read(numbers)).to(self.device)
        label = torch.from_numpy(self.reader.labels[numbers]).to(self.device) if self.model.spec.classes else None
        try:
            results = likelihood.measure(self.model, images, torch.from_numpy(numbers).to(self.device), label)
            if not np.isfinite(results["bits"]).all():
                raise FloatingPointError("bits/dim are not finite")
        except FloatingPointError as error:
            raise TrainingError(
                f"evaluate.likelihoods: {likelihood.kind}, {likelihood.split} images from {numbers[0]}: {error}; lower "
                "train.learning_rate, or loosen rtol and atol"
            ) from None
        write_arrays(self.work.path(batch), **results)


def measure(run: Run, likelihoods: Sequence[Likelihood], folder: Path) -> dict[str, float]:
    """The scores of all likelihoods, bits/dim; the curves of a variational bound go to `folder`."""
    scores: dict[str, float] = {}
    for likelihood in likelihoods:
        work = _work(run, likelihood)
        work.folder.mkdir(parents=True, exist_ok=True)
        # another run of this model waits here and finds it measured
        with in_turn(work.folder, "likelihood", run.config.cluster.task_timeout_s):
            _write(run, work)
            results = work.results()
        scores |= likelihood.scores(results)
        if isinstance(likelihood, VariationalBound):
            write_arrays(folder / CURVES, **likelihood.curves(results)._asdict())
    return scores


def draw_likelihoods(measured: Path, folder: Path) -> Iterator[Path]:
    """Pictures of the bound's terms and of rate and distortion, drawn in `folder`. measured: where `measure` wrote."""
    if (measured / CURVES).exists():
        terms, rate, distortion = read_arrays(measured / CURVES, "terms", "rate", "distortion")
        yield folder / "bound_terms.png"
        bound_terms(terms, folder / "bound_terms.png")
        yield folder / "rate_distortion.png"
        rate_distortion_curve(rate, distortion, folder / "rate_distortion.png")


def likelihoods_in_words(scores: Mapping[str, float | None], likelihoods: Sequence[Likelihood]) -> dict[str, str]:
    """A line for each likelihood: its name, and such as `3.142 ± 0.012 of 360 heldout images; 4 probes, ...`."""
    return dict(_line(scores, likelihood) for likelihood in likelihoods)


def _line(scores: Mapping[str, float | None], likelihood: Likelihood) -> tuple[str, str]:
    if isinstance(likelihood, VariationalBound):
        title, name, how = "bits/dim, bound", "bits_per_dim_bound", f"variance {likelihood.variance}"
    else:
        title, name = "bits/dim, ODE", "bits_per_dim_ode"
        how = f"{likelihood.probes} probes, ± {scores[f'{name}_standard_error_of_probes']:.3f} of them"
    mean_and_error = f"{scores[name]:.3f} ± {scores[f'{name}_standard_error']:.3f}"
    return title, f"{mean_and_error} of {likelihood.images:,} {likelihood.split} images; {how}; lower is better"


def _work(run: Run, likelihood: Likelihood) -> LikelihoodWork:
    prepare = run.results["prepare"]
    batch_images = min(run.config.sample.chunk_images, likelihood.images)
    if isinstance(likelihood, ODELikelihood):
        batch_images = min(batch_images, _LARGEST_ODE_BATCH)
    device = run.joined.device_type
    decided_by = {
        "likelihood": identity(likelihood),
        "model": weights_identity(run),
        "spec": identity(run.config.spec),
        "data": prepare.facts["data_digest"],
        "batch_images": batch_images,
        "device_type": device,
    }
    folder = run.output / "stages" / f"likelihood-{digest(decided_by)[:12]}"
    return LikelihoodWork(
        likelihood, ModelFolders.of(run), prepare.folder, folder, device, run.config.data.shard_cache, batch_images
    )


def _write(run: Run, work: LikelihoodWork) -> None:
    missing = [batch for batch in work.batches if not work.is_whole(batch)]
    stage, images = f"evaluate, likelihood {work.likelihood.kind}", work.likelihood.images
    finish_on_actors(run, stage, "write", missing, images, LikelihoodWriter, work)
