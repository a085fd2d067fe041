"""For all tests, which share the cores: what starts Ray clusters runs one after the other, the rest beside it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

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
    "elastic",
    "end_to_end",
    "sweep",
    "preview",
    "gauges",
    "failures",
    "guided",
    "recipes",
    "remote_training",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files stay together, since their fixtures are dear; those of clusters are one group, which is begun first."""
    ranks = {f"test_{name}": rank for rank, name in enumerate(_ON_CLUSTERS)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))
    for item in items:
        group = "clusters" if item.path.stem in ranks else str(item.path.relative_to(Path(__file__).parent))
        item.add_marker(pytest.mark.xdist_group(group))
