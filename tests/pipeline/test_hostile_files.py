"""Files that were made to hang, to fill the memory, to start a program or to be taken for something else."""

import gzip
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.array_files import read_array
from pipeline.data.existing_tars import Tars, index_tars
from pipeline.data.image_files import load_file
from pipeline.data.shard_cache import DEFAULT
from pipeline.data.shard_images import decode, encode, shape_of
from pipeline.data.shard_index import MANIFEST, ShardIndex
from pipeline.data.shard_table import ShardTable
from pipeline.data.tar_members import read_samples
from pipeline.errors import DataError
from pipeline.files import read_arrays

END = bytes(1024)


def header(name: str, size: int | bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A ustar header with a right checksum. size: as a number, or the field as it stands."""
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    text = bytearray(512)
    text[: len(name)] = name.encode()
    text[124:136], text[156:157], text[257:265] = field, kind, b"ustar\x0000"
    text[148:156] = b" " * 8
    text[148:156] = b"%06o\0 " % sum(text)
    return bytes(text)


def base256(number: int) -> bytes:
    """GNU's form of a size that octal digits do not hold."""
    return b"\x80" + number.to_bytes(11, "big")


def pax(*records: bytes) -> bytes:
    content = b"".join(records)
    return header("pax", len(content), tarfile.XHDTYPE) + content.ljust(512, b"\0")


IMAGE = header("0.png", 10) + bytes(512)
TARS = {
    "pax records of 2^60 bytes": header("x", base256(2**60), tarfile.XHDTYPE) + IMAGE,
    "pax records that old versions of tarfile never finish": header("x", 2**18, tarfile.XHDTYPE) + b"0" * 2**18 + IMAGE,
    "global pax records of 2^33 bytes": header("x", base256(2**33), tarfile.XGLTYPE) + IMAGE,
    "a name of 2^61 bytes": header("x", base256(2**61), tarfile.GNUTYPE_LONGNAME) + IMAGE,
    "a link's name of 2^61 bytes": header("x", base256(2**61), tarfile.GNUTYPE_LONGLINK) + IMAGE,
    "3,000 pax headers in a row": pax(b"9 a=b\n   ") * 3000 + IMAGE,
    "a member of negative size, back to the beginning": pax(b"14 size=-1536\n") + header("0.png", 0),
    "a member of 2^90 bytes": header("0.png", b"\x80" + b"\xff" * 11) + bytes(512),
}


@pytest.mark.parametrize("case", TARS)
@pytest.mark.timeout(60)
def test_tars_that_would_hang_or_fill_the_memory_are_refused(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.tar").write_bytes(TARS[case] + END)
    with pytest.raises(DataError, match=r"a.tar: (not a whole, uncompressed tar|damaged)"):
        read_samples(tmp_path / "a.tar")


def test_an_image_beyond_two_tebibytes_is_refused_unread(tmp_path: Path) -> None:
    """Of a file that is a hole but for its headers: the index has 32 bits for the block that an image begins at."""
    hole = 2**41
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header("README", base256(hole)))
        file.seek(hole, io.SEEK_CUR)
        file.write(header("0.png", 10) + bytes(512))
        file.truncate(file.tell() + 1024)
    with pytest.raises(DataError, match=r"a.tar: member 0.png begins at byte 21990\d+, beyond 2 TiB; write more tars"):
        read_samples(tmp_path / "a.tar")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n%%EOF\n"


def test_a_program_in_postscript_is_no_image_whatever_its_name(tmp_path: Path) -> None:
    """PIL would have Ghostscript run it."""
    (tmp_path / "a.png").write_bytes(EPS)
    with pytest.raises(DataError, match=r"a.png: not a readable image \(cannot identify image file"):
        load_file(tmp_path / "a.png", 8, 3, "stretch")
    for read in (lambda: decode(EPS, 8, 3), lambda: shape_of(EPS)):
        with pytest.raises(DataError, match=r"not a readable image \(cannot identify image file"):
            read()


def npy(head: str, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head.encode() + content


def described(shape: str, kind: str = "'|u1'") -> str:
    return f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}\n"


ARRAYS = {
    "more than any memory": npy(described("(1000000000000000,)")),
    "a number that fits no integer": npy(described(f"({10**30},)")),
    "a truth value for a length": npy(described("(True,)"), b"x"),
    "a header that does not end": npy('{"a'),
    "a header of Python that is not indented right": npy("  a\n b\n"),
    "9,000 brackets": npy("(" * 9000),
    "objects": npy(described("(1,)", "[('a', '|O')]")),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_an_array_whose_header_lies_is_refused(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.npy").write_bytes(ARRAYS[case])
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", ARRAYS[case])
    for name in ("a.npy", "a.npz"):
        with pytest.raises(DataError, match=rf"{name}: cannot be read \(.+\); restore the file or correct the path"):
            read_array(tmp_path / name, "images")
    with pytest.raises(DataError, match=r"a.npz: no whole file of images \(.+\)"):
        read_arrays(tmp_path / "a.npz", "images")


def test_a_gzipped_file_is_not_unpacked_beyond_what_its_header_asks_for(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.gz", "wb") as file:
        file.write(b"\0\0\x08\1" + struct.pack(">I", 3))
        file.write(bytes(50_000_000))
    with pytest.raises(DataError, match=r"a.gz: 12 bytes or more, its header asks for 11; restore the file"):
        read_array(tmp_path / "a.gz", "")


def test_an_idx_file_of_more_axes_than_arrays_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.idx").write_bytes(b"\0\0\x08" + bytes([70]) + struct.pack(">I", 1) * 70 + b"x")
    with pytest.raises(DataError, match=r"a.idx: cannot be read \(maximum supported dimension"):
        read_array(tmp_path / "a.idx", "")


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"{number}.png")
            content = encode(np.full((4, 4, 3), number, np.uint8))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return index_tars(Tars([str(tmp_path / "a.tar")]), tmp_path, DEFAULT, lambda _: None)


@pytest.mark.parametrize(("key", "number"), [("samples", 4), ("heldout", 1), ("samples", 2**32 - 1)])
def test_a_table_of_another_number_of_samples_is_refused(index: ShardIndex, key: str, number: int) -> None:
    manifest = index.folder / MANIFEST
    told = json.loads(manifest.read_text())
    told["shards"][0][key] = number
    manifest.write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"\.table: not the samples that index.json counts; prepare the data again"):
        ShardIndex.load(index.folder).table(0)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": 1e999}', "9" * 5_000])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=r"index.json: not an index"):
        ShardIndex.load(tmp_path)


@pytest.mark.parametrize(("column", "value"), [("split", 2), ("label", -2)])
def test_splits_and_classes_that_there_are_not_are_refused(tmp_path: Path, column: str, value: int) -> None:
    columns = {"block": [1], "size": [1], "crc32": [1], "label": [0], "split": [0]} | {column: [value]}
    with pytest.raises(DataError, match=r"a.table: splits or classes that there are not; prepare the data again"):
        ShardTable.from_bytes(ShardTable.of(**columns).to_bytes(), tmp_path / "a.table")
