"""Whether a cluster is large enough is known before anything is asked of it."""

import pytest
import ray

from pipeline.cluster import Cluster, connected
from pipeline.config import ClusterConfig
from pipeline.errors import ClusterError


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
