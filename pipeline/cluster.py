"""The Ray cluster that does the work: joined or started for one run, and asked first whether it is large enough."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import ray
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # compiled; its stub leaves it out
from ray._raylet import Config as RayConfig  # type: ignore[attr-defined]  # likewise

from .config import ClusterConfig
from .errors import ClusterError
from .shipment import PACKAGES, TREE
from .terminal import quiet_libraries

_OBJECT_STORE_BYTES = 256 * 1024**2  # images never pass through it: weights do, and features
_CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # what every client of Ray asks a head first
_AUTH_MODE = "RAY_AUTH_MODE"


@dataclass(frozen=True)
class Cluster:
    """A connected cluster, as far as a run needs to know it."""

    config: ClusterConfig
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"Ray at {self.config.address}, {self.cpus:g} CPUs, {self.gpus:g} GPUs"

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
    if config.address != "local":
        _agree_on_token(config.address, config.timeout_s)
    try:
        if config.address == "local":
            _start_here(config.timeout_s)
        else:
            ray.init(config.address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=_this_code(config))
    except (ConnectionError, RuntimeError, ValueError) as error:
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


def _agree_on_token(address: str, timeout_s: float) -> None:
    """Asks the head whether it wants Ray's token, and has this process send it if so, and only then.

    A client without one is refused after 20 s of trying; one that asks for a token itself is accepted by a head that
    knows none, which then cannot call it back and drops its actors one by one ("all references were removed").

    ClusterError where nothing answers within timeout_s; Ray itself would try for minutes.
    """
    if os.environ.get("RAY_USE_TLS") == "1":  # its certificates are Ray's to check
        return
    head = canonicalize_bootstrap_address("auto") if address == "auto" else address.removeprefix("ray://")
    if head is None or ":" not in head:  # no head is known here, or this is a name of Ray's own: Ray will judge
        return
    wanted = _wants_token(address, head, timeout_s)
    mode = os.environ.get(_AUTH_MODE)
    if mode == "token" and not wanted:
        raise ClusterError(
            f"cluster.address {address!r}: this cluster takes no token, but RAY_AUTH_MODE=token asks for one; start "
            f"its head with RAY_AUTH_MODE=token, too, or unset the variable here"
        )
    if wanted and not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        raise _no_answer(address, PermissionError("it asks for a token"))
    if wanted and mode is None:
        os.environ[_AUTH_MODE] = "token"
        RayConfig.initialize("")  # which was read from the environment by the import


def _wants_token(address: str, head: str, timeout_s: float) -> bool:
    """Whether the head at HOST:PORT refuses those who show none. ClusterError where no gRPC is spoken there."""
    with grpc.insecure_channel(head) as channel:
        try:
            channel.unary_unary(_CLUSTER_ID)(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            match error.code():
                case grpc.StatusCode.UNAUTHENTICATED:
                    return True
                case grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise _no_answer(address, TimeoutError(f"silent for {timeout_s:g} s, cluster.timeout_s")) from None
                case grpc.StatusCode.UNAVAILABLE:
                    raise _no_answer(address, ConnectionError(error.details())) from None
    return False  # it answered, or is a server of ray:// addresses, which do not know the question


def _no_answer(address: str, error: Exception) -> ClusterError:
    reason = str(error).strip().partition("\n")[0].replace("; ", ", ")  # what comes after a semicolon is the cure
    return ClusterError(
        f"cluster.address {address!r}: no Ray cluster answers there ({reason}); start it with "
        f"'ray start --head', correct the address, give its token (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or "
        f"~/.ray/auth_token), or set cluster.address=local"
    )


def _this_code(config: ClusterConfig) -> dict[str, list[str]]:
    """Sends this tree's packages to a cluster's workers; inside a Ray job they came with the job already."""
    if config.address == "auto":
        return {}
    return {"py_modules": [str(TREE / package) for package in PACKAGES]}
