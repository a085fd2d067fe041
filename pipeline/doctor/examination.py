"""An examination: what the checks of `doctor` look at, the nodes they ask, and what they have found."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Literal, Self

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from evaluation import EvaluationError

from ..clusters.cluster import Cluster, connected
from ..errors import ClusterError, PipelineError
from ..runfile.config import Config
from ..stage import Run
from ..terminal import Terminal
from . import on_nodes

_NAMES = 3  # of nodes that a message spells out

cloudpickle.register_pickle_by_value(on_nodes)


@dataclass(frozen=True)
class Finding:
    """What one check has found."""

    check: str
    verdict: Literal["pass", "fail", "not checked"]
    seen: str
    """What there is, or why nothing was looked at."""
    cure: str = ""
    """What to do, of a failed check."""


class NotCheckedError(Exception):
    """There is nothing to look at, or what the check builds on did not pass; the text says which."""


Check = Callable[["Examination"], str]
"""Says what it has seen. It fails by the error with which a run would: what is wrong; what to do."""


@dataclass(frozen=True)
class Node:
    """One that is alive."""

    id: str
    name: str
    """Its address, and the beginning of its id where several share that."""
    resources: Mapping[str, float]


class Examination:
    """A run file and its cluster under examination. Leaves the cluster at the end."""

    def __init__(self, config: Config, all_shards: bool = False) -> None:
        """all_shards: whether all of them are read, or a sample."""
        self.config, self.all_shards = config, all_shards
        self.findings: dict[str, Finding] = {}
        """By the name of the check, of those that are through."""
        self.joined: Cluster | None = None
        """The cluster, once there is one."""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stack.close()

    def perform(self, check: Check) -> Finding:
        """Carries out one check, whatever comes of it."""
        name = check.__name__.replace("_", " ")
        try:
            finding = Finding(name, "pass", check(self))
        except NotCheckedError as reason:
            finding = Finding(name, "not checked", str(reason))
        except Exception as error:  # which must not hide what the other checks find
            seen, _, cure = message_of(error).partition("; ")
            finding = Finding(name, "fail", seen, cure)
        self.findings[check.__name__] = finding
        return finding

    def after(self, check: Check) -> None:
        """To be called by a check that builds on another. NotCheckedError unless that one has passed."""
        finding = self.findings.get(check.__name__)
        if finding and finding.verdict != "pass":
            raise NotCheckedError(f"builds on '{finding.check}', which did not pass")

    def join(self) -> Cluster:
        """Joins the cluster, or starts it. ClusterError as `connected`."""
        self.joined = self._stack.enter_context(connected(self.config.cluster))
        return self.joined

    @property
    def cluster(self) -> Cluster:
        """The cluster. NotCheckedError where it could not be joined."""
        if self.joined is None:
            raise NotCheckedError("there is no cluster")
        return self.joined

    @cached_property
    def run(self) -> Run:
        """The run of this file, without the weights that it starts from."""
        train = self.config.train.model_copy(update={"warm_start": None})
        return Run(self.config.model_copy(update={"train": train}), Terminal())

    @cached_property
    def nodes(self) -> list[Node]:
        """All nodes of the cluster that are alive. NotCheckedError as `cluster`."""
        assert self.cluster
        alive = [node for node in ray.nodes() if node["Alive"]]
        addresses = [node["NodeManagerAddress"] for node in alive]
        return [
            Node(
                node["NodeID"],
                address if addresses.count(address) == 1 else f"{address} ({node['NodeID'][:6]})",
                node["Resources"],
            )
            for node, address in zip(alive, addresses, strict=True)
        ]

    @property
    def room(self) -> int:
        """How many workers find their CPUs, and where they need one a GPU, on one node each."""
        per_worker = self.config.cluster.cpus_per_worker
        cpus = [int(node.resources.get("CPU", 0) / per_worker) for node in self.nodes]
        if not self.cluster.use_gpu:
            return sum(cpus)
        gpus = [int(node.resources.get("GPU", 0)) for node in self.nodes]
        return sum(map(min, zip(cpus, gpus, strict=True)))

    def everywhere(
        self, cure: str, function: Callable[..., Any], *arguments: Any, limit_s: float | None = None
    ) -> dict[str, Any]:
        """What a function of `on_nodes` returns on each node, by the node's name.

        ClusterError, which ends with the cure, where it raised, or has not returned after limit_s, by default
        cluster.timeout_s.
        """
        limit_s = limit_s or self.config.cluster.timeout_s
        task: Any = ray.remote(num_cpus=0, max_retries=0)(function)
        asked = {
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
                *arguments
            ): node.name
            for node in self.nodes
        }
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=limit_s)
        found, troubles = {}, {asked[reference]: f"no answer for {limit_s:g} s" for reference in silent}
        for reference in silent:
            ray.cancel(reference, force=True)
        for reference in answered:
            try:
                found[asked[reference]] = ray.get(reference)
            except ray.exceptions.RayError as error:
                troubles[asked[reference]] = message_of(error).partition("; ")[0]
        if troubles:
            raise ClusterError(f"{self.by_value(troubles)}; {cure}")
        return found

    def by_value(self, found: Mapping[str, str]) -> str:
        """What was found by the names of the nodes, each value once."""
        names = defaultdict(list)
        for name, value in found.items():
            names[value].append(name)
        return " - ".join(f"{self._on(some)}: {value}" for value, some in names.items())

    def _on(self, names: list[str]) -> str:
        if len(names) > 1 and set(names) == {node.name for node in self.nodes}:
            return "every node"
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        return ", ".join(names[:_NAMES]) + more


def seen_alike(found: Mapping[str, str]) -> bool:
    """Whether all have found the same."""
    return len(set(found.values())) == 1


def message_of(error: Exception) -> str:
    """What an error says in one line, without Ray's layers around it; of an unexpected one its name, too."""
    cause = getattr(error, "cause", None) or error
    line = str(cause).strip().partition("\n")[0]
    told = isinstance(cause, (PipelineError, EvaluationError, OSError, ray.exceptions.RayError))
    return line if told and line else f"{type(cause).__name__}: {line}"
