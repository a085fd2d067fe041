"""What `plan` says of a run on this machine, and what the run then takes, stage by stage.

    python tests/benchmarks/plan.py FILE [key=value ...] [--until STAGE] [--output FILE]

An idle machine is assumed. Of each stage it also tells what it took beside the work that was planned: of a short run,
those seconds are the start-ups in `pipeline/planning/devices.py`.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.terminal import StageReport, Terminal
from records import Record

GOAL = 0.25
"""Largest difference of the whole, as a share of what it took."""


class Reports(Terminal):
    """A terminal that remembers the stages."""

    reports: tuple[StageReport, ...] = ()

    def closing_table(self, reports: Sequence[StageReport]) -> None:
        """Also keeps them."""
        self.reports = tuple(reports)
        super().closing_table(reports)


def main() -> None:
    """Plans, runs, prints both and writes the JSON."""
    # Here, for the processes of the trial import this file, and how fast they start is measured.
    from pipeline.flow import STAGES, run_flow
    from pipeline.planning.costs import measured_here
    from pipeline.planning.devices import STARTS_S
    from pipeline.planning.plan import Plan
    from pipeline.planning.trial import measure
    from pipeline.runfile.config import Config
    from pipeline.runfile.configfile import load

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    record = Record(options.output, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as output:
        config = load(options.file, [*options.overrides, f"output={output}"], Config)
        processes = min(config.train.worker_range[1], (os.cpu_count() or 1) // config.cluster.cpus_per_worker)
        speeds = measured_here(measure(config, processes, on_gpu=False))
        record["trial"] = {name: getattr(speeds, name) for name in ("train_s", "evaluation_s", "classifier_s", "start")}
        plan, terminal = Plan.of(config, speeds), Reports()
        run_flow(config, terminal, options.until)
    planned = {stage.name: stage.seconds for stage in plan.stages}
    took = {report.name: report.seconds for report in terminal.reports}
    beside = {name: took[name] - planned[name] + STARTS_S[name] * speeds.start for name in took}
    record["seconds"] = {name: {"planned": planned[name], "took": took[name], "beside": beside[name]} for name in took}
    whole = sum(planned[name] for name in took) / sum(took.values())
    record["planned / took"] = {"ratio": whole, "goal": f"within {GOAL:.0%}"}
    print(f"\n{'':<12}{'planned':>10}{'took':>10}{'beside':>10}")
    for name, seconds in took.items():
        print(f"{name:<12}{planned[name]:>8.1f} s{seconds:>8.1f} s{beside[name]:>8.1f} s")
    print(f"planned / took: {whole:.2f}")


if __name__ == "__main__":
    main()
