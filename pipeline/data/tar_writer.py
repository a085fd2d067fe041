"""Webdataset tars, whole or absent, of which the same samples make the same bytes."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from webdataset import TarWriter

from evaluation.atomic import whole_file


def write_tar(path: Path, samples: Iterable[Mapping[str, str | bytes]]) -> None:
    """One tar, durable when this returns: no times, no user names. samples: `__key__` and the members by extension."""
    with (
        whole_file(path) as draft,
        draft.open("wb") as file,
        TarWriter(file, encoder=False, mtime=0, user="", group="") as writer,
    ):
        for sample in samples:
            writer.write(sample)
