"""The flow, top to bottom: pack the images, train, sample, score, register. It is checked before anything is spent."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .clusters.cluster import connected
from .data.prepare import Prepare, check_prepared
from .errors import TrackingError
from .features.reference import Reference
from .files import exclusive, write_text
from .redaction import redacted
from .registration.register import Register
from .runfile.config import Config
from .runfile.configfile import dump, flatten
from .sampling.sample import Sample
from .sampling.sample_shards import SampleShards
from .scoring.evaluate import Evaluate
from .scoring.score_curve import ScoreCurve
from .stage import CONFIG, Run, Stage, advance
from .summary import close
from .terminal import StageReport, Terminal
from .tracking.mlflow_store import check_answers
from .tracking.tracked_run import TrackedRun, open_run
from .training.curve import CURVE
from .training.guide import Guide
from .training.metrics_follower import MetricsFollower
from .training.preview import PREVIEWS
from .training.train import Train
from .training.trained_model import ModelFolders

FLOW: tuple[Stage, ...] = (
    Prepare(),
    Train(),
    Guide(),
    Reference(),
    Sample(),
    SampleShards(),
    Evaluate(),
    ScoreCurve(),
    Register(),
)
STAGES = tuple(stage.name for stage in FLOW)


def run_flow(config: Config, terminal: Terminal, until: str = STAGES[-1]) -> Run:
    """Computes every stage up to `until` whose result is not there yet.

    An MLflow that does not answer and a cluster that is too small are refused before the first stage; images, shards
    and weights that will not do, before the second.
    """
    run = Run(config, terminal)
    stages = [stage for stage in FLOW[: STAGES.index(until) + 1] if stage.wanted(config)]
    prepare, *rest = stages
    reports = []
    with ExitStack() as stack:
        stack.enter_context(exclusive(run.folder, "run"))
        write_text(run.folder / CONFIG, redacted(dump(config)))
        pending = recall(run, stages)
        if rest:
            with terminal.stage("start", str(run.folder)) as report:
                stack.enter_context(started([run], pending, report))
            reports.append(report)
        reports.append(advance(run, prepare))
        if rest:
            check_prepared(run)
            params = flatten(config.model_dump(mode="json", by_alias=True))
            run.tracked = stack.enter_context(tracked(run, run.folder, run.key, params))
            for stage in rest:
                reports.append(advance(run, stage))
                if isinstance(stage, Train | Guide):
                    ModelFolders.of(run).write_description(config, run.folder)
    close(run, reports)
    return run


@contextmanager
def started(runs: Sequence[Run], pending: Sequence[Stage], report: StageReport) -> Iterator[None]:
    """MLflow answers, and where a pending stage needs a cluster, all runs are in the first one's until the end."""
    first = runs[0]
    check_answers(first.tracking_uri, first.config.tracking.timeout_s)
    if not any(stage.uses_cluster for stage in pending):
        yield
        return
    with connected(first.config.cluster) as cluster:
        for run in runs:
            run.cluster = cluster
        _check_resources(first, pending)
        report.figure = str(cluster)
        yield


def recall(run: Run, stages: Sequence[Stage]) -> list[Stage]:
    """Fills in the results that are there, from the first stage on. -> the stages that remain."""
    for done, stage in enumerate(stages):
        result = stage.recall(run)
        if result is None:
            return list(stages[done:])
        run.results[stage.name] = result
    return []


def _check_resources(run: Run, pending: Sequence[Stage]) -> None:
    if any(isinstance(stage, Train | Guide) for stage in pending):
        run.joined.require(min(run.config.train.worker_range), "train.num_workers")
    run.joined.require(min(run.config.sampler_range), "cluster.num_samplers")


@contextmanager
def tracked(run: Run, folder: Path, key: str, params: Mapping[str, str]) -> Iterator[TrackedRun]:
    """The MLflow run of `folder`, around the stages. It follows the training and waits for its last point."""
    config, data = run.config, run.results["prepare"].facts
    page = open_run(
        run.tracking_uri,
        config.tracking.experiment,
        folder.name,
        folder,
        params,
        {"run_key": key, "data_digest": data["data_digest"]} | _start_tags(run),
    )
    page.log_inputs(
        config.data.source.kind,
        data["data_digest"],
        str(run.results["prepare"].folder),
        {"train": data["train_images"], "heldout": data["heldout_images"]},
    )
    training = Train().folder(run)
    follower = MetricsFollower(page, training / CURVE, training / PREVIEWS)
    try:
        yield page
        follower.close(config.tracking.timeout_s)
        page.finish("FINISHED")
    except BaseException as error:
        with _best_effort():
            follower.close(timeout_s=5)
        with _best_effort():
            page.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise


def _start_tags(run: Run) -> dict[str, str]:
    """What the training starts from, where the param `train.warm_start` may say no more than an alias."""
    start = run.warm_start
    return {"warm_start": start.name, "warm_start_digest": start.digest} if start else {}


@contextmanager
def _best_effort() -> Iterator[None]:
    """The error on its way out says more than that MLflow could not be told of it."""
    try:
        yield
    except TrackingError:
        return
