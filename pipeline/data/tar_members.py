"""The samples of a webdataset tar, found by reading every header: strict where `webdataset` itself is silent.

`tarfile`, and so webdataset, takes a damaged or cut header for the end of the archive. Here it ends
with its end-of-archive marker (two blocks of zeros, POSIX ustar) or is refused.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from ..errors import DataError
from .image_files import IMAGE_EXTENSIONS
from .shard_images import ARRAY_EXTENSION
from .shard_table import BLOCK_BYTES

_METADATA = re.compile("__[^/]*__($|/)")  # what webdataset skips
_MARKER_BYTES = 2 * BLOCK_BYTES
_LABEL_BYTES = 18  # decimal digits that surely fit an int64
_IMAGE_BYTES = 1 << 30  # no encoded image of any use is larger, and it is read into memory whole
_EXTENSION_BYTES = 1 << 13  # two paths of 4,096 bytes; some versions of `tarfile` take the square of its length to read
_TAR_BYTES = BLOCK_BYTES << 32  # where a table can still say that an image begins
_EXTENSIONS = frozenset([tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
_EXTENSIONS |= {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
_CODE = frozenset(["dill", "joblib", "pickle", "pkl", "pt", "pth", "pyd"])  # webdataset unpickles some of these


@dataclass(frozen=True, slots=True)
class TarSample:
    """Where the image of one sample lies in its tar, and its class (-1: no `.cls` member)."""

    key: str
    member: str
    """Name of the image in the tar."""
    offset_bytes: int
    size_bytes: int
    label: int


def read_samples(path: Path, name: str = "") -> list[TarSample]:
    """Every sample of the tar, in order, grouped as webdataset does. Reads headers and labels, no image.

    name: what refusals call it; empty: its path.
    """
    tar = name or str(path)
    members = _members(path, tar)
    with path.open("rb") as file:
        samples = [_sample(tar, file.fileno(), key, fields) for key, fields in _grouped(tar, members)]
    if not samples:
        raise DataError(f"{tar}: no samples; expected members such as 000000.png and 000000.cls")
    return samples


class _Header(tarfile.TarInfo):
    """One header; `tarfile` reads what extends the next one (a long name, pax records) into memory, as it promises."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENSIONS and header.size > _EXTENSION_BYTES:
            raise tarfile.ReadError(f"{header.size} bytes that extend a header, expected at most {_EXTENSION_BYTES}")
        return header


def _members(path: Path, tar: str) -> list[tarfile.TarInfo]:
    try:
        members = []
        with tarfile.open(path, "r:", tarinfo=_Header) as archive:
            for member in archive:
                if member.size < 0:  # it would lead back, and round and round
                    raise tarfile.ReadError(f"member {member.name} has {member.size} bytes")
                members.append(member)
            end = archive.offset  # where tarfile found no further member, for whatever reason
        with path.open("rb") as file:
            _check_end(tar, file.fileno(), end)
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{tar}: not a whole, uncompressed tar ({error}); restore or unpack it") from error
    return members


def _check_end(tar: str, file: int, end: int) -> None:
    """After the last member come the end-of-archive marker and then nothing but zeros."""
    marker = os.pread(file, _MARKER_BYTES, end)
    if any(marker):
        raise DataError(f"{tar}: damaged at byte {end}: neither a member nor the end of the archive; restore it")
    if len(marker) < _MARKER_BYTES:
        found_bytes = os.fstat(file).st_size
        raise DataError(f"{tar}: truncated: {found_bytes} bytes, no end-of-archive marker at byte {end}; restore it")
    while tail := os.pread(file, 1 << 20, end):
        if tail.count(0) != len(tail):
            raise DataError(f"{tar}: data after the end-of-archive marker at byte {end}; split joined tars apart")
        end += len(tail)


def _grouped(tar: str, members: list[tarfile.TarInfo]) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """(key, members by extension) of each run with one key, which ends at the file name's first dot."""
    seen: set[str] = set()
    current, fields = "", dict[str, tarfile.TarInfo]()
    for member in members:
        key, extension = _key_and_extension(tar, member)
        if not extension:
            continue
        if key != current and fields:
            yield current, fields
            fields = {}
        if extension in fields or (key != current and key in seen):
            raise DataError(f"{tar}: sample {key} is there twice (member {member.name}); every key must be unique")
        seen.add(key)
        current, fields[extension] = key, member
    if fields:
        yield current, fields


def _key_and_extension(tar: str, member: tarfile.TarInfo) -> tuple[str, str]:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{tar}: member {member.name} points outside the archive; such a tar is not trusted")
    if member.isdir() or _METADATA.match(member.name):
        return "", ""
    if not member.isreg() or member.issparse():
        raise DataError(f"{tar}: member {member.name} is a link, device or sparse file; expected plain files only")
    folder, slash, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")
    # No stem: a hidden file such as macOS's ._0.png, of which webdataset would make a sample of its own.
    extension = extension.lower()
    if extension.rpartition(".")[2] in _CODE:
        raise DataError(f"{tar}: member {member.name} is a pickle, which can run code; rebuild the shard without it")
    return (folder + slash + stem, extension) if stem else ("", "")


def _sample(tar: str, file: int, key: str, fields: dict[str, tarfile.TarInfo]) -> TarSample:
    images = _of_kind(fields, IMAGE_EXTENSIONS) or _of_kind(fields, frozenset([ARRAY_EXTENSION]))
    if len(images) != 1:
        found = ", ".join(fields)
        raise DataError(f"{tar}: sample {key} has {len(images)} images ({found}), expected one; rebuild the shard")
    image = images[0]
    if image.size > _IMAGE_BYTES:
        raise DataError(f"{tar}: member {image.name} has {image.size} bytes, expected an image of at most 1 GiB")
    if image.offset_data >= _TAR_BYTES:
        raise DataError(f"{tar}: member {image.name} begins at byte {image.offset_data}, beyond 2 TiB; write more tars")
    label = _label(tar, file, fields["cls"]) if "cls" in fields else -1
    return TarSample(key, image.name, image.offset_data, image.size, label)


def _of_kind(fields: dict[str, tarfile.TarInfo], extensions: frozenset[str]) -> list[tarfile.TarInfo]:
    return [member for extension, member in fields.items() if extension.rpartition(".")[2] in extensions]


def _label(tar: str, file: int, member: tarfile.TarInfo) -> int:
    text = os.pread(file, min(member.size, _LABEL_BYTES), member.offset_data).strip()
    if member.size > _LABEL_BYTES or not text.isdigit():
        raise DataError(f"{tar}: {member.name} holds {text!r}, expected a class number from 0; rebuild the shard")
    return int(text)
