"""Inputs that are changed at random, byte by byte and piece by piece: each is refused, or means what it says.

`make test` tries a few thousand, the same ones each time; with FUZZ_S=300 each test goes on for so many seconds with
new ones. How many were tried, and what became of them, is printed (`pytest -s`). Whatever is raised but our own errors,
and an input that takes longer than its time, fails the test and leaves the input in the test's folder.
"""

import hashlib
import io
import os
import random
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.data.existing_tars import Tars, index_tars
from pipeline.data.reader import ShardReader
from pipeline.data.shard_cache import DEFAULT
from pipeline.data.shard_images import decode, encode
from pipeline.data.shard_index import MANIFEST, ShardIndex
from pipeline.data.tar_members import read_samples
from pipeline.errors import ConfigError, DataError
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import dump, load

SECONDS = float(os.environ.get("FUZZ_S", "0"))
"""How long each test goes on beyond its fixed number of inputs."""
ONE_INPUT_S = 20
"""A hundred times what the slowest takes on an idle machine."""


def inputs(fixed: int) -> Iterator[random.Random]:
    """For each input a source of draws: the first `fixed` are the same in each run."""
    until = time.monotonic() + SECONDS
    number = 0
    while number < fixed or time.monotonic() < until:
        yield random.Random(number)
        number += 1


@contextmanager
def limited() -> Iterator[None]:
    """TimeoutError in the main thread where one input takes too long."""

    def hung(*_: object) -> None:
        raise TimeoutError(f"an input took more than {ONE_INPUT_S} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(ONE_INPUT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tried(name: str, outcomes: Counter[str]) -> None:
    print(f"{name}: {outcomes.total():,} inputs tried: {dict(outcomes)}; none lost, none hung")


def changed(content: bytes, draw: random.Random, pieces: tuple[bytes, ...]) -> bytes:
    """The content after one to four changes: bytes, pieces put in, cut out, copied elsewhere, or the end cut off."""
    text = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(text) + 1)
        length = draw.choice((1, 2, 8, 100, 512, 1024))
        match draw.randrange(7):
            case 0:
                text[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                text[at : at + length] = b""
            case 2:
                text[at:at] = text[draw.randrange(len(text) + 1) :][:length]
            case 3:
                text[at : at + length] = bytes(length)
            case 4 if draw.random() < 0.3:
                del text[at:]
            case _:
                piece = draw.choice(pieces)
                text[at : at + draw.choice((0, len(piece)))] = piece
    return bytes(text)


def tar_of(draw: random.Random, strange: bool) -> tuple[bytes, dict[str, bytes]]:
    """A small tar, in one of the formats, and the images in it by their keys. strange: with odd pax records."""
    form = draw.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    images, file = {}, io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for number in range(draw.randint(1, 4)):
            key = f"{'x' * draw.choice((0, 0, 60, 90))}{number}"
            pixels = np.frombuffer(draw.randbytes(48), np.uint8).reshape(4, 4, 3)
            images[key] = encode(pixels, draw.choice(("png", "npy")))
            extension = "npy" if images[key][0] == 0x93 else "png"
            for name, content in ((f"{key}.{extension}", images[key]), (f"{key}.cls", b"%d" % number)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                if strange and form == tarfile.PAX_FORMAT and draw.random() < 0.3:
                    member.pax_headers = {draw.choice(("comment", "size", "path", "GNU.sparse.map")): "7"}
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue(), images


def rehashed(content: bytes, draw: random.Random) -> bytes:
    """Headers whose checksum is made right again after a change, so that more than the checksum is tried."""
    text = bytearray(content)
    for at in range(0, len(text) - 511, 512):
        if text[at + 257 : at + 262] == b"ustar":
            if draw.random() < 0.3:
                field, width = draw.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155)))
                value = draw.choice(
                    (b"\x80" + bytes(width), b"\xff" * width, b"7" * width, b"x", b"L", b"S", b"g", b"1", b"../", b"")
                )
                text[at + field : at + field + width] = value[:width].ljust(width, b"\0")
            text[at + 148 : at + 156] = b" " * 8
            text[at + 148 : at + 156] = b"%06o\0 " % sum(text[at : at + 512])
    return bytes(text)


def test_a_changed_tar_is_refused_or_holds_what_its_index_says(tmp_path: Path) -> None:
    """Accepted, each image lies whole within the file and reads back as it was indexed; unchanged, it is accepted."""
    pieces = (
        b"\0" * 512,
        b"ustar\0",
        b"00000000000\0",
        b"\x80\0\0\0",
        b"\xff" * 12,
        b".pkl",
        b"/../",
        b"13 size=-512\n",
    )
    tar, outcomes = tmp_path / "a.tar", Counter[str]()
    for draw in inputs(800):
        strange = draw.random() < 0.5
        whole, images = tar_of(draw, strange)
        content = changed(whole, draw, pieces) if draw.random() < 0.7 else whole
        tar.write_bytes(rehashed(content, draw) if draw.random() < 0.6 else content)
        with limited():
            try:
                samples = read_samples(tar)
                index = index_tars(Tars([str(tar)]), tmp_path / "index", DEFAULT, lambda _: None)
            except DataError:
                assert strange or tar.read_bytes() != whole
                outcomes["refused"] += 1
                continue
            assert samples
            assert len({sample.key for sample in samples}) == len(samples)
            assert all(0 < sample.offset_bytes <= tar.stat().st_size - sample.size_bytes for sample in samples)
            read = ShardReader(ShardIndex.load(tmp_path / "index"), "train", "none").read(np.arange(len(samples)))
            assert len(read) == index.count("train") == len(samples)
            if not strange and tar.read_bytes() == whole:
                assert np.array_equal(read, np.stack([decode(image, 4, 3) for image in images.values()]))
        outcomes["accepted"] += 1
    tried("tar", outcomes)
    assert outcomes["accepted"]
    assert outcomes["refused"]


