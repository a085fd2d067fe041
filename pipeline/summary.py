"""What a person and a program are told at the end of a run."""

from collections.abc import Sequence
from typing import Any

from .files import read_json, write_json
from .redaction import redacted
from .scoring.evaluate import PROTOCOL
from .scoring.measured import measured
from .stage import Run
from .terminal import StageReport
from .tracking.mlflow_store import how_to_look
from .training.speed import SHARES

SUMMARY, REPORT = "summary.json", "report.html"


def close(run: Run, reports: Sequence[StageReport]) -> None:
    """Prints the closing table; after the last stage also writes `summary.json` and says where everything is."""
    run.terminal.closing_table(reports)
    if "register" not in run.results:
        return
    summary = summarise(run, reports)
    write_json(run.folder / SUMMARY, summary)
    run.terminal.facts(_facts(run, summary))


def summarise(run: Run, reports: Sequence[StageReport]) -> dict[str, Any]:
    """The run in JSON. Seconds of a reused stage are those it took when it was computed."""
    results = run.results
    trained, sampled = results["train"].facts, results["sample"].facts
    evaluated, registered = results["evaluate"].facts, results["register"].facts
    return {
        "run": run.folder.name,
        "scores": evaluated["scores"],
        "reasons": evaluated["reasons"],
        "primary_score": evaluated["primary_score"],
        "images": sampled["images"],
        "network_evaluations": sampled["network_evaluations"],
        "extractor": evaluated["extractor"],
        "protocol": read_json(results["evaluate"].folder / PROTOCOL),
        "protocol_digest": evaluated["protocol_digest"],
        "weights_digest": sampled["weights_digest"],
        "reconstruction_error": sampled["reconstruction_error"],
        "warm_start_digest": run.warm_start.digest if run.warm_start else None,
        "guide_weights_digest": results["guide"].facts["weights_digest"] if "guide" in results else None,
        "parameters": trained["parameters"],
        "trained_images": trained["images"],
        "train_images_per_s": trained["images_per_s"],
        "train_flop_per_s": trained.get("flop_per_s"),  # not measured by earlier code
        "train_matmul_fraction": trained.get("matmul_fraction"),
        "train_time": {name: trained.get(f"{name}_share") for name in SHARES},
        "sample_images_per_s": sampled["images_per_s"],
        "stages": {name: result.folder.name for name, result in results.items()},
        "seconds": {name: result.seconds for name, result in results.items()},
        "seconds_of_this_run": {report.name: round(report.seconds, 2) for report in reports},
        "model_name": registered["model_name"],
        "model_version": registered["model_version"],
        "is_champion": registered["is_champion"],
        "verdict": registered["verdict"],
        "tracking_uri": redacted(run.tracking_uri),
    }


def _facts(run: Run, summary: dict[str, Any]) -> dict[str, str]:
    """The lines under the closing table."""
    return measured(run) | {
        "model": f"{run.results['register'].facts['model_uri']}; {summary['verdict']}",
        **({"samples as tars": str(run.results["shards"].folder)} if "shards" in run.results else {}),
        "pictures": str(run.folder / "samples.png"),
        "report": str(run.folder / REPORT),
        "summary": str(run.folder / SUMMARY),
        "look at it": how_to_look(run.tracking_uri),
    }
