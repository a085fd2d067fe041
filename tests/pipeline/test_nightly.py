"""A night on handwritten digits, on real Ray and a real registry, and what is refused around it."""

import re
from pathlib import Path

import pytest

from pipeline.files import exclusive

from .commands import run_here
from .nights import aliases_of, new_nights, verb

pytestmark = [pytest.mark.usefixtures("head"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SHORT = "train.images=6_400"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_nights(tmp_path_factory, "nights", 600)


def test_a_first_night_makes_a_champion_and_a_second_finds_nothing_new(folder: Path) -> None:
    first = run_here("nightly", folder, SHORT)
    assert (first.returncode, aliases_of(folder)) == (0, {"candidate": 1, "champion": 1}), first.stderr
    assert re.search(r"^promoted +version 1 is the first champion$", first.stdout, re.MULTILINE)
    again = run_here("nightly", folder, SHORT)
    assert again.returncode == 0
    assert "neither images nor configuration have changed since: version 1 is the first champion" in again.stdout


def test_a_night_while_another_is_at_work_says_so(folder: Path) -> None:
    with exclusive(folder / "outputs/nights/night", "night"):
        refused = run_here("nightly", folder)
    assert refused.returncode == 4
    assert re.search(r"another process \(\d+ on .*, since .* UTC\) is at this night", refused.stderr)


def test_a_command_that_fails_changes_nothing(folder: Path) -> None:
    done = run_here("nightly", folder, SHORT, "nightly.command=[/no/such/program]")
    assert done.returncode == 0
    assert "nightly.command /no/such/program failed, the night stands" in done.stdout
    failed = run_here("nightly", folder, SHORT, "nightly.command=[sh, -c, 'echo no network >&2; exit 7']")
    assert "nightly.command sh failed, the night stands: exit code 7: no network" in failed.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["history", "day"], "day: no such registered model; there are night"),
        (["rollback", "day"], "day: no such registered model; there are night"),
        (
            ["promote", "night"],
            "night: expected models:/NAME@ALIAS, such as models:/ddpm-digits@champion, or models:/NAME/VERSION",
        ),
        (
            ["promote", "models:/night@best"],
            "models:/night@best: no such alias; there are candidate, champion",
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


def test_to_promote_the_champion_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb(folder, "history", "night") == 0
    before = capsys.readouterr().out
    assert verb(folder, "promote", "models:/night@candidate", "--because", "for the demo") == 0
    assert aliases_of(folder) == {"candidate": 1, "champion": 1}
    capsys.readouterr()
    assert verb(folder, "history", "night") == 0
    assert capsys.readouterr().out == before
