"""Every key of a configuration schema, read off the schema itself: types in words, defaults, roles and help.

`configfile` explains mistakes in the same words, so what an error asks for is what `keys` prints.
"""

import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .keyroles import Resource

_NAMES = {bool: "true|false", str: "text", Path: "path", types.NoneType: "null"}
_BOUNDS = {
    "gt": ">",
    "ge": ">=",
    "lt": "<",
    "le": "<=",
    "multiple_of": "multiple of",
    "min_length": "length >=",
    "max_length": "length <=",
    "pattern": "matching",
}
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


def fields_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a record under the names that a file uses: the alias where there is one."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The records that an annotation admits: one for a section, several for a choice, none for a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = get_origin(annotation)
    if origin is Annotated:
        return sections_in(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [section for member in get_args(annotation) for section in sections_in(member)]
    return []


def element_of(annotation: Any) -> Any:
    """What a list, tuple or mapping holds (a tuple's first member speaks for all), or None."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return element_of(arguments[0])
    if origin in (Union, types.UnionType):
        return next((element for element in map(element_of, arguments) if element is not None), None)
    if not arguments or not isinstance(origin, type) or not issubclass(origin, Collection):
        return None
    return arguments[-1] if issubclass(origin, Mapping) else arguments[0]


def kind_of(section: type[BaseModel]) -> str:
    """The word that chooses this record, from its `kind: Literal[...]`; empty where it has none."""
    field = section.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field and get_origin(field.annotation) is Literal else ""


def words_in(annotation: Any) -> list[str]:
    """Every word that may be written for this key: literals, and the kinds of a choice."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    sections = sections_in(annotation)
    if sections:
        return [kind_of(section) for section in sections if kind_of(section)]
    return [word for member in get_args(annotation) for word in words_in(member)]


def type_words(annotation: Any, metadata: Collection[Any] = ()) -> str:
    """A type for a person: `int >= 1`, `auto|fp32|bf16`, `list of int`, `path or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal or len(sections_in(annotation)) > 1:
        choice = "|".join(words_in(annotation))
        return f"{choice} or null" if types.NoneType in arguments else choice
    if origin in (Union, types.UnionType):
        members = [member for member in arguments if member is not types.NoneType]
        words = [type_words(member, metadata) for member in members]
        return " or ".join([*words, "null"] if len(members) < len(arguments) else words)
    words_of_bounds = ", ".join(_bounds(metadata))
    if not arguments:
        return f"{_name(annotation)} {words_of_bounds}".rstrip()
    return ", ".join(filter(None, [_container_words(origin, arguments), words_of_bounds]))


def _container_words(origin: Any, arguments: tuple[Any, ...]) -> str:
    members = [type_words(member) for member in arguments if member is not Ellipsis]
    if issubclass(origin, Mapping):
        return f"mapping of {members[0]} to {members[1]}"
    return f"list of {members[0]}" if len(members) == 1 else f"[{', '.join(members)}]"


def _name(annotation: Any) -> str:
    if sections_in(annotation):
        return "section"
    return _NAMES.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _bounds(metadata: Collection[Any]) -> Iterator[str]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _bounds(item.metadata)
        for attribute, sign in _BOUNDS.items():
            bound = getattr(item, attribute, None)
            if bound is not None:
                yield f"{sign} {_bound_words(bound)}"


def _bound_words(bound: object) -> str:
    if isinstance(bound, int) and bound >= 2**31 and bound.bit_count() == 1:
        return f"2^{bound.bit_length() - 1}"
    return str(bound)


def _default_words(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return value_words(field.get_default(call_default_factory=True))


def value_words(value: object) -> str:
    """A value as YAML writes it; a section is its kind."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int():
            return f"{value:_}" if abs(value) >= 10_000 else str(value)
        case BaseModel():
            return str(getattr(value, "kind", "section"))
        case list() | tuple() | set() | frozenset():
            return f"[{', '.join(map(value_words, value))}]"
    return str(value) or "''"


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
