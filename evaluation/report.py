"""One HTML page with its pictures inside: no script, no link to elsewhere, nothing to fetch. For people."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from PIL import Image

MOST_PIXELS = 2000
"""Width beyond which a picture is made smaller: twice the page's, for displays of small pixels."""

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --paper: #ffffff; --ink: #222222; --faint: #5c6166; --line: #e2e4e7; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #dcdee1; --faint: #a0a6ac; --line: #303438; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.25rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; font-weight: 600; margin: 2.5rem 0 0.25rem; }
p { max-width: 44rem; margin: 0 0 0.75rem; color: var(--faint); }
p.score { margin: 0.25rem 0; font-size: 1.75rem; line-height: 1.25; text-wrap: balance; color: var(--ink); }
.scrolled { overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 1.5rem 0.3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 400; color: var(--faint); white-space: nowrap; }
td { min-width: 6.5rem; overflow-wrap: anywhere; }
pre { overflow-x: auto; font-size: 0.8rem; }
@media (max-width: 700px) {
  img.chart { max-width: none; width: 40rem; }
  th, td { padding-right: 0.75rem; }
  th { white-space: normal; }
  td { min-width: 4.5rem; }
}
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="score">$score</p>
<p>$measured_on</p>
$sections
</main>
</body>
</html>
""")


@dataclass(frozen=True)
class Picture:
    """A picture and what it shows, for those who do not see it."""

    png: bytes
    alt: str
    chart: bool = False
    """It has words and figures to read: on a phone it is scrolled rather than shrunk."""


@dataclass(frozen=True)
class Section:
    """A part of the page; one with neither picture nor rows nor verbatim text is left out."""

    heading: str
    text: str = ""
    picture: Picture | None = None
    rows: Sequence[Sequence[str]] = ()
    """Of a table; the first cell names the row."""
    columns: Sequence[str] = ()
    """Headings of the table, where it has any."""
    verbatim: str = ""
    """Shown as it is, folded up until asked for."""


def page(title: str, score: str, measured_on: str, sections: Iterable[Section]) -> str:
    """The page, HTML. title: of the run; score: the one that decides, as large type; all text is escaped here."""
    shown = [each for each in sections if each.picture or each.rows or each.verbatim]
    return _PAGE.substitute(
        title=escape(title),
        score=escape(score),
        measured_on=escape(measured_on),
        sections="\n".join(map(_section, shown)),
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.picture:
        parts.append(_image(section.picture))
    if section.rows:
        parts.append(_table(section.columns, section.rows))
    if section.verbatim:
        parts.append(f"<details><summary>show</summary><pre>{escape(section.verbatim)}</pre></details>")
    return "\n".join(["<section>", *parts, "</section>"])


def _image(picture: Picture) -> str:
    png = picture.png
    with Image.open(io.BytesIO(png), formats=["PNG"]) as opened:
        if opened.width > MOST_PIXELS:
            opened.thumbnail((MOST_PIXELS, opened.height), Image.Resampling.LANCZOS)
            smaller = io.BytesIO()
            opened.save(smaller, "PNG")
            png = smaller.getvalue()
        width, height = opened.size
    chart = ' class="chart"' if picture.chart else ""
    source = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    shown = f'<img{chart} width="{width}" height="{height}" alt="{escape(picture.alt)}" src="{source}">'
    return f'<div class="scrolled">{shown}</div>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_row([f'<th scope="col">{escape(each)}</th>' for each in columns])] if columns else []
    for name, *cells in rows:
        lines.append(_row([f'<th scope="row">{escape(name)}</th>', *(f"<td>{escape(cell)}</td>" for cell in cells)]))
    return "\n".join(['<div class="scrolled"><table>', *lines, "</table></div>"])


def _row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>"
