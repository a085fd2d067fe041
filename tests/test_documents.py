"""What the documents point at is there: files, sections, commands; and a figure that stands twice is the same."""

import re
import sys
from pathlib import Path
from subprocess import run

import pytest

from .test_architecture import ROOT, tree

DOCUMENTS = sorted(ROOT / path for path in tree() if path.suffix == ".md")
MEASURED = ROOT / "tests/benchmarks/README.md"
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_ELSEWHERE = re.compile(r"[a-z]+:")  # https:, mailto:
_FILE = re.compile(r"\b(?:model|evaluation|pipeline|infra|tests)/[\w./-]+\.(?:py|md|ya?ml|json|csv|png)\b")
_COMMAND = re.compile(r"python -m pipeline ([a-z]+)")


def prose(document: Path) -> str:
    """The text without its blocks of code, in which a bracket is no link and a hash no heading."""
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S)


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    """Links to files that are not there, and to sections that their file lacks."""
    broken = []
    for link in _LINK.findall(prose(document)):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not _ELSEWHERE.match(link) and not (target.exists() and (not anchor or anchor in anchors(target))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    assert not broken_links(document)


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, twice\n[a](gone.md) [b](#a-title-twice) [c](#other) [d](https://e.org)\n```\n[f](g)\n```\n"
    )
    assert broken_links(page) == ["gone.md", "#other"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_are_there(document: Path) -> None:
    missing = [name for name in _FILE.findall(document.read_text()) if not (ROOT / name).exists()]
    assert not missing


def test_commands_named_exist() -> None:
    shown = run([sys.executable, "-m", "pipeline", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    commands = set(re.findall(r"^    ([a-z]+) ", shown.stdout, re.M))
    named = {name for document in DOCUMENTS for name in _COMMAND.findall(document.read_text())}
    assert {"run", "nightly"} <= named <= commands


def test_figures_of_the_front_page_are_those_that_were_measured() -> None:
    table = (ROOT / "README.md").read_text().partition("\n## Measured\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) > 5
    assert not set(rows) - set(MEASURED.read_text().splitlines())
