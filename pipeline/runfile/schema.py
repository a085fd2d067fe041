"""A configuration schema as people write it: which sections, kinds and words a key admits, and its type in words.

`keys` prints these words and `configfile` explains mistakes in them, so what an error asks for is what `keys` says.
"""

import types
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

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
