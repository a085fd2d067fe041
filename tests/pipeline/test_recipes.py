"""The recipes that the guide promises are valid, and train and sample on a real Ray cluster."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.clusters.cluster import Cluster, connected
from pipeline.data.prepare import Prepare
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load
from pipeline.sampling.sample import Sample
from pipeline.stage import Run
from pipeline.terminal import Terminal

from .trainings import train_here

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "pipeline/runs/digits.yaml"
TINY = ["train.images=1280", "train.log_images=640", "sample.images=20", "sample.chunk_images=10", "name=recipe"]
RECIPES = {
    name: shlex.split(overrides)
    for name, overrides in re.findall(
        r"^\| ([^|]+) \| `(path\.kind=[^`]+)` \|$", (ROOT / "pipeline/CHOICES.md").read_text(), re.M
    )
}


def test_the_guide_has_recipes() -> None:
    assert len(RECIPES) >= 5


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_valid_as_overrides_of_a_run_file(recipe: str) -> None:
    config = load(DIGITS, RECIPES[recipe], Config)
    assert f"path.kind={config.path.kind}" in RECIPES[recipe]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected(load(DIGITS, TINY, Config).cluster) as joined:
        yield joined


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Train imports Ray Data, which warns of its own settings
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_trains_and_samples(recipe: str, cluster: Cluster, tmp_path: Path) -> None:
    fewer = ["sample.sampler.steps=20"] if "sample.sampler.kind=ancestral" in RECIPES[recipe] else []
    config = load(DIGITS, [*RECIPES[recipe], *TINY, *fewer, f"output={tmp_path}"], Config)
    run = Run(config, Terminal(), cluster)
    run.results["prepare"] = Prepare().finish(run)
    run.results["train"] = train_here(run)
    run.results["sample"] = Sample().finish(run)
    declared = config.sample.sampler.evaluations(config.path)
    measured = run.results["sample"].facts["network_evaluations"]
    assert measured == declared if declared is not None else measured > 10
    images = np.load(next(run.results["sample"].folder.glob("chunk-*.npz")))["images"]
    assert images.std() > 10
