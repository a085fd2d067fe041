"""What the doctor has each node of a cluster do.

It is sent to the nodes as it stands, so that one which has other code, or none, can still say so. Only what looks at
shards or weights imports the node's own packages, as a run would.
"""

import hashlib
import os
import platform
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from evaluation import WeightsFile

Shares = Mapping[str, Sequence[int]]
"""By the id of a node the numbers of the shards that it reads."""

_REDUCED_NUMBERS = 1 << 20


def node_id() -> str:
    """Of the node that this process is on."""
    return str(ray.get_runtime_context().get_node_id())


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of what has to be alike everywhere. packages: those of this code, whose files are digested as they lie here."""
    import torch

    found = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "NCCL": "none",
        "Ray": ray.__version__,
    }
    if torch.version.cuda and torch.distributed.is_nccl_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    digest = hashlib.sha256()
    for package in packages:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return found | {"this code": f"no {package}"}
        root = Path(next(iter(spec.submodule_search_locations)))
        for file in sorted(root.rglob("*.py")):
            digest.update(f"{package}/{file.relative_to(root)}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return found | {"this code": digest.hexdigest()[:12]}


def exchange(folder: str, word: str) -> str:
    """Reads the word that another machine has written into the folder, and answers in a file. -> the file's name."""
    found = Path(folder, "driver").read_text()
    if found != word:
        raise OSError(f"{folder} holds something else than was written")
    answer = Path(folder, node_id())
    answer.write_text(word)
    return answer.name


def shared_memory_bytes() -> int:
    """Size of /dev/shm."""
    return shutil.disk_usage("/dev/shm").total


def read_shards(index_folder: str, shares: Shares, timeout_s: float) -> int:
    """Looks at all shards of an index, and reads this node's share of them. -> how many it read.

    DataError where one is missing or another than was indexed; of a remote one the size alone is compared.
    """
    from pipeline.data.remote import is_remote
    from pipeline.data.shard_index import ShardIndex

    index = ShardIndex.load(Path(index_folder))
    index.check_shards()
    for number in shares[node_id()]:
        index.table(number)
        if is_remote(index.shards[number].location):
            index.check_remote(number, timeout_s)
        else:
            index.check_shard(number, full=True)
    return len(shares[node_id()])


def read_tars(locations: Sequence[str], shares: Shares, timeout_s: float) -> int:
    """The same for tars without an index: all that are local are there, those of this node's share are whole tars."""
    from pipeline.data.remote import is_remote, size_of
    from pipeline.data.tar_members import read_samples
    from pipeline.errors import DataError

    for location in locations:
        if not is_remote(location) and not os.path.isfile(location):  # noqa: PTH113  # a path or a URL
            raise DataError(f"{location}: the shard is missing")
    for number in shares[node_id()]:
        if is_remote(locations[number]):
            size_of(locations[number], timeout_s)
        else:
            read_samples(Path(locations[number]))
    return len(shares[node_id()])


def ask_mlflow(uri: str, timeout_s: float) -> str:
    """What keeps this node from MLflow's server, in the words of the libraries; empty where it answers.

    Whoever is refused for want of credentials has reached it.
    """
    import requests

    question = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search"
    try:
        answer = requests.get(question, params={"max_results": 1}, timeout=timeout_s)
    except requests.RequestException as error:
        return str(error)
    reached = answer.ok or (answer.status_code in (401, 403) and "Host header" not in answer.text)
    return "" if reached else f"HTTP {answer.status_code}: {answer.text[:200]}"


def extractor_sha256(extractor: "WeightsFile") -> str:
    """sha256 of the extractor's weights, which are read. EvaluationError where they are missing or other ones."""
    return extractor.read()[1]


class Rank:
    """One process of a collective, as a training has them."""

    def meeting_point(self) -> str:
        """HOST:PORT of this node where the others can meet."""
        with socket.create_server(("", 0)) as server:
            return f"{ray.util.get_node_ip_address()}:{server.getsockname()[1]}"

    def all_reduce(self, address: str, rank: int, world_size: int, backend: str, timeout_s: float) -> tuple[str, float]:
        """Adds up 4 MiB of float32 over all ranks. -> this node's id, and the seconds of the second time."""
        import torch
        from torch import distributed

        limit = timedelta(seconds=timeout_s)
        distributed.init_process_group(
            backend, init_method=f"tcp://{address}", rank=rank, world_size=world_size, timeout=limit
        )
        try:
            device = torch.device("cuda" if backend == "nccl" else "cpu")
            seconds = [_timed_sum(torch.full([_REDUCED_NUMBERS], 1.0, device=device), world_size) for _ in range(2)]
        finally:
            distributed.destroy_process_group()
        return node_id(), seconds[1]


def _timed_sum(ones: Any, world_size: int) -> float:
    """Seconds; the value is looked at, and so awaited."""
    from torch import distributed

    start = time.perf_counter()
    distributed.all_reduce(ones)
    if not bool((ones == world_size).all()):
        raise RuntimeError("the all-reduce has added up wrongly")
    return time.perf_counter() - start
