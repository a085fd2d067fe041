"""Nights on handwritten digits, on real Ray and a real registry: a champion, a sabotaged night, one of more images."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.__main__ import main
from pipeline.files import exclusive
from pipeline.mlflow_store import connect
from pipeline.shard_index import ShardIndex

from .commands import kill_when, new_folder, run, run_here

pytestmark = [pytest.mark.usefixtures("head"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

RUN_FILE = """\
version: 1
name: night
data: {{source: {{kind: image_folder, path: {images}}}, image_size: 8, channels: 1, heldout_fraction: 0.2}}
network:
  {{kind: ddpm_unet, base_channels: 16, channel_multipliers: [1, 2], blocks_per_level: 1, attention_sizes: [4], \
   dropout: 0.0}}
path: {{kind: vp_cosine}}
train: {{images: 19_200, batch_size: 64, num_workers: 1, learning_rate: 3.0e-3, ema: {{half_life_images: 2_000}}}}
sample: {{images: 200, chunk_images: 20, sampler: {{kind: ddim, steps: 10, grid: uniform}}}}
evaluate: {{extractor: {{kind: classifier, images: 8_000, width: 4, features: 16}}}}
register: {{model_name: night, gate: {{most_copies: 1, most_loss: 0.9}}}}
cluster: {{address: auto}}
"""


def add_digits(images: Path, first: int, last: int) -> None:
    """Writes some of scikit-learn's digits as PNG files, a folder for each class."""
    digits = load_digits()
    for number in range(first, last):
        folder = images / str(digits.target[number])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.rint(digits.images[number] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = tmp_path_factory.mktemp("images")
    add_digits(images, 0, 600)
    return new_folder(tmp_path_factory, "nights", RUN_FILE.format(images=images))


@pytest.fixture
def aliases(folder: Path) -> Callable[[], dict[str, int]]:
    client = connect(uri_of(folder))
    return lambda: {name: int(number) for name, number in client.get_registered_model("night").aliases.items()}


def uri_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'outputs/mlflow.db'}"


def verb(folder: Path, *arguments: str) -> int:
    return main([*arguments, "--tracking-uri", uri_of(folder)])


