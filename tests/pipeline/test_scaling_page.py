"""The tables of infra/SCALING.md are what the planner computes.

`python tests/pipeline/test_scaling_page.py` writes them anew.
"""

import re
from pathlib import Path

import pytest

from pipeline.plan import plan_for, scaling_table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "infra/SCALING.md"
COUNTS = {"cifar10": [1, 2, 4, 8, 16, 64, 128], "lsun-256": [1, 8, 16, 64, 256, 1024]}
IMAGES_OF_A_DEVICE = {"lsun-256": 16}


def table(name: str) -> str:
    """With a batch that grows with the devices, where the page says so."""
    each = IMAGES_OF_A_DEVICE.get(name)
    plans = [
        plan_for(
            ROOT / f"pipeline/runs/{name}.yaml", [f"train.batch_size={each * count}"] if each else [], "h200", count
        )
        for count in COUNTS[name]
    ]
    return scaling_table(plans)


def with_table(page: str, name: str) -> str:
    """The page with this table as it is now."""
    return re.sub(
        rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda found: found[1] + table(name) + found[2], page, flags=re.S
    )


@pytest.mark.parametrize("name", COUNTS)
def test_the_page_holds_what_the_planner_computes(name: str) -> None:
    page = PAGE.read_text()
    assert f"<!-- {name} -->" in page
    assert with_table(page, name) == page


if __name__ == "__main__":
    for each_name in COUNTS:
        PAGE.write_text(with_table(PAGE.read_text(), each_name))
