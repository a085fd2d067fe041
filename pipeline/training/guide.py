"""Between training and sampling, where guidance is by a classifier: that classifier, of noisy images.

It is trained as the model is: by the same workers, on the same images, with the same checkpoints.
"""

from pathlib import Path
from typing import Any

from model import ClassifierGuidance, Classifying, ClassLabels, ExponentialEMA, NoisyClassifier

from ..data.stream import order_identity
from ..figures import rate
from ..runfile.config import Config
from ..runfile.keyroles import identity
from ..runfile.train_config import TrainConfig
from ..stage import Facts, Run, Stage
from .train import train_network
from .train_step import Recipe

_HALF_LIVES = 20  # of the average of its weights, in the whole training


class Guide(Stage):
    """Trains the classifier that guides; a run without such guidance has no such stage."""

    name = "guide"

    def wanted(self, config: Config) -> bool:
        return isinstance(config.sample.guidance, ClassifierGuidance)

    def identity(self, run: Run) -> Any:
        spec, train = run.config.spec, run.config.train
        return {
            "classifier": identity(_classifier(run.config)),
            "path": identity(spec.path),
            "codec": identity(spec.codec),
            "image_shape": list(spec.image_shape),
            "hflip": train.hflip,
            "precision": train.precision,
            "data": run.results["prepare"].facts["data_digest"],
            "order": order_identity(run.config.data),
        }

    def compute(self, run: Run, folder: Path) -> Facts:
        return train_network(run, folder, guide_recipe_of(run.config), self.identity(run))

    def figure(self, facts: Facts) -> str:
        return f"cross-entropy {facts['loss']:.4f} of noisy images, {rate(facts['images_per_s'], 'images')}"


def guide_recipe_of(config: Config) -> Recipe:
    """The classifier's training; resources and precision are those of the model's."""
    classifier = _classifier(config)
    train = TrainConfig(
        images=classifier.images,
        batch_size=classifier.batch_size,
        learning_rate=classifier.learning_rate,
        seed=classifier.seed,
        ema=ExponentialEMA(half_life_images=max(1.0, classifier.images / _HALF_LIVES)),
        num_workers=config.train.num_workers,
        hflip=config.train.hflip,
        precision=config.train.precision,
        compile=config.train.compile,
        parallel=config.train.parallel,
        microbatch_images=config.train.microbatch_images,
        checkpoint_images=config.train.checkpoint_images,
        keep_checkpoints=config.train.keep_checkpoints,
        log_images=config.train.log_images,
        max_skipped_steps=config.train.max_skipped_steps,
    )
    return Recipe(Classifying(config.spec, classifier), train, ClassLabels(classes=classifier.classes, dropout=0))


def _classifier(config: Config) -> NoisyClassifier:
    assert isinstance(config.sample.guidance, ClassifierGuidance)
    return config.sample.guidance.classifier
