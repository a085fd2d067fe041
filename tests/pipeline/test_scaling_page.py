"""The tables of infra/SCALING.md are what the planner computes.

`python tests/pipeline/test_scaling_page.py` writes them anew.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.figures import duration, size
from pipeline.planning.costs import Step, sent_bytes
from pipeline.planning.plan import Plan, one_checkpoint, plan_for
from pipeline.planning.volumes import gradient_bytes, network_of, sample_bytes

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
    return markdown(plans)


def markdown(plans: Sequence[Plan]) -> str:
    """A row for each plan, which differ in the number of devices."""
    heads = (
        "devices | images/s | step | exchange not hidden | efficiency | gradients sent by each | reader | checkpoint"
    )
    rows = [heads, " | ".join(["---:"] * 8)]
    for plan in plans:
        step, config, devices = Step.of(plan.config, plan.speeds), plan.config, plan.speeds.devices
        read = config.train.batch_size * sample_bytes(config.data) / step.seconds
        sent = sent_bytes(gradient_bytes(network_of(config)), devices, config.train.parallel)
        between_s = config.train.checkpoint_images / config.train.batch_size * step.seconds
        cells = [
            f"{devices:,}",
            f"{config.train.batch_size / step.seconds:,.0f}",
            f"{1000 * step.seconds:.1f} ms",
            f"{1000 * step.exposed_s:.1f} ms",
            f"{step.compute_s / step.seconds:.0%}",
            f"{size(sent / step.seconds)}/s",
            f"{size(read)}/s",
            f"{size(one_checkpoint(config))} every {duration(between_s)}",
        ]
        rows.append(" | ".join(cells))
    return "".join(f"| {row} |\n" for row in rows)


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
