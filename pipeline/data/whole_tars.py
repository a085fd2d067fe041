"""Tars as whole files of this machine: local ones where they are, remote ones in the shard cache of the node."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import read_json, sha256_of, write_json
from .remote import is_remote
from .shard_cache import Content, ShardCache, ShardCacheConfig


class WholeTars:
    """A remote tar that has been read to its end must be the same whenever it is opened again.

    With a journal, a file, that is so in the next process, too: what was interrupted goes on by what it had fetched.
    """

    def __init__(self, config: ShardCacheConfig, journal: Path | None = None) -> None:
        self._cache = ShardCache(config)
        self._journal = journal
        self._fetched: dict[str, Any] = read_json(journal) if journal and journal.exists() else {}

    @contextmanager
    def open(self, location: str) -> Iterator[Path]:
        """The tar at this path or URL, which stays until this is left."""
        if not is_remote(location):
            yield Path(location)
            return
        key = hashlib.sha256(location.encode()).hexdigest()  # a URL may hold a signature
        known = Content(**self._fetched[key]) if key in self._fetched else None
        with self._cache.open(location, known) as file:
            path = Path(file.name)
            yield path
            if known is None:  # and what was read of it was right
                self._fetched[key] = asdict(Content(path.stat().st_size, sha256_of(path)))
                if self._journal:
                    write_json(self._journal, self._fetched)
