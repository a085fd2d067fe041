"""Tasks on a pool of Ray actors: each actor loads its model once, each task runs on some actor until it succeeds.

Actors rather than plain tasks, because Ray gives a task that asks for a GPU a fresh process and so a fresh model each
time. An actor that dies is started again by Ray and its task with it; a task must therefore leave the same result
however often it ran.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

from evaluation import EvaluationError

from .cluster import Cluster
from .errors import ClusterError, PipelineError

Task = TypeVar("Task")

_RESTARTS = 3  # of an actor, and of a task on it


@contextmanager
def actor_pool(cluster: Cluster, count: int, actor: type, *arguments: Any) -> Iterator[list[Any]]:
    """`count` actors of this class, made with these arguments; killed at the end.

    The block begins once all of them have been made: the class has a method `ready`, which returns then. ClusterError
    where that takes longer than cluster.timeout_s, and whatever making one raised.
    """
    config = cluster.config
    remote: Any = ray.remote(
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if cluster.use_gpu else 0,
        max_restarts=_RESTARTS,
        max_task_retries=_RESTARTS,
    )(actor)
    actors = [remote.remote(*arguments) for _ in range(count)]
    try:
        _wait_until_ready(actors, actor.__name__, config.timeout_s)
        yield actors
    finally:
        for handle in actors:
            ray.kill(handle)


def _wait_until_ready(actors: Sequence[Any], name: str, timeout_s: float) -> None:
    """name: of the actors' class."""
    if not actors:
        return
    starting = [actor.ready.remote() for actor in actors]
    started, late = ray.wait(starting, num_returns=len(starting), timeout=timeout_s)
    for reference in started:
        result_of(reference)
    if late:
        raise ClusterError(
            f"{name}: {len(started)} of {len(actors)} processes have started after {timeout_s:g} s "
            "(cluster.timeout_s); has the cluster lost nodes, or does other work hold them? The same command goes on "
            "from here"
        )


def fan_out(actors: Sequence[Any], tasks: Sequence[Task], method: str, stage: str, timeout_s: float) -> Iterator[Task]:
    """Calls `method` of some actor with each task. Yields each task when it is done, in the order in which they end.

    Two tasks wait at each actor, so that none is idle. PipelineError, which names the `stage`, where no task ends in
    timeout_s, which is cluster.task_timeout_s.
    """
    waiting = list(reversed(tasks))
    running: dict[Any, tuple[Any, Task]] = {}

    def submit(actor: Any) -> None:
        if waiting:
            task = waiting.pop()
            running[getattr(actor, method).remote(task)] = actor, task

    for actor in [*actors, *actors]:
        submit(actor)
    while running:
        ended, _ = ray.wait(list(running), num_returns=1, timeout=timeout_s)
        if not ended:
            raise _too_long(f"{stage}: none of {len(actors)} processes has finished a task", timeout_s)
        (done,) = ended
        actor, task = running.pop(done)
        submit(actor)
        result_of(done)
        yield task


def awaited(reference: Any, what: str, timeout_s: float) -> Any:
    """The result behind a reference, once it is there. PipelineError after timeout_s, which is cluster.task_timeout_s.

    what: who has not done what, as the error says it.
    """
    if not ray.wait([reference], timeout=timeout_s)[0]:
        raise _too_long(what, timeout_s)
    return result_of(reference)


def _too_long(what: str, timeout_s: float) -> PipelineError:
    """what: who has not done what, to go before `for ... s`."""
    return PipelineError(
        f"{what} for {timeout_s:g} s (cluster.task_timeout_s); raise that if it takes longer, else look for what "
        "hangs; what is done is kept and the same command goes on from there"
    )


def result_of(reference: Any) -> Any:
    """The result behind a reference; an error that the task raised on purpose comes out as it was."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, (PipelineError, EvaluationError)):
            raise cause from None
        # Of what a task or the making of an actor raised, the last line says it; where an actor is lost, the first.
        lines = str(error).strip().splitlines()
        raised = isinstance(error, ray.exceptions.RayTaskError) or getattr(error, "actor_init_failed", False)
        said = lines[-1] if raised else lines[0]
        raise PipelineError(
            f"a worker process failed: {said}; what is done is kept and the same command goes on from there; "
            f"use --traceback to see more"
        ) from error
