"""The Ray cluster that does the work: joined or started for one run, and asked first whether it is large enough."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from ..code_version import TREE
from ..errors import ClusterError
from ..runfile.config import ClusterConfig
from ..terminal import quiet_libraries
from . import ray_token
from .shipment import PACKAGES

_OBJECT_STORE_BYTES = 256 * 1024**2  # images never pass through it: weights do, and features


@dataclass(frozen=True)
class Cluster:
    """A connected cluster, as far as a run needs to know it."""

    config: ClusterConfig
    cpus: float
    gpus: float

    def __str__(self) -> str:
        where = "on this machine" if self.config.address == "local" else f"at {self.config.address}"
        return f"Ray {where}, {self.cpus:g} CPUs, {self.gpus:g} GPUs"

    @property
    def use_gpu(self) -> bool:
        """Whether workers compute on GPUs."""
        return self.config.device == "cuda" or (self.config.device == "auto" and self.gpus > 0)

    @property
    def device_type(self) -> str:
        """`cpu` or `cuda`."""
        return "cuda" if self.use_gpu else "cpu"

    def require(self, processes: int, key: str) -> None:
        """ClusterError unless `processes` workers fit; `key` is the configuration key that asks for them."""
        cpus = processes * self.config.cpus_per_worker
        if cpus > self.cpus:
            raise ClusterError(
                f"{key}: {processes} workers of {self.config.cpus_per_worker} CPU need {cpus} CPUs, but the cluster at "
                f"{self.config.address!r} has {self.cpus:g}; lower {key} or cluster.cpus_per_worker, or add nodes"
            )
        if self.use_gpu and processes > self.gpus:
            raise ClusterError(
                f"{key}: {processes} workers need a GPU each, but the cluster at {self.config.address!r} has "
                f"{self.gpus:g}; lower {key}, add nodes, or set cluster.device=cpu"
            )


@contextmanager
def connected(config: ClusterConfig) -> Iterator[Cluster]:
    """Joins the cluster at `config.address`, or starts one on this machine; leaves or stops it at the end."""
    quiet_libraries()  # its workers too, which inherit the environment
    try:
        if config.address == "local":
            _start_here(config.timeout_s)
        else:
            ray_token.agree_with(config.address, config.timeout_s)
            ray.init(config.address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=_this_code(config))
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise _no_answer(config.address, error) from error
    try:
        resources = ray.cluster_resources()
        yield Cluster(config, resources.get("CPU", 0), resources.get("GPU", 0))
    finally:
        ray.shutdown()


def _start_here(timeout_s: float) -> None:
    """Starts a cluster on this machine. ClusterError where it is not there after timeout_s.

    Ray itself gives up after 30 s, which a busy machine may need, and says so by a plain Exception.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            ray.init(
                "local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_OBJECT_STORE_BYTES,
            )
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"no Ray cluster could be started on this machine in {timeout_s:g} s (cluster.timeout_s): {error}"
                ) from error


def _no_answer(address: str, error: Exception) -> ClusterError:
    reason = str(error).strip().partition("\n")[0].replace("; ", ", ")  # what comes after a semicolon is the cure
    return ClusterError(
        f"cluster.address {address!r}: no Ray cluster answers there ({reason}); start it with "
        f"'ray start --head', correct the address or the token, or set cluster.address=local"
    )


def _this_code(config: ClusterConfig) -> dict[str, list[str]]:
    """Sends this tree's packages to a cluster's workers; inside a Ray job they came with the job already."""
    if config.address == "auto":
        return {}
    return {"py_modules": [str(TREE / package) for package in PACKAGES]}
