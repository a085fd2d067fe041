"""Whether the sections of a run file fit together: what none of them can check alone."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from evaluation import check_likelihoods
from model import (
    AUGMENT_LABELS,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    ClassLabels,
    LearnedRange,
    NCSNpp,
    PowerFunctionEMA,
)

if TYPE_CHECKING:  # which imports this file
    from .config import Config


def mistakes_in(config: "Config") -> Iterator[str]:
    """Every mistake, in a line that begins with its key."""
    found = [
        *_processes(config),
        *_network(config),
        *_guidance(config),
        *_sampler(config),
        *_augmentation(config),
        *_averages(config),
    ]
    if config.train.images == 0 and config.train.warm_start is None:
        found.append("train.images: 0 trains nothing; name the model to take as it is by train.warm_start")
    yield from found
    if not found:  # where the target is singular, so are its weights
        yield from _refusal("train.weighting", lambda: config.train.weighting.check(config.path, config.target))
        likelihoods = config.evaluate.likelihoods
        yield from _refusal("evaluate.likelihoods", lambda: check_likelihoods(likelihoods, config.spec))


def _processes(config: "Config") -> Iterator[str]:
    ranges = {"train.num_workers": config.train.worker_range, "cluster.num_samplers": config.sampler_range}
    for key, (fewest, most) in ranges.items():
        if fewest > most:
            yield f"{key}: [{fewest}, {most}], expected the least first"
    yield from _idle_workers(config, "train.batch_size", config.train.batch_size)


def _idle_workers(config: "Config", key: str, batch_size: int) -> Iterator[str]:
    most = max(config.train.worker_range)
    if batch_size < most:
        yield f"{key} {batch_size} is less than train.num_workers {most}; some would have no image to learn from"


def _network(config: "Config") -> Iterator[str]:
    network, path = config.network, config.path
    yield from _refusal("network", lambda: network.check_image_size(config.latent_shape[1]))
    yield from _refusal("network", lambda: network.check_path(path) if isinstance(network, NCSNpp) else None)
    yield from _refusal("target", lambda: config.target.check(path))
    yield from _refusal("variance", lambda: config.variance.check(path))
    yield from _refusal("sample.sampler", lambda: config.sample.sampler.check(path))
    if getattr(network, "cross_attention", None) is not None and not config.conditioning.classes:
        yield (
            "network.cross_attention: attends to the class of an image, and the network is not told of any; set "
            'conditioning="{kind: class_label, classes: N}", or cross_attention to null'
        )


def _guidance(config: "Config") -> Iterator[str]:
    guidance, told = config.sample.guidance, config.conditioning.classes
    if isinstance(guidance, ClassifierFreeGuidance):
        if not isinstance(config.conditioning, ClassLabels):
            yield (
                f"sample.guidance: {guidance.kind} follows the class of an image, and the network is not "
                'told of any; set conditioning="{kind: class_label, classes: N}"'
            )
        elif config.conditioning.dropout == 0:
            yield (
                f"sample.guidance: {guidance.kind} compares with images whose class is withheld, and "
                "conditioning.dropout 0 never withholds it; set dropout to 0.1 or so"
            )
    if isinstance(guidance, ClassifierGuidance):
        classifier = guidance.classifier
        yield from _refusal("sample.guidance.classifier", lambda: classifier.check_image_size(config.latent_shape[1]))
        if told and told != classifier.classes:
            yield (
                f"sample.guidance.classifier.classes: {classifier.classes}, but conditioning.classes is {told}; "
                "make them equal"
            )
        yield from _idle_workers(config, "sample.guidance.classifier.batch_size", classifier.batch_size)


def _sampler(config: "Config") -> Iterator[str]:
    sampler = config.sample.sampler
    if getattr(sampler, "variance", None) == "learned" and not isinstance(config.variance, LearnedRange):
        yield (
            "sample.sampler.variance: learned, but the network predicts none; set variance.kind=learned_range, or "
            "use fixed_small or fixed_large"
        )
    if sampler.clip != "none" and not config.codec.bounded:
        yield (
            f"sample.sampler.clip: {sampler.clip} keeps images in [-1, 1], and latents of codec {config.codec.kind} "
            "lie beyond; use none"
        )


def _averages(config: "Config") -> Iterator[str]:
    wanted = {}
    if config.sample.sigma_rel is not None:
        wanted["sample.sigma_rel"] = (f"{config.sample.sigma_rel:g}", "null")
    if config.evaluate.curve_images:
        wanted["evaluate.curve_images"] = (f"{config.evaluate.curve_images:,}", "0")
    if config.evaluate.curve_images == 1:
        yield "evaluate.curve_images: 1 image has no covariance; draw more, or none"
    kept = any(isinstance(profile, PowerFunctionEMA) for profile in (config.train.ema, *config.train.also_averaged))
    for key, (value, without) in wanted.items():
        if config.train.images == 0:
            yield f"{key}: {value}, but train.images 0 keeps no averages; set it to {without}"
        elif not kept:
            yield (
                f"{key}: {value} is made of power-function averages, and train.ema and train.also_averaged keep "
                'none; set train.also_averaged="[{kind: power_function, sigma_rel: 0.05}, {kind: power_function, '
                f'sigma_rel: 0.1}}]", or {key} to {without}'
            )


def _augmentation(config: "Config") -> Iterator[str]:
    told = getattr(config.network, "augment_labels", 0)
    if config.train.augmentation is None:
        if told:
            yield (
                f"network.augment_labels: {told}, but train.augmentation is null, so there is nothing to tell; set "
                "one as the other"
            )
        return
    if told != AUGMENT_LABELS:
        yield (
            "train.augmentation: the network must be told how its images were changed; use network.kind=ncsnpp "
            f"with augment_labels: {AUGMENT_LABELS}"
        )
    if config.train.hflip:
        yield (
            "train.hflip: augmentation mirrors images, too, and tells the network; set train.hflip=false or "
            "train.augmentation=null"
        )


def _refusal(section: str, check: Callable[[], None]) -> Iterator[str]:
    """What `check` has against this section; nothing where it has nothing."""
    try:
        check()
    except ValueError as error:
        yield f"{section}: {error}"
