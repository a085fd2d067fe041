"""What was measured of a run, in words: what its end, its report and its page in MLflow say."""

from typing import Any

from ..figures import score_words
from ..stage import Run
from ..training.speed import rate_in_words, shares_in_words
from ..training.trained_model import posthoc_average
from .likelihood import likelihoods_in_words


def measured(run: Run) -> dict[str, str]:
    """What was measured of a run that has been scored, in words, the score that decides first."""
    evaluated, sampled = run.results["evaluate"].facts, run.results["sample"].facts
    scores, name, images = evaluated["scores"], evaluated["primary_score"], sampled["images"]
    uncertainty, value = _uncertainty(scores, name), score_words(scores[name])
    reason = evaluated["reasons"].get(name)
    facts = {name: f"{value}: {reason}" if reason else f"{value} {uncertainty}of {images:,} samples; lower is better"}
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


def _uncertainty(scores: dict[str, Any], name: str) -> str:
    error, corrected = scores.get(f"{name}_se"), scores.get(f"{name}_bias_corrected")
    return "" if error is None else f"± {error:.2g}, {corrected:.4g} without the bias "
