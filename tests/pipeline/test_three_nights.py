"""Three nights on handwritten digits: a champion, a sabotaged night, one of more images; a rollback; a killed night."""

import json
import re
from pathlib import Path

import pytest

from pipeline.data.shard_index import ShardIndex
from pipeline.files import exclusive
from pipeline.tracking.mlflow_store import connect

from .commands import kill_when, run, run_here
from .nights import add_digits, aliases_of, images_of, new_nights, uri_of, verb

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("head"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_nights(tmp_path_factory, "nights", 600)


def test_three_nights_and_a_rollback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = folder / "verdicts"
    tell = f"nightly.command=[sh, -c, 'cat >> {verdicts}; echo >> {verdicts}']"
    short = "train.images=6_400"  # so that there is something to be gained
    first = run_here("nightly", folder, tell, short)
    assert (first.returncode, aliases_of(folder)) == (0, {"candidate": 1, "champion": 1}), first.stderr
    assert re.search(r"^promoted +version 1 is the first champion$", first.stdout, re.MULTILINE)

    again = run_here("nightly", folder, tell, short)
    assert again.returncode == 0
    assert "neither images nor configuration have changed since: version 1 is the first champion" in again.stdout

    sabotaged = run_here(
        "nightly", folder, tell, "train.learning_rate=0.3", "train.images=640", "nightly.start=scratch"
    )
    assert sabotaged.returncode == 3, sabotaged.stderr
    assert aliases_of(folder) == {"candidate": 2, "champion": 1}
    assert re.search(
        r"^rejected +version 1 stays champion: .*fid_classifier .* higher by", sabotaged.stdout, re.MULTILINE
    )

    add_digits(images_of(folder), 600, 900)
    more = run_here("nightly", folder, tell)
    assert more.returncode == 0, more.stdout + more.stderr
    assert "300 new files beside those of the last night" in more.stdout
    assert aliases_of(folder) == {"candidate": 3, "champion": 3, "previous": 1}

    told = [json.loads(line) for line in verdicts.read_text().splitlines()]
    assert [each["result"] for each in told] == ["promoted", "nothing new", "rejected", "promoted"]
    assert [each["champion"] for each in told] == [1, 1, 1, 3]

    capsys.readouterr()
    assert verb(folder, "rollback", "night", "--because", "it draws sevens only") == 0
    assert aliases_of(folder) == {"candidate": 3, "champion": 1, "previous": 3}
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


def test_what_is_pruned_is_what_no_alias_and_no_other_run_needs(
    folder: Path, capsys: pytest.CaptureFixture[str]
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
    assert {int(version.version) for version in kept} == {1, 3} == set(aliases_of(folder).values())
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


def test_a_version_is_promoted_by_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb(folder, "promote", "models:/night@candidate", "--because", "for the demo") == 0
    assert aliases_of(folder) == {"candidate": 3, "champion": 3, "previous": 1}
    capsys.readouterr()
    verb(folder, "history", "night")
    assert re.search(r" 3 +1 +for the demo$", capsys.readouterr().out, re.MULTILINE)


def test_a_killed_night_goes_on_and_a_second_one_at_the_same_time_says_why_not(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = new_nights(tmp_path_factory, "killed", 300)
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
