"""Tasks on a pool of Ray actors: each actor loads its model once, each task runs on some actor until it succeeds.

Actors rather than plain tasks, because Ray gives a task that asks for a GPU a fresh process and so a fresh model each
time. The pool grows as the cluster gets room. An actor that dies is started again by Ray, and its tasks with it; where
there is no room for it any more, or it is only slow, an idle one takes over what it has not done. So a task may run
more than once, also at the same time, and must leave the same result each time.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import ray

from evaluation import EvaluationError

from ..errors import ClusterError, PipelineError
from ..stage import Run
from .cluster import Cluster
from .gauges import Gauges


class OfImages(Protocol):
    """A task that is done for some images."""

    @property
    def images(self) -> int:
        """How many."""


Task = TypeVar("Task")
ImageTask = TypeVar("ImageTask", bound=OfImages)

_RESTARTS = 3  # of an actor, and of a task on it
_GRACE_S = 10.0  # for tasks that others have done already; of one that is cut short Ray complains on the terminal
_AT_ONCE = 2  # tasks that wait at each actor, so that none is idle


class ActorPool:
    """Actors of one class: those that are ready, and those for which there may be room one day."""

    def __init__(self, ready: list[Any], starting: dict[Any, Any]) -> None:
        """starting: actors by the reference that is there once they are ready."""
        self.ready, self.starting = ready, starting

    def admit(self, reference: Any) -> Any:
        """The actor that has become ready. Raises what making it raised."""
        actor = self.starting.pop(reference)
        result_of(reference)
        self.ready.append(actor)
        return actor


@contextmanager
def actor_pool(cluster: Cluster, count: tuple[int, int], actor: type, *arguments: Any) -> Iterator[ActorPool]:
    """Actors of this class, made with these arguments; killed at the end. count: the fewest and the most.

    The block begins once the fewest have been made: the class has a method `ready`, which returns then. ClusterError
    where that takes longer than cluster.timeout_s, and whatever making one raised. The others join when they are ready.
    """
    config = cluster.config
    fewest, most = count
    remote: Any = ray.remote(
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if cluster.use_gpu else 0,
        max_restarts=_RESTARTS,
        max_task_retries=_RESTARTS,
    )(actor)
    actors = [remote.remote(*arguments) for _ in range(most)]
    try:
        pool = ActorPool([], {made.ready.remote(): made for made in actors})
        _wait_until_ready(pool, fewest, actor.__name__, config.timeout_s)
        yield pool
    finally:
        for made in actors:
            ray.kill(made)


def _wait_until_ready(pool: ActorPool, fewest: int, name: str, timeout_s: float) -> None:
    """name: of the actors' class."""
    if fewest == 0:
        return
    started, _ = ray.wait(list(pool.starting), num_returns=fewest, timeout=timeout_s)
    for reference in started:
        pool.admit(reference)
    if len(started) < fewest:
        raise ClusterError(
            f"{name}: {len(started)} of {fewest} processes have started after {timeout_s:g} s "
            "(cluster.timeout_s); has the cluster lost nodes, or does other work hold them? The same command goes on "
            "from here"
        )


def fan_out(pool: ActorPool, tasks: Sequence[Task], method: str, stage: str, timeout_s: float) -> Iterator[Task]:
    """Calls `method` of some actor with each task. Yields each task when it is done, in the order in which they end.

    PipelineError, which names the `stage`, where no task ends in timeout_s, which is cluster.task_timeout_s.
    """
    waiting = list(reversed(range(len(tasks))))
    running: dict[Any, tuple[Any, int]] = {}
    helping: set[Any] = set()  # references of `running`
    done: set[int] = set()

    def submit(actor: Any) -> None:
        if waiting:
            number = waiting.pop()
            running[getattr(actor, method).remote(tasks[number])] = actor, number
        elif all(actor is not busy for busy, _ in running.values()):
            help_out(actor)

    def help_out(actor: Any) -> None:
        """An actor with nothing to do takes over what was begun first and is at one actor only."""
        begun = [number for _, number in running.values() if number not in done]
        alone = [number for number in begun if begun.count(number) == 1]
        if alone:
            without_retries = getattr(actor, method).options(max_task_retries=0)  # the other one has them
            reference = without_retries.remote(tasks[alone[0]])
            running[reference] = actor, alone[0]
            helping.add(reference)

    for actor in pool.ready * _AT_ONCE:
        submit(actor)
    while len(done) < len(tasks):
        ended, _ = ray.wait([*running, *pool.starting], num_returns=1, timeout=timeout_s)
        if not ended:
            raise _too_long(f"{stage}: none of {len(pool.ready)} processes has finished a task", timeout_s)
        (reference,) = ended
        if reference in pool.starting:
            joined = pool.admit(reference)
            for _ in range(_AT_ONCE):
                submit(joined)
            continue
        actor, number = running.pop(reference)
        if reference in helping and _is_lost(reference):
            continue  # the one that was helped goes on
        result_of(reference)
        first = number not in done
        done.add(number)
        submit(actor)
        if first:
            yield tasks[number]
    if running:
        ray.wait(list(running), num_returns=len(running), timeout=_GRACE_S)


@contextmanager
def images_on_actors(
    run: Run, stage: str, method: str, tasks: Sequence[ImageTask], images: int, actor: type, *arguments: Any
) -> Iterator[Iterator[ImageTask]]:
    """Actors of this class, ready to work, and the tasks as they get done by them; the terminal shows how far all is.

    images: of all tasks, those that were done earlier too. arguments: what actors are made with, and after them the
    number of their threads. Errors are those of `actor_pool` and `fan_out`.
    """
    with (
        run.terminal.progress(images, "images") as progress,
        actor_pool(run.joined, run.samplers(len(tasks)), actor, *arguments, run.threads) as pool,
    ):
        gauges = Gauges("stage", run=run.config.name, stage=stage)

        def advance(done: int) -> None:
            progress.update(done)
            gauges.set({"images": done, "total_images": images, "images_per_s": progress.per_second})

        advance(images - sum(task.images for task in tasks))

        def done() -> Iterator[ImageTask]:
            for task in fan_out(pool, tasks, method, stage, run.config.cluster.task_timeout_s):
                advance(progress.done + task.images)
                yield task

        yield done()


def finish_on_actors(
    run: Run, stage: str, method: str, tasks: Sequence[ImageTask], images: int, actor: type, *arguments: Any
) -> None:
    """`images_on_actors` to the end; where there are no tasks, no actors are made."""
    if tasks:
        with images_on_actors(run, stage, method, tasks, images, actor, *arguments) as done:
            deque(done, maxlen=0)


def _is_lost(reference: Any) -> bool:
    """Whether the actor has died at the task."""
    try:
        ray.get(reference)
    except ray.exceptions.RayActorError:
        return True
    except ray.exceptions.RayError:  # of the task's own, which `result_of` tells
        return False
    return False


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
