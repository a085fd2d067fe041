"""Nights without Kubernetes: systemd's units and cron's line start what the pipeline has."""

import configparser
import re
import shutil
import sys
from pathlib import Path
from subprocess import run

import pytest

INFRA = Path(__file__).resolve().parents[2] / "infra"
UNITS = ["diffusion-nightly.service", "diffusion-nightly.timer"]

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here: apt-get install systemd"
)


def complaints(folder: Path, right: str = "", wrong: str = "") -> str:
    """What systemd says of the units, one of which has `wrong` for `right`; the program is one that is here."""
    for name in UNITS:
        text = (INFRA / "systemd" / name).read_text(encoding="utf-8")
        text = text.replace("/srv/diffusion/.venv/bin/python", sys.executable)
        (folder / name).write_text(text.replace(right, wrong) if right else text, encoding="utf-8")
    command = ["systemd-analyze", "verify", *(str(folder / name) for name in UNITS)]
    verified = run(command, capture_output=True, text=True, check=False, timeout=60)
    return verified.stdout + verified.stderr


@needs_systemd
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    assert complaints(tmp_path) == ""


@needs_systemd
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("SuccessExitStatus=", "SuccessExitStatuses="),
        ("OnCalendar=*-*-* 03:00:00 UTC", "OnCalendar=*-*-* 25:00:00 UTC"),
        ("Persistent=true", "Persistant=true"),
        ("ProtectSystem=strict", "ProtectSystem=strickt"),
        ("[Timer]", "[Tmier]"),
    ],
)
def test_a_typo_in_a_unit_is_told(tmp_path: Path, right: str, wrong: str) -> None:
    assert complaints(tmp_path, right, wrong)


def test_exit_codes_are_those_of_a_night() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # as configparser's page has it
    unit.read(INFRA / "systemd" / UNITS[0], encoding="utf-8")
    service = unit["Service"]
    assert (service["SuccessExitStatus"], service["RestartPreventExitStatus"]) == ("3", "2 4")
    assert service["ExecStart"].split()[1:4] == ["-m", "pipeline", "nightly"]


def test_cron_has_one_whole_line() -> None:
    lines = (INFRA / "cron" / "diffusion").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if not line.startswith("#") and "=" not in line.split()[0])
    assert re.fullmatch(r"\d+ \d+ \* \* \* diffusion cd /srv/diffusion && \{ .* \}", line)
    assert "python -m pipeline nightly " in line
    assert "%" not in line, "which cron would take for the end of the line"
