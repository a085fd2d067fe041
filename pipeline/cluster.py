"""The Ray cluster that does the work: joined or started for one run, and asked first whether it is large enough."""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from .config import ClusterConfig
from .errors import ClusterError
from .terminal import quiet_libraries

_OBJECT_STORE_BYTES = 256 * 1024**2  # images never pass through it: weights do, and features
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The first bytes of every client of gRPC, which Ray speaks: HTTP/2's preface and an empty SETTINGS frame (RFC 9113,
section 3.4). A server answers them at once."""
_PACKAGES = ("model", "evaluation", "pipeline")


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
    _check_answers(config.address, config.timeout_s)
    quiet_libraries()  # its workers too, which inherit the environment
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


def _check_answers(address: str, timeout_s: float) -> None:
    """ClusterError unless something speaks at a HOST:PORT address; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
            connection.sendall(_HTTP2_HELLO)
            connection.recv(1)  # whatever it says: Ray will judge
    except TimeoutError:
        raise _no_answer(address, TimeoutError(f"silent for {timeout_s:g} s, cluster.timeout_s")) from None
    except ConnectionResetError:  # something is there, which may want TLS: Ray will judge
        return
    except (OSError, ValueError) as error:
        raise _no_answer(address, error) from None


def _no_answer(address: str, error: Exception) -> ClusterError:
    reason = str(error).strip().partition("\n")[0]
    return ClusterError(
        f"cluster.address {address!r}: no Ray cluster answers there ({reason}); start it with "
        f"'ray start --head', correct the address, give its token (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or "
        f"~/.ray/auth_token), or set cluster.address=local"
    )


def _this_code(config: ClusterConfig) -> dict[str, list[str]]:
    """Sends this tree's packages to a cluster's workers; inside a Ray job they came with the job already."""
    if config.address == "auto":
        return {}
    tree = Path(__file__).parent.parent
    return {"py_modules": [str(tree / package) for package in _PACKAGES]}
