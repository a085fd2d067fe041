import io
from typing import Annotated, Literal

import pytest
from pydantic import Field
from rich.console import Console

from model.record import Record
from pipeline.runfile.keyroles import Resource
from pipeline.runfile.keys import KeyRow, key_table, print_keys


class Smooth(Record):
    """A sum over neighbours.

    More about it that the table leaves out.
    """

    kind: Literal["smooth"] = "smooth"
    width: int = Field(3, ge=1, le=9)
    """Size of the
    neighbourhood, pixels."""


class Sharp(Record):
    """A difference of neighbours."""

    kind: Literal["sharp"] = "sharp"
    amount: Annotated[float, Resource] = Field(0.5, gt=0)
    """How much of the difference is added."""


class Numbers(Record):
    kind: Literal["numbers"] = "numbers"
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2)
    """Sizes, pixels."""
    pair: tuple[int, float] = (1, 2.0)
    """A pair."""
    table: dict[str, float] = Field(default_factory=dict)
    """A mapping."""
    limit: int | Literal["auto"] | None = Field(None, lt=2**63)
    """A limit, images."""
    flag: bool = True
    """A flag."""
    word: str = Field(pattern="^[a-z]+$", max_length=9)
    """A word."""


class Workers(Record):
    count: int = Field(20_000, ge=1)
    """Number of workers."""


class Schema(Record):
    filter: Annotated[Smooth | Sharp, Field(discriminator="kind")] = Smooth()
    """What is done to each image [in brackets]."""
    numbers: Numbers
    """Numbers of all sorts."""
    workers: Annotated[Workers, Resource] = Workers()
    """Who does it."""
    extra: tuple[Annotated[Smooth | Sharp, Field(discriminator="kind")], ...] = ()
    """Filters after the first."""
    spare: Workers | None = None
    """More workers, perhaps."""
    name_: str = Field(alias="name")
    """A name."""


def rows() -> dict[str, KeyRow]:
    return {f"{row.key} {row.kind}".strip(): row for row in key_table(Schema)}


def test_the_table_has_each_key_of_each_kind_of_each_choice_in_the_order_of_the_schema() -> None:
    smooth, sharp = "filter.kind: smooth", "filter.kind: sharp"
    first, second = "extra[].kind: smooth", "extra[].kind: sharp"
    assert [(row.key, row.kind) for row in key_table(Schema)] == [
        ("filter.kind", ""),
        ("filter.kind", smooth),
        ("filter.width", smooth),
        ("filter.kind", sharp),
        ("filter.amount", sharp),
        ("numbers.kind", ""),
        ("numbers.sizes", ""),
        ("numbers.pair", ""),
        ("numbers.table", ""),
        ("numbers.limit", ""),
        ("numbers.flag", ""),
        ("numbers.word", ""),
        ("workers.count", ""),
        ("extra", ""),
        ("extra[].kind", first),
        ("extra[].width", first),
        ("extra[].kind", second),
        ("extra[].amount", second),
        ("spare", ""),
        ("spare.count", ""),
        ("name", ""),
    ]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("filter.kind", "smooth|sharp"),
        ("filter.width filter.kind: smooth", "int >= 1, <= 9"),
        ("numbers.sizes", "list of int >= 1"),
        ("numbers.pair", "[int, float]"),
        ("numbers.table", "mapping of text to float"),
        ("numbers.limit", "int < 2^63 or auto or null"),
        ("numbers.flag", "true|false"),
        ("numbers.word", "text length <= 9, matching ^[a-z]+$"),
        ("extra", "list of smooth|sharp"),
        ("spare", "section or null"),
    ],
)
def test_a_type_is_told_in_words(key: str, words: str) -> None:
    assert rows()[key].type == words


@pytest.mark.parametrize(
    ("key", "default"),
    [
        ("filter.kind", "smooth"),
        ("filter.kind filter.kind: smooth", ""),
        ("numbers.sizes", "[1, 2]"),
        ("numbers.limit", "null"),
        ("numbers.flag", "true"),
        ("numbers.word", "required"),
        ("workers.count", "20_000"),
    ],
)
def test_a_default_is_shown_as_the_file_would_write_it(key: str, default: str) -> None:
    assert rows()[key].default == default


def test_a_resource_mark_on_a_section_covers_all_its_keys() -> None:
    assert rows()["workers.count"].role == "resource"
    assert rows()["spare.count"].role == "identity"
    assert rows()["filter.amount filter.kind: sharp"].role == "resource"


def test_help_is_one_line_and_a_kind_is_explained_by_its_record() -> None:
    assert rows()["filter.width filter.kind: smooth"].help == "Size of the neighbourhood, pixels."
    assert rows()["filter.kind filter.kind: smooth"].help == "A sum over neighbours."


@pytest.mark.parametrize("width", [60, 100])
def test_the_printed_table_loses_no_word_of_help_and_fits_its_width(width: int) -> None:
    stream = io.StringIO()
    print_keys(Schema, Console(file=stream, width=width))
    printed = stream.getvalue()
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= width
    for row in key_table(Schema):
        assert row.help in " ".join(printed.split())


def test_the_kinds_of_a_section_are_printed_after_the_keys_that_always_exist() -> None:
    from pipeline.runfile.config import Config

    stream = io.StringIO()
    print_keys(Config, Console(file=stream, width=100))
    printed = stream.getvalue()
    assert printed.index("data.image_size") < printed.index("data.source.kind: digits")
    assert "sample.sampler.kind: ddim" in printed
