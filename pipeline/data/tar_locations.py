"""Which tars are meant by paths, globs and URLs."""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from braceexpand import braceexpand

from ..errors import DataError
from .remote import is_remote, shown

_MAX_CHARACTERS = 100_000_000  # of the names of all tars: a million of a hundred each
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


def tar_locations(urls: Iterable[str], where: str) -> list[str]:
    """Every tar of these paths, globs and URLs once, in order. where: the key or argument, for a refusal."""
    found = [url for some in expanded(urls) for url in ([some] if is_remote(some) else _local_tars(some, where))]
    for first, second in itertools.pairwise(sorted(found)):
        if first == second:
            raise DataError(f"{shown(first)}: listed twice in {where}; list each shard once")
    return found


def expanded(urls: Iterable[str]) -> list[str]:
    """Each URL that the braces stand for. ValueError for one that webdataset would run as a shell command."""
    for pattern in urls:
        if (most := _most(pattern)) * len(pattern) > _MAX_CHARACTERS:
            raise ValueError(f"{pattern[:60]}: its braces stand for up to {most:,} names; list fewer, or use a glob")
    found = [url for pattern in urls for url in braceexpand(pattern)]
    for url in found:
        if url.lstrip().startswith("pipe:"):
            raise ValueError(f"{url}: a command, which is never run; give the tars' own paths or s3, gs, http URLs")
    return found


def _most(pattern: str) -> int:
    """No fewer names than the braces stand for: the product of all their choices, though some of them add up."""
    most = 1
    while groups := _BRACES.findall(pattern):
        for group in groups:
            ends = _RANGE.match(group)
            most *= abs(int(ends[2]) - int(ends[1])) + 1 if ends else group.count(",") + 1
        pattern = _BRACES.sub("", pattern)
    return most


def _local_tars(pattern: str, where: str) -> list[str]:
    path = Path(pattern.removeprefix("file://")).expanduser().absolute()
    found = [path] if path.is_file() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not found:
        raise DataError(f"{pattern}: no such shard; correct {where}")
    return [str(tar) for tar in found]
