"""Every key of a configuration schema, read off the schema itself: types in words, defaults, roles and help."""

import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .keyroles import Resource
from .schema import element_of, fields_of, kind_of, sections_in, type_words, value_words

_LEGEND = (
    "Keys marked resource say where and how fast to compute, never what: changing one keeps finished "
    "stages. The keys under a kind exist only when that kind is chosen."
)

Role = Literal["identity", "resource"]


@dataclass(frozen=True)
class KeyRow:
    """One line of the table. A kind has a line of its own: its key ends in `.kind`, its type is its name."""

    key: str
    """Dotted, as an override writes it; `[]` stands for any member of a list."""
    type: str
    default: str
    """As YAML would write it; `required` where there is none, empty for the line of a kind."""
    role: Role
    help: str
    kind: str = ""
    """The choices this key depends on, as in `sample.sampler.kind: ddim`; empty where it always exists."""


def key_table(schema: type[BaseModel]) -> list[KeyRow]:
    """One row for each key, in the order of the schema, with the keys of every kind of every choice."""
    return list(_section_rows(schema, prefix="", kind="", role="identity"))


def _section_rows(section: type[BaseModel], prefix: str, kind: str, role: Role) -> Iterator[KeyRow]:
    for name, field in fields_of(section).items():
        row = KeyRow(
            key=prefix + name,
            type=type_words(field.annotation, field.metadata),
            default=_default_words(field),
            role="resource" if Resource in field.metadata else role,
            help=" ".join((field.description or (_first_line(section) if name == "kind" else "")).split()),
            kind=kind,
        )
        element = element_of(field.annotation)
        if sections_in(element):
            yield row
            yield from _nested_rows(replace(row, key=f"{row.key}[]"), sections_in(element))
        elif len(sections := sections_in(field.annotation)) > 1:
            yield replace(row, key=f"{row.key}.kind")
            yield from _nested_rows(row, sections)
        elif sections and types.NoneType not in get_args(field.annotation):
            yield from _nested_rows(row, sections)
        else:
            yield row
            yield from _nested_rows(row, sections)


def _nested_rows(row: KeyRow, sections: list[type[BaseModel]]) -> Iterator[KeyRow]:
    """The keys below `row`: of its one section, or of each kind in turn."""
    if len(sections) == 1:
        yield from _section_rows(sections[0], f"{row.key}.", row.kind, row.role)
        return
    for section in sections:
        choice = f"{row.key}.kind: {kind_of(section)}"
        kind = f"{row.kind}, {choice}" if row.kind else choice
        yield KeyRow(f"{row.key}.kind", kind_of(section), "", row.role, _first_line(section), kind)
        below = _section_rows(section, f"{row.key}.", kind, row.role)
        yield from (nested for nested in below if nested.key != f"{row.key}.kind")


def _default_words(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return value_words(field.get_default(call_default_factory=True))


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().partition("\n")[0]


def choices_markdown(schema: type[BaseModel]) -> str:
    """A Markdown table of everything that a file may choose between: kinds, and keys that take one of several words."""
    table: dict[str, dict[str, str]] = {}
    for row in key_table(schema):
        key, is_choice = row.key.removesuffix(".kind"), row.key.endswith(".kind")
        if not row.default if is_choice else "|" in row.type and "true" not in row.type:
            words = ", ".join(f"`{word}`" for word in row.type.removesuffix(" or null").split("|"))
            table.setdefault(key, {}).setdefault(words, row.help.replace("|", r"\|"))
    rows = [f"| `{key}` | {words} | {text} |" for key, choices in table.items() for words, text in choices.items()]
    return "\n".join(["| key | choice | what |", "|---|---|---|", *rows]) + "\n"


def print_keys(schema: type[BaseModel], console: Console) -> None:
    """The table, section by section, each section's kinds after its own keys; long help wraps."""
    rows = key_table(schema)
    key_width = max(len(row.key) for row in rows) + 2
    sections = ["", *fields_of(schema)]
    rows.sort(key=lambda row: (sections.index(_section_of(row)), row.kind != ""))
    for (section, kind), group in groupby(rows, key=lambda row: (_section_of(row), row.kind)):
        if not kind and section:
            console.print(Text.assemble((section, "bold"), "  ", fields_of(schema)[section].description or ""))
        for row in group:
            _print_row(row, key_width, console)
        console.print()
    console.print(Text(_LEGEND))


def _section_of(row: KeyRow) -> str:
    return row.key.partition(".")[0].removesuffix("[]") if "." in row.key else ""


def _print_row(row: KeyRow, key_width: int, console: Console) -> None:
    if row.kind and not row.default:
        console.print(Text(f"  {row.kind}", style="bold"))
    else:
        default = f"default {row.default}" if row.default != "required" else row.default
        words = row.type.replace("|", " | ")  # a line may then break between them
        facts = [words, default, "resource"] if row.role == "resource" else [words, default]
        line = Table.grid()
        line.add_column(width=key_width + 2, overflow="fold", style="cyan")
        line.add_column(overflow="fold")
        line.add_row(Text(f"  {row.key}"), Text("; ".join(facts)))
        console.print(line)
    console.print(Padding(Text(row.help), (0, 0, 0, 6), expand=False))
