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
from .errors import PipelineError

Task = TypeVar("Task")

_RESTARTS = 3  # of an actor, and of a task on it


@contextmanager
def actor_pool(cluster: Cluster, count: int, actor: type, *arguments: Any) -> Iterator[list[Any]]:
    """`count` actors of this class, made with these arguments; killed at the end."""
    remote: Any = ray.remote(
        num_cpus=cluster.config.cpus_per_worker,
        num_gpus=1 if cluster.use_gpu else 0,
        max_restarts=_RESTARTS,
        max_task_retries=_RESTARTS,
    )(actor)
    actors = [remote.remote(*arguments) for _ in range(count)]
    try:
        yield actors
    finally:
        for handle in actors:
            ray.kill(handle)


def fan_out(actors: Sequence[Any], tasks: Sequence[Task], method: str) -> Iterator[Task]:
    """Calls `method` of some actor with each task. Yields each task when it is done, in the order in which they end.

    Two tasks wait at each actor, so that none is idle.
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
        (done,), _ = ray.wait(list(running), num_returns=1)
        actor, task = running.pop(done)
        submit(actor)
        result_of(done)
        yield task


def wait_until_ready(actors: Sequence[Any]) -> None:
    """Returns once every actor has been made; raises what making one raised."""
    for actor in actors:
        result_of(actor.ready.remote())


def result_of(reference: Any) -> Any:
    """The result behind a reference; an error that the task raised on purpose comes out as it was."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, (PipelineError, EvaluationError)):
            raise cause from None
        # the last line of a task's error, the first one of what Ray says of an actor that is lost
        lines = str(error).strip().splitlines()
        said = lines[-1] if isinstance(error, ray.exceptions.RayTaskError) else lines[0]
        raise PipelineError(
            f"a worker process failed: {said}; what is done is kept and the same command goes on from there; "
            f"use --traceback to see more"
        ) from error
