"""Heads of Ray clusters in processes and homes of their own, with or without a token."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HEAD = """
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 1024**2}
cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=node)
print(cluster.address, flush=True)
input()
cluster.shutdown()
"""


@contextmanager
def head_in(home: Path, mode: str) -> Iterator[str]:
    """A head of a process of its own, as `ray start` makes one; gives HOST:PORT."""
    environment = {**os.environ, "HOME": str(home), "RAY_AUTH_MODE": mode}
    command = [sys.executable, "-c", _HEAD]
    with subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            address = process.stdout.readline().strip()
            assert address, "the head did not start"
            yield address
        finally:
            process.stdin.close()
