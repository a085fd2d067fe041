"""A stage: one step of the flow whose result is kept under a key of everything that decided it.

The same key means the same result, so a finished stage is found again rather than computed again, by the same run or
by another one that shares its beginnings. `done.json` is written last: a stage without it is unfinished and goes on
where it stopped.
"""

import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .clusters.cluster import Cluster
from .data.shard_index import MANIFEST, ShardIndex
from .files import digest, exclusive, in_turn, read_json, sha256_of, write_json
from .models.warm_start import WarmStart, find_start
from .runfile.config import Config
from .runfile.keyroles import identity
from .terminal import StageReport, Terminal
from .tracking.mlflow_store import resolve_uri
from .tracking.tracked_run import TrackedRun

CONFIG = "config.yaml"
"""In a run's folder: its configuration, whole."""
Facts = dict[str, Any]
"""What a stage found out, as JSON."""


@dataclass(frozen=True)
class Result:
    """A finished stage."""

    folder: Path
    facts: Facts
    seconds: float
    """Wall clock of computing it, in whichever run did."""
    reused: bool

    @property
    def key(self) -> str:
        """The last part of the folder's name."""
        return self.folder.name.rpartition("-")[2]


@dataclass
class Run:
    """One pipeline run: a configuration, where it writes, and what has been finished so far."""

    config: Config
    terminal: Terminal
    cluster: Cluster | None = None
    tracked: TrackedRun | None = None
    results: dict[str, Result] = field(default_factory=dict)
    warm_start: WarmStart | None = None
    """What training starts from. Looked up when the run is made, where the configuration asks for one, so that it stays
    the same to the end; None: random weights."""

    def __post_init__(self) -> None:
        if self.config.train.warm_start is not None and self.warm_start is None:
            self.warm_start = find_start(self.config.train.warm_start, self.config, self.tracking_uri)

    @cached_property
    def output(self) -> Path:
        """Absolute: Ray changes the working directory of its workers."""
        return Path(self.config.output).expanduser().absolute()

    @cached_property
    def key(self) -> str:
        """Digest of all that decides the run's results and can be known beforehand."""
        start = [self.warm_start.digest] if self.warm_start else []
        base = [self.base_digest] if self.base else []
        reference = self.config.evaluate.reference_digest()
        given = [] if reference is None else [reference]
        return digest([identity(self.config), self.config.data.source.fingerprint(), *start, *base, *given])

    @cached_property
    def base(self) -> Path | None:
        """The folder that `data.base` names, whose index is there. DataError where it is not."""
        folder = self.config.data.base
        if folder is None:
            return None
        return ShardIndex.load(folder.expanduser().absolute()).folder

    @cached_property
    def base_digest(self) -> str | None:
        """Of the images that `data.base` names."""
        return sha256_of(self.base / MANIFEST) if self.base else None

    @property
    def folder(self) -> Path:
        """Where summary, pictures and configuration of this run lie."""
        return self.output / f"{self.config.name}-{self.key[:8]}"

    @property
    def tracking_uri(self) -> str:
        """Where MLflow records; may hold a password."""
        return resolve_uri(self.config.tracking.uri, self.output)

    @property
    def joined(self) -> Cluster:
        """The cluster; the flow joins it before the first stage that uses it."""
        assert self.cluster is not None
        return self.cluster

    def samplers(self, tasks: int) -> tuple[int, int]:
        """The fewest and the most processes that draw or score, where there are so many tasks."""
        fewest, most = self.config.sampler_range
        return min(fewest, tasks), min(most, tasks)

    @property
    def threads(self) -> int:
        """Of each process that computes."""
        return self.config.cluster.cpus_per_worker

    @cached_property
    def index(self) -> ShardIndex:
        """The shards that `prepare` made or found."""
        return ShardIndex.load(self.results["prepare"].folder)

    @cached_property
    def compared(self) -> ShardIndex:
        """The images that samples are compared with: those of `prepare`, or of the folder `evaluate.reference`."""
        frozen = self.config.evaluate.frozen
        return ShardIndex.load(frozen) if frozen else self.index


class Stage(ABC):
    """One step of the flow. To add one: a subclass, its place in `FLOW`, and its line in `__main__._STAGES`."""

    name: str
    """Also the command that runs the flow up to here."""
    format: int = 1
    """Counts up when the stage's files or meaning change, so that results of older code are not taken for new ones."""
    uses_cluster: bool = True
    """Whether `compute` needs Ray; where no stage that is to be computed does, none is started."""
    shared: bool = False
    """Whether other runs may want the same result at the same time: then they wait for it."""

    def wanted(self, config: Config) -> bool:  # noqa: ARG002  # some look at it
        """Whether a run of this configuration has the stage."""
        return True

    @abstractmethod
    def identity(self, run: Run) -> Any:
        """JSON of everything that decides the result; the results of earlier stages are in `run.results`."""

    @abstractmethod
    def compute(self, run: Run, folder: Path) -> Facts:
        """Does the work in `folder`, which may hold the remains of an attempt that was interrupted."""

    @abstractmethod
    def figure(self, facts: Facts) -> str:
        """The result in a few words and one figure, for the closing table."""

    def folder(self, run: Run) -> Path:
        """Where the result is kept."""
        key = digest([self.name, self.format, self.identity(run)])
        return run.output / "stages" / f"{self.name}-{key[:12]}"

    def recall(self, run: Run) -> Result | None:
        """The result, if it has been computed before."""
        done = self.folder(run) / "done.json"
        if not done.exists():
            return None
        record = read_json(done)
        return Result(done.parent, record["facts"], record["seconds"], reused=True)

    def finish(self, run: Run) -> Result:
        """Computes the result, or goes on computing it. While another process does, that is a PipelineError, or awaited
        where the stage is `shared`.
        """
        folder = self.folder(run)
        with self.held(run):
            if self.shared and (made := self.recall(run)):  # while this one waited
                return made
            start = time.perf_counter()
            facts = self.compute(run, folder)
            return self.keep(folder, facts, time.perf_counter() - start)

    def keep(self, folder: Path, facts: Facts, seconds: float) -> Result:
        """Writes down that the result in `folder` is finished. seconds: that it took."""
        result = Result(folder, facts, round(seconds, 2), reused=False)
        record = {"stage": self.name, "format": self.format, "seconds": result.seconds, "facts": facts}
        write_json(folder / "done.json", record)
        return result

    def held(self, run: Run) -> AbstractContextManager[None]:
        """The folder of the result, made and held for this process."""
        folder = self.folder(run)
        if not self.shared:
            return exclusive(folder, f"{self.name} stage")
        folder.mkdir(parents=True, exist_ok=True)
        return in_turn(folder, f"{self.name} stage", run.config.cluster.task_timeout_s)


def advance(run: Run, stage: Stage) -> StageReport:
    """Recalls or computes one stage and shows it."""
    result = run.results.get(stage.name) or stage.recall(run)
    with run.terminal.stage(stage.name) as report:
        if result is None:
            result = stage.finish(run)
            report.figure = stage.figure(result.facts)
        else:
            report.skip(stage.figure(result.facts))
    run.results[stage.name] = result
    return report
