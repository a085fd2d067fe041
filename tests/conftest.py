"""For all tests, which share the cores: what starts Ray clusters runs one after the other, the rest beside it."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

settings.register_profile("no deadline", deadline=None)  # machines are noisy, and no test here is about time
settings.load_profile("no deadline")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """These networks are too small for two threads to help, and other tests want the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


_ON_CLUSTERS = (
    "test_elastic",
    "test_doctor",
    "test_end_to_end",
    "test_sweep",
    "test_preview",
    "test_gauges",
    "test_submit",
    "test_failures",
    "test_timeouts",
    "test_fan_out",
    "test_outside",
    "test_real_inception",
    "test_guided",
    "test_recipes",
    "test_remote_training",
    "test_score_curve",
    "test_cluster",
    "test_nightly",
    "test_three_nights",
    "test_given_reference",
    "test_refusals",
    "test_mlflow_server",
    "test_secrets",
    "test_earlier_formats",
    "test_extended_run",
)


class _Files(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist's are not typed
    """Files stay together, since their fixtures are dear; those that start clusters are one group."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        return "clusters" if file.stem in _ON_CLUSTERS else str(file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _Files:
    return _Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The group that takes longest is begun first."""
    items.sort(key=lambda item: _ON_CLUSTERS.index(item.path.stem) if item.path.stem in _ON_CLUSTERS else math.inf)
