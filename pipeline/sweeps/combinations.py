"""`key=a,b,c` on the command line: every combination of such values, each of them a whole configuration."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from textwrap import indent

from ..errors import ConfigError
from ..files import digest
from ..runfile.config import Config
from ..runfile.configfile import flatten, load
from ..runfile.keyroles import identity
from ..runfile.yamltext import read_yaml

_SECTIONS = ("sample", "evaluate")  # what comes after the checkpoint, which all combinations share
_PIECE = re.compile(r"""(?<![^\s,\[{:])(?:"(?:\\.|[^"\\])*"|'[^']*')|.""", re.DOTALL)  # what is quoted, or a character


@dataclass(frozen=True)
class Combination:
    """One value for each key that has several, and the configuration that they make."""

    settings: Mapping[str, str]
    """Dotted key -> value as it was written. A value that is a section stands here key by key."""
    config: Config


def combine(file: Path, overrides: Sequence[str]) -> list[Combination]:
    """The product of all values, the first key outermost. Of combinations that come to the same, the first.

    ConfigError lists all that is wrong with the keys; where nothing is, every combination that `load` refuses.
    """
    arguments = [_argument(override) for override in overrides]
    _check_keys(arguments)
    combinations: dict[str, Combination] = {}
    refused: dict[str, list[str]] = {}
    for written in product(*(argument.overrides for argument in arguments)):
        chosen = [text for argument, text in zip(arguments, written, strict=True) if len(argument.overrides) > 1]
        try:
            config = load(file, written, Config)
        except ConfigError as error:
            refused.setdefault(str(error), []).append(" ".join(chosen))
        else:
            combinations.setdefault(digest(identity(config)), Combination(_settings(chosen), config))
    if refused:
        raise ConfigError(_refusal(refused))
    return list(combinations.values())


def split_values(text: str) -> list[str]:
    """The values between the commas of `text`; a comma within brackets, braces or quotes parts nothing."""
    values, depth = [""], 0
    for piece in _PIECE.findall(text):
        depth = max(0, depth + (piece in "[{") - (piece in "]}"))
        if piece == "," and depth == 0:
            values.append("")
        else:
            values[-1] += piece
    return [value.strip() for value in values]


@dataclass(frozen=True)
class _Argument:
    """One argument of the command line, as an override for each of its values."""

    key: str
    overrides: list[str]


def _argument(text: str) -> _Argument:
    key, equals, values = text.partition("=")
    return _Argument(key, [f"{key}={value}" for value in split_values(values)] if equals else [text])


def _check_keys(arguments: Sequence[_Argument]) -> None:
    mistakes = []
    for number, argument in enumerate(arguments):
        key, count = argument.key, len(argument.overrides)
        if count == 1:
            continue
        if key.partition(".")[0] not in _SECTIONS:
            mistakes.append(
                f"{key}: found {count} values, expected one; all combinations share one checkpoint, so only keys of "
                f"{' and '.join(_SECTIONS)} take several: use 'run' for each value, or put one with commas in quotes"
            )
        if f"{key}=" in argument.overrides:
            mistakes.append(f"{key}: nothing between two commas; remove one, or write null")
        for later in arguments[number + 1 :]:
            if f"{key}.".startswith(f"{later.key}."):
                mistakes.append(f"{key}: {later.key} comes later and replaces it; give one of them")
    if mistakes:
        count_words = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ConfigError("\n  ".join([f"sweep: {count_words} in the keys", *mistakes]))
    if all(len(argument.overrides) == 1 for argument in arguments):
        raise ConfigError("sweep: no key has several values; give them, such as sample.sampler.steps=5,10,20,50")


def _refusal(refused: Mapping[str, Sequence[str]]) -> str:
    """Each message once, under the combinations that it refuses."""
    count = sum(map(len, refused.values()))
    lines = [f"sweep: {count} combination{'s are' if count > 1 else ' is'} refused"]
    for message, combinations in refused.items():
        lines += [indent("\n".join(combinations), "  "), indent(message, "    ")]
    return "\n".join(lines)


def _settings(chosen: Sequence[str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for override in chosen:
        key, _, value = override.partition("=")
        meaning = read_yaml(value).value
        settings |= flatten(meaning, f"{key}.") if isinstance(meaning, dict) else {key: value}
    return settings
