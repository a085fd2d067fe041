"""The report as people see it, on a desk and on a phone, by day and by night: legible, and nothing but itself."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, sync_playwright

from pipeline.summary import REPORT

from .scored_runs import a_run, reported

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")

Scheme = Literal["light", "dark"]
DESK, PHONE = 1280, 375
"""Widths of a window, CSS pixels."""
LEAST_CONTRAST = 4.5
"""WCAG 2.2, success criterion 1.4.3, text of ordinary size."""
SMALLEST_PX = 12.0

TEXTS = """() => {
    const says = node => node.nodeType === Node.TEXT_NODE && node.data.trim();
    const behind = element => {
        const colour = getComputedStyle(element).backgroundColor;
        return colour === "rgba(0, 0, 0, 0)" ? behind(element.parentElement) : colour;
    };
    return [...document.querySelectorAll("main *")]
        .filter(element => [...element.childNodes].some(says))
        .map(element => {
            const { color, fontSize } = getComputedStyle(element);
            return [element.textContent.slice(0, 40), color, behind(element), parseFloat(fontSize)];
        });
}"""
"""Of each element with text of its own: the text, its colour, the colour behind it, the size of its font."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = a_run(tmp_path_factory.mktemp("run"))
    reported(run)
    return run.folder / REPORT


def faults(browser: Browser, file: Path, width: int, scheme: Scheme) -> list[str]:
    """All that is wrong with a page, once it is loaded and what is folded up in it is open."""
    found: list[str] = []
    window = {"viewport": {"width": width, "height": 800}, "is_mobile": width == PHONE, "color_scheme": scheme}
    with browser.new_page(**window) as shown:
        shown.on("console", lambda message: found.append(f"console: {message.text}"))
        shown.on("pageerror", lambda error: found.append(f"error: {error}"))
        asked: list[str] = []
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto(file.as_uri())
        shown.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        found += [f"asks for {url}" for url in asked if url != file.as_uri() and not url.startswith("data:")]
        scrolled = shown.evaluate("document.documentElement.scrollWidth")
        if scrolled > width:
            found.append(f"{scrolled} pixels wide")
        texts = shown.evaluate(TEXTS)
        assert len(texts) > 1
        for text, ink, paper, size in texts:
            if size < SMALLEST_PX:
                found.append(f"small: {text}")
            if contrast(ink, paper) < LEAST_CONTRAST:
                found.append(f"pale: {text}")
        found += shown.evaluate("[...document.images].filter(each => !each.naturalWidth).map(each => `no ${each.alt}`)")
    return found


def contrast(ink: str, paper: str) -> float:
    """Of two colours as CSS writes them, in [1, 21]. WCAG 2.2, definition of contrast ratio."""
    dark, light = sorted(map(luminance, (ink, paper)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance in [0, 1] of `rgb(r, g, b)`. WCAG 2.2, definition of relative luminance."""
    parts = [int(part) / 255 for part in re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour).groups()]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_the_report_fits_is_legible_and_asks_for_nothing(
    browser: Browser, report: Path, width: int, scheme: Scheme
) -> None:
    assert faults(browser, report, width, scheme) == []


def test_the_report_is_dark_where_the_reader_wants_it_dark(browser: Browser, report: Path) -> None:
    papers = []
    for scheme in ("light", "dark"):
        with browser.new_page(color_scheme=scheme) as shown:
            shown.goto(report.as_uri())
            papers.append(luminance(shown.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert papers[0] > 0.9
    assert papers[1] < 0.05


@pytest.mark.parametrize(
    ("spoilt", "fault"),
    [
        ('<p style="width: 500px">wide</p>', "500 pixels wide|516 pixels wide"),
        ('<p style="font-size: 9px">tiny</p>', "small: tiny"),
        ('<p style="color: #999">grey</p>', "pale: grey"),
        ('<img alt="picture" src="data:image/png;base64,AAAA">', "no picture"),
        ('<img alt="picture" src="http://localhost:9/a.png">', "console: .*Content Security Policy"),
        ("<script>1</script>", "console: .*Content Security Policy"),
    ],
)
def test_a_page_that_is_spoilt_is_found_so(
    browser: Browser, report: Path, tmp_path: Path, spoilt: str, fault: str
) -> None:
    page = tmp_path / "spoilt.html"
    page.write_text(report.read_text().replace("</main>", f"{spoilt}</main>"))
    assert any(re.match(fault, found) for found in faults(browser, page, PHONE, "light"))
