"""From a YAML file and `section.key=value` overrides to one validated record, or one list of mistakes.

An override sets its key to its value, whole sections included. One that changes the `kind` of a section also
drops what the *file* says there, because it belonged to the other kind; what other overrides say stays. A
section without a `kind` takes that of the schema's default, so that `sample.sampler.steps=100` needs no more.
"""

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..errors import ConfigError
from .schema import element_of, fields_of, kind_of, sections_in, type_words, value_words, words_in
from .yamltext import MAX_DEPTH, KeyPath, YamlError, dotted, read_yaml, write_yaml

Schema = TypeVar("Schema", bound=BaseModel)

MAX_FILE_BYTES = 256 * 1024
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def load(file: Path, overrides: Sequence[str], schema: type[Schema]) -> Schema:
    """Read `file`, apply `overrides` in their order, validate once. ConfigError lists all mistakes."""
    draft = _read_draft(file)
    _fill_kinds(schema, draft.values)
    for number, override in enumerate(overrides, start=1):
        draft.override(override, f"override {number}")
    _fill_kinds(schema, draft.values)
    _refuse_flags(schema, draft.values, draft)
    try:
        config = schema.model_validate(draft.values)
    except ValidationError as error:
        for details in error.errors():
            _explain(details, schema, draft)
    if draft.mistakes:
        count = "1 mistake" if len(draft.mistakes) == 1 else f"{len(draft.mistakes)} mistakes"
        raise ConfigError("\n  ".join([f"{file}: {count} in the configuration", *draft.mistakes]))
    return config


def dump(config: BaseModel) -> str:
    """YAML with every key, in the order of the schema; `load` of it gives an equal record."""
    return write_yaml(config.model_dump(mode="json", by_alias=True))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys, texts as they are and other values as JSON."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


@dataclass
class _Draft:
    """The merged mapping before validation, and where each part of it was written."""

    values: dict[str, Any]
    origins: dict[KeyPath, str]
    mistakes: list[str] = field(default_factory=list)

    def where(self, path: KeyPath) -> str:
        """`line 12` or `override 3`, of the nearest enclosing key that was written; empty for the file."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, "")

    def note(self, path: KeyPath, text: str) -> None:
        """Add a mistake, once: pydantic reports `int | auto` for each of its members."""
        where = self.where(path)
        line = f"{dotted(path)}: {text}".removeprefix(": ") + (f" ({where})" if where else "")
        if line not in self.mistakes:
            self.mistakes.append(line)

    def override(self, text: str, origin: str) -> None:
        key, equals, value_text = text.partition("=")
        path = tuple(key.split("."))
        if not equals or not _KEY.fullmatch(key) or len(path) > MAX_DEPTH:
            self.mistakes.append(f"found {_shown(text)}, expected section.key=value ({origin})")
            return
        try:
            document = read_yaml(value_text)
        except YamlError as error:
            self.mistakes.append(f"{key}: {error} ({origin})")
            return
        self.mistakes.extend(f"{key}: {mistake} ({origin})" for mistake in document.mistakes)
        self._set(path, document.value, origin)

    def _set(self, path: tuple[str, ...], value: object, origin: str) -> None:
        section = self._section(path, origin)
        if section is None:
            return
        *parents, name = path
        if name == "kind" and section.get("kind") != value:
            for other in list(section):
                if not self.where((*parents, other)).startswith("override"):
                    del section[other]
        section[name] = value
        self.origins = {known: place for known, place in self.origins.items() if known[: len(path)] != path}
        self.origins[path] = origin

    def _section(self, path: tuple[str, ...], origin: str) -> dict[str, Any] | None:
        """The mapping that holds the last part of `path`, made where there is none."""
        section = self.values
        for depth, name in enumerate(path[:-1], start=1):
            if section.get(name) is None:
                section[name] = {}
                self.origins[path[:depth]] = origin
            section = section[name]
            if not isinstance(section, dict):
                found = f"{dotted(path[:depth])} is {_shown(section)}, not a section"
                self.mistakes.append(f"{dotted(path)}: {found} ({origin})")
                return None
        return section


def _read_draft(file: Path) -> _Draft:
    try:
        document = read_yaml(_read_text(file))
    except YamlError as error:
        raise ConfigError(f"{file}: {error}") from error
    if not isinstance(document.value, dict):
        raise ConfigError(f"{file}: found {_shown(document.value)}, expected lines of 'key: value'")
    origins = {path: f"line {line}" for path, line in document.lines.items()}
    return _Draft(document.value, origins, document.mistakes)


def _read_text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file{_did_you_mean(file.name, _yaml_names(file.parent))}") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; give the path of a YAML run file") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{file}: more than {MAX_FILE_BYTES:,} bytes, expected a YAML run file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: byte {error.start:,} is not UTF-8 text, expected a YAML run file") from error


def _yaml_names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.yaml")) if folder.is_dir() else []


def _fill_kinds(section: type[BaseModel], values: dict[str, Any]) -> None:
    """Give each choice that is written without a `kind` the kind of its default, in place."""
    for name, info in fields_of(section).items():
        kind = getattr(info.get_default(call_default_factory=True), "kind", None)
        if isinstance(values.get(name), dict) and kind is not None:
            values[name].setdefault("kind", kind)
    for _, below, written in _sections_below(section, values):
        _fill_kinds(below, written)


def _refuse_flags(section: type[BaseModel], values: dict[str, Any], draft: _Draft, path: KeyPath = ()) -> None:
    """Note each `true` or `false` that stands for a number: pydantic would take it as 1 or 0."""
    for name, info in fields_of(section).items():
        value, expected = values.get(name), type_words(info.annotation, info.metadata)
        if isinstance(value, bool) and "true|false" not in expected and "text" not in expected:
            place = _Place((*path, name), info.annotation, info.metadata)
            draft.note(place.path, _found_words(value, place))
    for name, below, written in _sections_below(section, values):
        _refuse_flags(below, written, draft, (*path, name))


def _sections_below(
    section: type[BaseModel], values: dict[str, Any]
) -> Iterator[tuple[str, type[BaseModel], dict[str, Any]]]:
    """Each section that is written inside this one: its name, its record (of its kind) and its keys."""
    for name, info in fields_of(section).items():
        written, members = values.get(name), sections_in(info.annotation)
        if not isinstance(written, dict):
            continue
        for member in members:
            if len(members) == 1 or kind_of(member) == written.get("kind"):
                yield name, member, written


@dataclass(frozen=True)
class _Place:
    """Where in the schema an error is: the user's own path, what may stand there, the names beside it."""

    path: KeyPath
    annotation: Any
    metadata: Collection[Any] = ()
    siblings: Collection[str] = ()


