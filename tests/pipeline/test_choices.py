"""Every choice of the mathematics can be written in a run file, and the guide lists them all."""

from pathlib import Path
from typing import Any, get_args

import pytest

import model
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import dump, load
from pipeline.runfile.keys import choices_markdown
from pipeline.runfile.schema import kind_of

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "pipeline/runs/digits.yaml"
UNIONS = {
    "network": model.Network,
    "path": model.Path,
    "target": model.Target,
    "conditioning": model.Conditioning,
    "sample.guidance": model.Guidance,
    "variance": model.Variance,
    "train.ema": model.EMAProfile,
    "train.weighting": model.Weighting,
    "train.times": model.TimeSampling,
    "sample.sampler": model.Sampler,
}
CHOICES = [(key, kind_of(member)) for key, union in UNIONS.items() for member in get_args(get_args(union)[0])]


def section(config: Config, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(("key", "kind"), CHOICES, ids=[f"{key}={kind}" for key, kind in CHOICES])
def test_every_kind_is_chosen_by_its_name_and_survives_the_file(key: str, kind: str, tmp_path: Path) -> None:
    classes = ["conditioning={kind: class_label, classes: 10}"]
    needed = {"path": ["target.kind=v"], "target": ["path.kind=vp_sde"], "sample.guidance": classes}.get(key, [])
    if key == "network" and kind in ("ddpm_unet", "adm_unet", "ncsnpp"):
        needed = ["network.attention_sizes=[8]", "network.channel_multipliers=[1, 2]"]
    if (key, kind) == ("conditioning", "class_label"):
        needed = ["conditioning.classes=10"]
    steps = ["sample.sampler.steps=20"] if (key, kind) == ("sample.sampler", "ancestral") else []
    if (key, kind) == ("sample.guidance", "classifier"):
        needed = ["sample.guidance.classifier.classes=10"]
    config = load(DIGITS, [*needed, f"{key}.kind={kind}", *steps], Config)
    assert section(config, key).kind == kind
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load(tmp_path / "again.yaml", [], Config) == config


def test_the_guide_lists_every_choice() -> None:
    """`python -m pipeline keys --choices` prints what belongs there."""
    assert choices_markdown(Config) in (ROOT / "pipeline/CHOICES.md").read_text()


@pytest.mark.parametrize(("key", "kind"), CHOICES, ids=[f"{key}={kind}" for key, kind in CHOICES])
def test_every_kind_is_among_the_choices_with_its_meaning(key: str, kind: str) -> None:
    (line,) = [line for line in choices_markdown(Config).splitlines() if line.startswith(f"| `{key}` | `{kind}` |")]
    assert len(line.split("|", 3)[3]) > 20