@pytest.mark.slow
def test_three_nights_and_a_rollback(
    folder: Path, aliases: Callable[[], dict[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = folder / "verdicts"
    tell = f"nightly.command=[sh, -c, 'cat >> {verdicts}; echo >> {verdicts}']"
    short = "train.images=6_400"  # so that there is something to be gained
    first = run_here("nightly", folder, tell, short)
    assert (first.returncode, aliases()) == (0, {"candidate": 1, "champion": 1}), first.stderr
    assert re.search(r"^promoted +version 1 is the first champion$", first.stdout, re.MULTILINE)

    again = run_here("nightly", folder, tell, short)
    assert again.returncode == 0
    assert "neither images nor configuration have changed since: version 1 is the first champion" in again.stdout

    sabotaged = run_here(
        "nightly", folder, tell, "train.learning_rate=0.3", "train.images=640", "nightly.start=scratch"
    )
    assert sabotaged.returncode == 3, sabotaged.stderr
    assert aliases() == {"candidate": 2, "champion": 1}
    assert re.search(
        r"^rejected +version 1 stays champion: .*fid_classifier .* higher by", sabotaged.stdout, re.MULTILINE
    )

    images = Path(re.search(r"path: (.*?)}", (folder / "tiny.yaml").read_text())[1])  # type: ignore[index]
    add_digits(images, 600, 900)
    more = run_here("nightly", folder, tell)
    assert more.returncode == 0, more.stdout + more.stderr
    assert "300 new files beside those of the last night" in more.stdout
    assert aliases() == {"candidate": 3, "champion": 3, "previous": 1}

    told = [json.loads(line) for line in verdicts.read_text().splitlines()]
    assert [each["result"] for each in told] == ["promoted", "nothing new", "rejected", "promoted"]
    assert [each["champion"] for each in told] == [1, 1, 1, 3]

    capsys.readouterr()
    assert verb(folder, "rollback", "night", "--because", "it draws sevens only") == 0
    assert aliases() == {"candidate": 3, "champion": 1, "previous": 3}
    assert verb(folder, "history", "night") == 0
    shown = capsys.readouterr().out
    assert re.search(r" 1 +3 +rolled back: it draws sevens only$", shown, re.MULTILINE)
    assert re.search(r" 3 +1 +version 3 is champion: ", shown)
    assert re.search(r"^ +2 .*version 1 stays champion", shown, re.MULTILINE)


def test_what_has_grown_keeps_its_shards_and_its_split(folder: Path) -> None:
    before, after = sorted(
        (ShardIndex.load(path) for path in (folder / "outputs/stages").glob("prepare-*")),
        key=lambda each: len(each.shards),
    )
    assert [entry.sha256 for entry in after.shards[: len(before.shards)]] == [entry.sha256 for entry in before.shards]
    assert after.count("train") == before.count("train") + 240
    assert after.count("heldout") == before.count("heldout") + 60
    assert sum(1 for _ in after.folder.glob("*.tar")) == len(after.shards) - len(before.shards)
    assert after.digest != before.digest


def test_a_night_while_another_is_at_work_says_so(folder: Path) -> None:
    with exclusive(folder / "outputs/nights/night", "night"):
        refused = run_here("nightly", folder)
    assert refused.returncode == 4
    assert re.search(r"another process \(\d+ on .*, since .* UTC\) is at this night", refused.stderr)


def test_a_command_that_fails_changes_nothing(folder: Path) -> None:
    done = run_here("nightly", folder, "nightly.command=[/no/such/program]")
    assert done.returncode == 0
    assert "nightly.command /no/such/program failed, the night stands" in done.stdout
    failed = run_here("nightly", folder, "nightly.command=[sh, -c, 'echo no network >&2; exit 7']")
    assert "nightly.command sh failed, the night stands: exit code 7: no network" in failed.stdout


def test_what_is_pruned_is_what_no_alias_and_no_other_run_needs(
    folder: Path, aliases: Callable[[], dict[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = folder / "outputs"
    prune = ["prune", "night", "--keep", "1", "--output", str(outputs)]
    before = sorted(outputs.rglob("*"))
    summaries = [json.loads(path.read_text()) for path in outputs.glob("*/summary.json")]
    (gone,) = (outputs / "stages" / each["stages"]["train"] for each in summaries if each["model_version"] == 2)
    assert verb(folder, *prune) == 0
    assert re.search(r"^versions to be removed +2 \(1 of 3\)$", capsys.readouterr().out, re.MULTILINE)
    assert sorted(outputs.rglob("*")) == before
    with exclusive(next(outputs.glob("night-champion-*")), "run"):
        assert verb(folder, *prune, "--really") == 4
    assert verb(folder, *prune, "--really") == 0
    kept = connect(uri_of(folder)).search_model_versions("name = 'night'")
    assert {int(version.version) for version in kept} == {1, 3} == set(aliases().values())
    left = [json.loads(path.read_text()) for path in outputs.glob("*/summary.json")]
    assert {summary["model_version"] for summary in left} == {1, 3}
    assert all((outputs / "stages" / stage).is_dir() for summary in left for stage in summary["stages"].values())
    assert gone in before
    assert not gone.exists()
    for number in (1, 3):
        picture = folder / f"{number}.png"
        asked = ["generate", f"models:/night/{number}", "--seeds", "0-3", "--into", str(picture)]
        assert verb(folder, *asked) == 0, capsys.readouterr().err
        assert picture.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["history", "day"], "day: no such registered model; there are night"),
        (["rollback", "day"], "day: no such registered model; there are night"),
        (["promote", "night"], "night: expected models:/NAME/VERSION or models:/NAME@ALIAS"),
        (
            ["promote", "models:/night@best"],
            "models:/night@best: no such alias; there are candidate, champion, previous",
        ),
        (["promote", "models:/night/99"], "cannot promote models:/night/99"),
        (["prune", "night", "--keep", "0"], "--keep 0: at least 1, the newest version"),
        (["prune", "day", "--keep", "1"], "day: no such registered model, or one without versions"),
    ],
)
def test_what_is_not_there_is_refused(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb(folder, *arguments) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_version_is_promoted_by_hand(
    folder: Path, aliases: Callable[[], dict[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb(folder, "promote", "models:/night@candidate", "--because", "for the demo") == 0
    assert aliases() == {"candidate": 3, "champion": 3, "previous": 1}
    capsys.readouterr()
    verb(folder, "history", "night")
    assert re.search(r" 3 +1 +for the demo$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
def test_a_killed_night_goes_on_and_a_second_one_at_the_same_time_says_why_not(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    images = tmp_path_factory.mktemp("images")
    add_digits(images, 0, 300)
    folder = new_folder(tmp_path_factory, "killed", RUN_FILE.format(images=images))
    outputs, refused = folder / "outputs", list[str]()

    def samples_are_there() -> bool:
        if not refused and (outputs / "nights/.night.holder").exists():
            second = run("nightly", folder)
            assert second.returncode == 4
            refused.append(second.stderr)
        return any(outputs.glob("stages/sample-*/chunk-*.npz"))

    kill_when(samples_are_there, "nightly", folder)
    assert "is at this night; wait for it, or stop it" in refused[0]
    done = run("nightly", folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^promoted +version 1 is the first champion$", done.stdout, re.MULTILINE)
    assert "skipped: same inputs (loss" in done.stdout
    client = connect(uri_of(folder))
    assert len(client.search_model_versions("name = 'night'")) == 1
    experiment = client.get_experiment_by_name("diffusion")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 1