def _place(schema: type[BaseModel], location: KeyPath) -> _Place:
    """Follow pydantic's location through the schema, without the parts that it adds to what the user wrote.

    They are the kind after a choice, and the member's name after a union of plain types.
    """
    place = _Place((), schema)
    for part in location:
        sections, element = sections_in(place.annotation), element_of(place.annotation)
        if len(sections) > 1:
            chosen = next((section for section in sections if kind_of(section) == part), sections[0])
            place = _Place(place.path, chosen)
        elif sections:
            fields = fields_of(sections[0])
            info = fields.get(str(part))
            annotation, metadata = (info.annotation, info.metadata) if info else (None, ())
            place = _Place((*place.path, part), annotation, metadata, list(fields))
        elif element is not None and (isinstance(part, int) or get_origin(place.annotation) is dict):
            place = _Place((*place.path, part), element)
    return place


def _explain(details: ErrorDetails, schema: type[BaseModel], draft: _Draft) -> None:
    """Note one error of pydantic's in the user's terms: found against expected, at the key they wrote."""
    place = _place(schema, details["loc"])
    path, found = place.path, details["input"]
    match details["type"]:
        case "extra_forbidden":
            text = _unknown_words(str(path[-1]), place.siblings)
        case "missing":
            text = f"missing, expected {_expected(place)}"
        case "union_tag_not_found":
            path, text = (*path, "kind"), f"missing, expected {type_words(place.annotation)}"
        case "union_tag_invalid":
            path, text = (*path, "kind"), _choice_words(found["kind"], place)
        case "value_error" | "assertion_error":
            text = str(details["ctx"]["error"])
        case _:
            text = _found_words(found, place)
    for mistake in text.split("\n"):  # one check may find several, a line each
        draft.note(path, mistake)


def _found_words(found: object, place: _Place) -> str:
    text = f"found {_shown(found)}, expected {_expected(place)}"
    if isinstance(found, str):
        return text + _did_you_mean(found, words_in(place.annotation))
    if place.annotation is str and isinstance(found, bool | int | float):
        return f"{text}; put it in quotes"
    return text


def _choice_words(kind: object, place: _Place) -> str:
    known = words_in(place.annotation)
    return f"found {_shown(kind)}, expected {'|'.join(known)}{_did_you_mean(str(kind), known)}"


def _expected(place: _Place) -> str:
    kinds = [kind_of(section) for section in sections_in(place.annotation)]
    if not kinds:
        return type_words(place.annotation, place.metadata)
    return "a section" if len(kinds) == 1 else f"a section whose kind is {type_words(place.annotation)}"


def _unknown_words(name: str, known: Collection[str]) -> str:
    if ":" in name:
        return "unknown key; write a space after the colon"
    return f"unknown key{_did_you_mean(name, known) or _all_of(known)}"


def _all_of(known: Collection[str]) -> str:
    return f"; the keys here are {', '.join(known)}"


def _did_you_mean(written: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(written, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _shown(value: object) -> str:
    """A value as an error shows it: text in quotes, control characters escaped, long ones cut."""
    match value:
        case None:
            return "nothing"
        case dict():
            return "a section"
        case str():
            words = repr(value)
        case _:
            words = value_words(value)
    return words if len(words) <= 60 else f"{words[:56]} ..."
