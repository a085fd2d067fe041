"""The page says what it is given, escaped, and needs nothing beside itself."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from evaluation.report import MOST_PIXELS, Picture, Section, page

HOSTILE = "<script>alert('a & \"b\"')</script>"
VOID = {"meta", "img"}


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(width * height, dtype=np.uint8).reshape(height, width)).save(file, "PNG")
    return file.getvalue()


class Read(HTMLParser):
    """What a browser would see: elements with their attributes, and text. Every element is closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def decoded(image: dict[str, str | None]) -> Image.Image:
    source = image["src"] or ""
    kind, _, content = source.partition(",")
    assert kind == "data:image/png;base64"
    opened = Image.open(io.BytesIO(base64.b64decode(content, validate=True)), formats=["PNG"])
    opened.load()
    return opened


def test_all_text_is_escaped_wherever_it_stands() -> None:
    section = Section(HOSTILE, HOSTILE, Picture(png(4, 4), HOSTILE), [(HOSTILE, HOSTILE)], (HOSTILE, HOSTILE), HOSTILE)
    html = page(HOSTILE, HOSTILE, HOSTILE, [section])
    read = Read(html)
    assert "<script" not in html
    assert not read.of("script")
    assert read.of("img")[0]["alt"] == HOSTILE
    assert read.text.count(HOSTILE) == 4 + 2 + 2 + 2 + 1  # title twice, score, facts; heading, text; table; verbatim


def test_the_page_refers_to_nothing_outside_itself() -> None:
    html = page("run", "fid 1", "facts", [Section("one", picture=Picture(png(4, 4), "alt"))])
    references = [
        value for _, attributes in Read(html).elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert references
    assert all(value is not None and value.startswith("data:") for value in references)
    assert not re.search(r"https?://|url\(|@import", html)


@pytest.mark.parametrize(("chart", "kind"), [(True, "chart"), (False, None)])
def test_pictures_are_inside_with_their_pixels_and_their_size(chart: bool, kind: str | None) -> None:
    original = png(300, 100)
    (image,) = Read(page("run", "", "", [Section("one", picture=Picture(original, "what it shows", chart))])).of("img")
    assert (image["width"], image["height"], image["alt"]) == ("300", "100", "what it shows")
    assert image.get("class") == kind
    np.testing.assert_array_equal(np.asarray(decoded(image)), np.asarray(Image.open(io.BytesIO(original))))


def test_pictures_wider_than_the_page_can_show_are_made_smaller() -> None:
    html = page("run", "", "", [Section("one", picture=Picture(png(2 * MOST_PIXELS, 100), "alt"))])
    assert decoded(Read(html).of("img")[0]).size == (MOST_PIXELS, 50)


def test_what_is_missing_is_left_out_with_its_heading() -> None:
    html = page("run", "", "", [Section("nothing to show", "a sentence"), Section("table", rows=[("name", "value")])])
    assert "nothing to show" not in html
    assert "a sentence" not in html
    read = Read(html)
    assert len(read.of("section")) == 1
    assert not read.of("img")
    assert len(read.of("tr")) == 1  # no empty row of headings
