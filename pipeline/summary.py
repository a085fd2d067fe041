"""What a person and a program are told at the end of a run."""

from collections.abc import Sequence
from typing import Any

from .figures import score_words
from .files import read_json, write_json
from .scoring.evaluate import PROTOCOL
from .scoring.likelihood import in_words as likelihoods_in_words
from .stage import Run
from .terminal import StageReport
from .tracking.mlflow_store import redacted
from .training.speed import SHARES, rate_in_words, shares_in_words
from .training.trained_model import posthoc_average

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


def measured(run: Run) -> dict[str, str]:
    """What was measured of a run that has been scored, in words, the score that decides first."""
    evaluated, sampled = run.results["evaluate"].facts, run.results["sample"].facts
    scores, name, images = evaluated["scores"], evaluated["primary_score"], sampled["images"]
    uncertainty = _uncertainty(scores, name)
    facts = {name: f"{score_words(scores[name])} {uncertainty}of {images:,} samples; lower is better"}
    if name in evaluated["reasons"]:
        facts[name] = f"not available: {evaluated['reasons'][name]}"
    if run.config.evaluate.reference is not None:
        what = "images" if run.config.evaluate.frozen else "statistics"
        facts["compared with"] = f"the {what} in {run.config.evaluate.reference}"
    heldout, as_many = scores.get(f"{name}_heldout"), scores.get(f"{name}_as_many_samples")
    if heldout is not None and as_many is not None:
        count = run.results["prepare"].facts["heldout_images"]
        facts["held-out images"] = (
            f"{heldout:.4g} of all {count}, {as_many:.4g} of as many samples: {as_many / heldout:.2f} times"
        )
    if "confidence_samples" in scores:
        facts["confidence"] = (
            f"{scores['confidence_samples']:.3f} mean top class on samples, {scores['confidence_heldout']:.3f} held "
            f"out; {scores['classes_present']:.0f} of {len(run.index.class_names)} classes present"
        )
    if "class_agreement" in scores:
        facts["class agreement"] = f"{scores['class_agreement']:.3f} of {images:,} samples are of the asked class"
    copied = next((scores[key] for key in scores if key.startswith("copy_rate")), None)
    if copied is not None:
        facts["copies"] = f"{copied:.3f} of samples are as near a training image as the nearest 0.010 held out"
    if average := posthoc_average(run):
        facts["average"] = str(average)
    facts |= likelihoods_in_words(scores, run.config.evaluate.likelihoods)
    if run.results["train"].facts.get("flop_per_s") is not None:  # not measured by earlier code
        facts["training"] = shares_in_words(run.results["train"].facts)
        facts["arithmetic"] = rate_in_words(run.results["train"].facts)
    return facts


def _facts(run: Run, summary: dict[str, Any]) -> dict[str, str]:
    """The lines under the closing table."""
    return measured(run) | {
        "model": f"models:/{summary['model_name']}/{summary['model_version']}; {summary['verdict']}",
        **({"samples as tars": str(run.results["shards"].folder)} if "shards" in run.results else {}),
        "pictures": str(run.folder / "samples.png"),
        "report": str(run.folder / REPORT),
        "summary": str(run.folder / SUMMARY),
        "look at it": f"make ui, or mlflow ui --backend-store-uri {summary['tracking_uri']}",
    }


def _uncertainty(scores: dict[str, Any], name: str) -> str:
    error, corrected = scores.get(f"{name}_se"), scores.get(f"{name}_bias_corrected")
    return "" if error is None else f"± {error:.2g}, {corrected:.4g} without the bias "
