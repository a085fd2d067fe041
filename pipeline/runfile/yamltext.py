"""YAML as a run file uses it: plain values with the lines they stand on, and nothing that surprises.

Scalars follow YAML 1.2 rather than PyYAML's 1.1: `1e-4` is a number; `on`, `off`, `yes`, `no`, dates and
`1:30` are text; `010` is ten. Underscores may group digits. Duplicate keys and tags are refused, aliases are
bounded.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import yaml

KeyPath = tuple[str | int, ...]

MAX_DEPTH = 32
MAX_NODES = 10_000
"""Values in one document after its aliases are written out; a few lines of aliases can stand for billions."""

_STRANGE = re.compile(r"[\0\ud800-\udfff]")  # the end of a C string, and halves of characters
_TAG = "tag:yaml.org,2002:"
_DIGITS = "[0-9]+(_[0-9]+)*"
_EXPONENT = "[eE][-+]?[0-9]+"
_PLAIN: dict[str, tuple[str, Callable[[str], object]]] = {
    "null": ("~|null|Null|NULL|", lambda _: None),
    "bool": ("true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (f"[-+]?{_DIGITS}", int),
    "float": (rf"[-+]?({_DIGITS}\.({_DIGITS})?|\.{_DIGITS})({_EXPONENT})?|[-+]?{_DIGITS}{_EXPONENT}", float),
}


class YamlError(ValueError):
    """Text that is not YAML, or more of it than a run file can need."""


@dataclass
class Document:
    """What a text says, on which line, and what is wrong with it."""

    value: object = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    nodes: int = 0


class _Loader(yaml.SafeLoader):
    """Only composes nodes, to a bounded depth; what a plain scalar means is said by `_PLAIN` alone."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH + 1:
            raise YamlError(f"line {self.line + 1}: nested more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what either reading would take for something else than text; writes lists on one line."""


for _name, (_pattern, _) in _PLAIN.items():
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})\\Z"), None)


def _list_node(dumper: yaml.SafeDumper, items: list[object]) -> yaml.Node:
    return dumper.represent_sequence(f"{_TAG}seq", items, flow_style=True)


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # Only in double quotes does PyYAML escape U+0085 and its like, which it would read back as a line's end.
    return dumper.represent_scalar(f"{_TAG}str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(list, _list_node)
_Dumper.add_representer(str, _text_node)


def read_yaml(text: str) -> Document:
    """One document; YamlError where it cannot be read at all, `mistakes` where only parts of it are wrong."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        raise YamlError(_syntax_words(error)) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # "\\UFFFFFFFF", a version of 5,000 digits
        raise YamlError(f"not valid YAML: {str(error).splitlines()[0]}") from error
    document = Document()
    document.value = _value(node, (), document) if node else None
    return document


def write_yaml(value: object) -> str:
    """YAML that `read_yaml`, and any YAML 1.1 reader, reads back as `value`; keys keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def dotted(path: KeyPath) -> str:
    """`("train", "levels", 0)` as a person writes it: `train.levels[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _syntax_words(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = ", ".join(filter(None, [error.context, error.problem]))
    if "'\\t'" in problem:
        problem = "found a tab, expected spaces"
    return f"{where}not valid YAML: {problem}"


def _value(node: yaml.Node, path: KeyPath, document: Document) -> object:
    document.nodes += 1
    if len(path) > MAX_DEPTH:
        raise YamlError(f"{_line(node)}: nested more than {MAX_DEPTH} levels deep")
    if document.nodes > MAX_NODES:
        raise YamlError(f"{_line(node)}: more than {MAX_NODES:,} values; write fewer aliases")
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
        return _mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
        return [_value(item, (*path, index), document) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, path, document)
    _refuse_tag(node, path, document)
    return None


def _mapping(node: yaml.MappingNode, path: KeyPath, document: Document) -> dict[str, object]:
    section: dict[str, object] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            document.mistakes.append(f"{_named(path)}a key must be one word ({_line(key_node)})")
            continue
        key, line = key_node.value, key_node.start_mark.line + 1
        here = (*path, key)
        if key in section:
            document.mistakes.append(
                f"{dotted(here)}: written twice, on lines {document.lines[here]} and {line}; keep one"
            )
        document.lines[here] = line
        section[key] = _value(value_node, here, document)
    return section


def _scalar(node: yaml.ScalarNode, path: KeyPath, document: Document) -> object:
    name = node.tag.removeprefix(_TAG)
    if name == "str":
        if found := _STRANGE.search(node.value):
            document.mistakes.append(
                f"{_named(path)}the character {found[0]!a}, which no file's name can hold ({_line(node)})"
            )
        return str(node.value)
    pattern, convert = _PLAIN.get(name, ("", str))
    if not pattern or not re.fullmatch(pattern, node.value):
        _refuse_tag(node, path, document)
        return None
    try:
        return convert(node.value)
    except ValueError:  # Python reads no more than 4,300 digits
        document.mistakes.append(f"{_named(path)}a number of {len(node.value):,} characters ({_line(node)})")
        return None


def _refuse_tag(node: yaml.Node, path: KeyPath, document: Document) -> None:
    tag = node.tag.replace(_TAG, "!!")
    document.mistakes.append(f"{_named(path)}the tag {tag} cannot be used here; write a plain value ({_line(node)})")


def _named(path: KeyPath) -> str:
    return f"{dotted(path)}: " if path else ""


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