@pytest.mark.parametrize("told", [False, True], ids=["as it is", "with a manifest that tells of the change"])
def test_a_changed_index_is_refused_or_reads_as_before(tmp_path: Path, told: bool) -> None:
    """told: the manifest gives the sha256 of the changed table, as one who makes an index with intent would."""
    draw = random.Random(0)
    (tmp_path / "a.tar").write_bytes(tar_of(draw, False)[0])
    before = index_tars(Tars([str(tmp_path / "a.tar")]), tmp_path, DEFAULT, lambda _: None)
    pixels = ShardReader(before, "train", "none").read(np.arange(before.count("train")))
    manifest, (table,) = tmp_path / MANIFEST, (tmp_path / "index").iterdir()
    good, good_table, outcomes = manifest.read_bytes(), table.read_bytes(), Counter[str]()
    pieces = (
        b"[" * 5_000,
        b"1e999",
        b"NaN",
        b"-1",
        b"9" * 400,
        b"9" * 5_000,
        b"null",
        b"../",
        b"\xff\xff\xff\xff",
        b'"',
    )
    for draw in inputs(1_000):
        table.unlink(missing_ok=True)
        if told:
            content = changed(good_table, draw, pieces)
            sha256 = hashlib.sha256(content).hexdigest()
            manifest.write_bytes(good.replace(before.shards[0].table_sha256.encode(), sha256.encode()))
            table = table.with_name(f"000000-{sha256[:16]}.table")
            table.write_bytes(content)
        else:
            manifest.write_bytes(changed(good, draw, pieces))
            table.write_bytes(good_table)
        with limited():
            try:
                index = ShardIndex.load(tmp_path)
                index.labels("train")
                index.check_shards(full=True)
                read = ShardReader(index, "train", "none").read(np.arange(index.count("train")))
            except DataError:
                outcomes["refused"] += 1
                continue
        assert told or np.array_equal(read, pixels[: len(read)])
        outcomes["accepted"] += 1
    tried("index", outcomes)
    assert outcomes["refused"]


# Pieces of YAML, and values that a careless reader would take for something else or choke on.
MARKS = [
    ": ",
    "- ",
    "? ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "!!python/object:os.system ",
    "!!binary ",
    "<<: *a",
    ">\n",
    "---\n",
    "...\n",
    "%YAML 9.9\n",
    "%TAG ! a\n",
    "\t",
    "#",
    "'",
    '"',
    "\r",
]
VALUES = [
    r'"\U00110000"',
    r'"\ud800"',
    r'"\0"',
    r"1e999",
    r".nan",
    r"nan",
    r"inf",
    r"-1",
    r"0",
    r"1",
    r"7",
    r"8",
    r"32",
    r"1000",
    r"1e308",
    r"1e-320",
    r"null",
    r"true",
    r"~",
    r"010",
    r"[&b [*b]]",
    r"[1, 2]",
    r"{}",
    r"{kind: ddim}",
    r"text",
]
LARGE = ("9" * 30, "9" * 400, "9" * 5_000, "{a: " * 40, "{0..999999999}")
YAML_PIECES = (*MARKS, *VALUES, *LARGE, "|\n")
YAML_BYTES = (*(piece.encode() for piece in (*YAML_PIECES, "\u2028", "\x85", "\ufeff")), b"\xed\xa0\x80", b"\xff")


def revalued(run: bytes, draw: random.Random) -> bytes:
    """The run file with another value on some of its lines, which mostly leaves it YAML."""
    lines = run.decode().splitlines()
    for _ in range(draw.choice((1, 1, 2))):
        at = draw.randrange(len(lines))
        key, colon, _ = lines[at].partition(": ")
        lines[at] = f"{key}{colon}{draw.choice((*VALUES, *LARGE[:3]))}"
    return "\n".join(lines).encode()


def test_a_changed_run_file_is_refused_or_its_dump_loads_back_equal(tmp_path: Path) -> None:
    runs = [run.read_bytes() for run in sorted((Path(pipeline.__file__).parent / "runs").glob("*.yaml"))]
    file, outcomes = tmp_path / "run.yaml", Counter[str]()
    for draw in inputs(400):
        run = draw.choice(runs)
        file.write_bytes(revalued(run, draw) if draw.random() < 0.5 else changed(run, draw, YAML_BYTES))
        overrides = [override(draw) for _ in range(draw.choice((0, 0, 1, 3)))]
        with limited():
            try:
                config = load(file, overrides, Config)
            except ConfigError:
                outcomes["refused"] += 1
                continue
            file.write_text(dump(config), encoding="utf-8")
            assert load(file, [], Config) == config
        outcomes["accepted"] += 1
    tried("run file", outcomes)
    assert outcomes["accepted"]
    assert outcomes["refused"]


def override(draw: random.Random) -> str:
    """An argument `section.key=value`, often of a key that there is."""
    section = draw.choice(
        ("", "train.", "sample.", "data.", "network.", "cluster.", "evaluate.", "sample.sampler.", "x.")
    )
    key = draw.choice(("images", "steps", "kind", "batch_size", "image_size", "seed", "source", *Config.model_fields))
    return f"{section}{key}={draw.choice(YAML_PIECES)}"
