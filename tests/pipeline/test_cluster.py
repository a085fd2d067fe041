"""A cluster is joined as its head asks for it, and asked first whether it is large enough."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from pipeline.clusters.cluster import Cluster, connected
from pipeline.errors import ClusterError
from pipeline.runfile.config import ClusterConfig

from .ray_heads import head_without_dashboard


def test_a_cluster_that_is_large_enough_is_accepted() -> None:
    cluster = Cluster(ClusterConfig(cpus_per_worker=2), cpus=4, gpus=0)
    cluster.require(2, "train.num_workers")
    assert cluster.device_type == "cpu"


def test_too_few_cpus_are_named_with_the_key_that_asks_for_them() -> None:
    cluster = Cluster(ClusterConfig(cpus_per_worker=2), cpus=4, gpus=0)
    with pytest.raises(ClusterError, match=r"train\.num_workers: 3 workers of 2 CPU need 6 CPUs.*'local' has 4;"):
        cluster.require(3, "train.num_workers")


def test_too_few_gpus_are_named_too() -> None:
    cluster = Cluster(ClusterConfig(), cpus=16, gpus=1)
    cluster.require(1, "cluster.num_samplers")
    with pytest.raises(ClusterError, match=r"num_samplers: 2 workers need a GPU each.*has 1;.*cluster\.device=cpu"):
        cluster.require(2, "cluster.num_samplers")
    assert Cluster(ClusterConfig(device="cpu"), cpus=16, gpus=1).device_type == "cpu"
    with pytest.raises(ClusterError, match="has 0; lower"):
        Cluster(ClusterConfig(device="cuda"), cpus=16, gpus=0).require(1, "train.num_workers")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere.invalid:port"])
def test_an_address_where_nothing_listens_is_refused_within_seconds(address: str) -> None:
    with (
        pytest.raises(ClusterError, match=rf"cluster\.address '{address}': no Ray cluster answers there"),
        connected(ClusterConfig(address=address)),
    ):
        pass


def test_an_address_that_takes_the_connection_and_keeps_silent_is_given_up(silent: str) -> None:
    address = silent.removeprefix("http://")
    says = rf"cluster\.address '{address}': no Ray cluster answers there \(silent for 0.3 s, cluster\.timeout_s\)"
    with pytest.raises(ClusterError, match=says), connected(ClusterConfig(address=address, timeout_s=0.3)):
        pass


def test_a_cluster_that_starts_too_slowly_is_tried_again_until_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's own limit of 30 s cannot be shortened, so it is what Ray says after it that is put in its place."""
    attempts = []

    def slow(*_: object, **__: object) -> None:
        attempts.append(1)
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", slow)
    says = (
        r"no Ray cluster could be started on this machine in 0\.2 s \(cluster\.timeout_s\): The current node timed out"
    )
    with pytest.raises(ClusterError, match=says), connected(ClusterConfig(timeout_s=0.2)):
        pass
    assert len(attempts) > 1


_CLIENT = """
import ray, sys
from pipeline.clusters.cluster import connected
from pipeline.runfile.config import ClusterConfig
from pipeline.errors import ClusterError

@ray.remote
class Here:
    def answer(self):
        return "an actor answers"

try:
    with connected(ClusterConfig(address="auto")):
        print(ray.get(Here.remote().answer.remote(), timeout=60))
except ClusterError as error:
    print(error)
"""


def _said(home: Path, address: str, **variables: str) -> str:
    """What a command prints that joins the head from a process of its own, in a home with or without a token."""
    return _printed(_CLIENT, home, RAY_ADDRESS=address, **variables)


def _printed(program: str, home: Path, **variables: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    environment = {**inherited, "HOME": str(home), **variables}
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_a_head_that_asks_for_a_token_gets_it(homes: tuple[Path, Path]) -> None:
    with_token, without = homes
    with head_without_dashboard(with_token, "token") as address:
        assert _said(with_token, address) == "an actor answers"
        says = _said(without, address)
        assert "the cluster asks for a token, and none is known here; write it to ~/.ray/auth_token" in says


def test_a_head_that_takes_no_token_is_sent_none(homes: tuple[Path, Path]) -> None:
    """It would accept a client that asks for one itself, fail to call it back, and drop its actors."""
    with_token, _ = homes
    with head_without_dashboard(with_token, "disabled") as address:
        assert _said(with_token, address) == "an actor answers"
        says = _said(with_token, address, RAY_AUTH_MODE="token")
        assert "this cluster takes no token, but RAY_AUTH_MODE=token asks for one" in says


_OF_ITS_OWN = """
import grpc, ray
from pipeline.clusters.cluster import connected
from pipeline.runfile.config import ClusterConfig

with connected(ClusterConfig()), grpc.insecure_channel(ray.get_runtime_context().gcs_address) as channel:
    try:
        channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=60)
        print("let in")
    except grpc.RpcError as error:
        print(error.code().name)
"""


def test_a_cluster_of_its_own_turns_strangers_away(tmp_path: Path) -> None:
    """It listens to the whole network, as Ray does."""
    assert _printed(_OF_ITS_OWN, tmp_path) == "UNAUTHENTICATED"
