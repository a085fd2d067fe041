"""What a job brings along to a cluster: this tree's packages and a run file, in one archive.

The archive's bytes follow from its content alone, so that a cluster which has it already is not sent it again.
"""

import hashlib
import json
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from ..code_version import RECORD, TREE, code_version
from ..errors import ConfigError

PACKAGES = ("model", "evaluation", "pipeline")
LIMIT_BYTES = 100 * 1024**2
"""The longest request that Ray's dashboard takes (its DASHBOARD_CLIENT_MAX_SIZE)."""
_LARGE_BYTES = 10 * 1024**2
_SHOWN = 3
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip archive knows no earlier time


@dataclass(frozen=True)
class CodeTree:
    """The packages below a folder, without what is hidden or compiled."""

    folder: Path = TREE

    @cached_property
    def files(self) -> list[str]:
        """Paths from the folder, in order."""
        found = (path for package in PACKAGES for path in (self.folder / package).rglob("*") if path.is_file())
        names = (path.relative_to(self.folder) for path in found)
        return sorted(str(name) for name in names if not any(_is_left(part) for part in name.parts))

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: (self.folder / name).stat().st_size for name in self.files}

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(self.sizes.values())

    @cached_property
    def digest(self) -> str:
        """Hexadecimal sha256 of all names and contents."""
        whole = hashlib.sha256()
        for name in self.files:
            whole.update(f"{name}\0{self.sizes[name]}\0".encode())
            whole.update((self.folder / name).read_bytes())
        return whole.hexdigest()

    def __str__(self) -> str:
        size = f"{_mib(self.bytes)} in {len(self.files):,} files"
        return f"{size}; {self._largest()}" if self.bytes > _LARGE_BYTES else size

    def check(self) -> None:
        """ConfigError where this is more than a cluster takes; the archive is hardly ever larger than its files."""
        if self.bytes > LIMIT_BYTES:
            raise ConfigError(
                f"{self.folder}: the packages {', '.join(PACKAGES)} hold {_mib(self.bytes)}, and a Ray cluster takes "
                f"{_mib(LIMIT_BYTES)} with a job; {self._largest()}; move what is no code elsewhere, and name it by a "
                "path that the cluster has, or a URL"
            )

    def pack(self, archive: Path, texts: Mapping[str, str]) -> None:
        """Writes the archive: the packages, beside them `texts` by their names, and which code this is."""
        version = json.dumps(asdict(code_version(self.folder)))
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name in self.files:
                file.writestr(_entry(name), (self.folder / name).read_bytes())
            for name, text in {**texts, RECORD: version}.items():
                file.writestr(_entry(name), text)

    def _largest(self) -> str:
        """The folders that hold most, without what is in folders below them, each with its largest file."""
        folders = defaultdict[str, list[str]](list)
        for name in self.files:
            folders[str(Path(name).parent)].append(name)
        totals = {folder: sum(self.sizes[name] for name in names) for folder, names in folders.items()}
        shown = []
        for folder in sorted(totals, key=lambda each: -totals[each])[:_SHOWN]:
            first = max(folders[folder], key=lambda name: self.sizes[name])
            size = f"{folder}/ holds {_mib(totals[folder])}"
            shown.append(f"{size}, of which {Path(first).name} {_mib(self.sizes[first])}")
        return "; ".join(shown)


def _is_left(part: str) -> bool:
    return part.startswith(".") or part == "__pycache__"


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry


def _mib(number: int) -> str:
    return f"{number / 1024**2:,.1f} MiB"
