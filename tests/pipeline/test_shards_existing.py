"""Tars that someone else wrote: indexed where they are, or refused with the shard and the member named."""

import gc
import io
import resource
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.index_builder import heldout_mask
from pipeline.data.reader import ShardReader
from pipeline.data.shard_cache import ShardCacheConfig
from pipeline.data.shard_images import encode
from pipeline.data.shard_index import ShardIndex
from pipeline.data.shards import pack
from pipeline.data.sources import Arrays, Shards
from pipeline.data.tar_members import read_samples
from pipeline.errors import DataError
from pipeline.runfile.data_config import DataConfig

from .conftest import Served

Member = tuple[str | tarfile.TarInfo, bytes]


def quiet(done: int, total: int) -> None: ...


def random_images(count: int, size: int = 8) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def write_tar(path: Path, members: Sequence[Member], tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, content in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def labelled(images: npt.NDArray[np.uint8], prefix: str = "") -> list[Member]:
    members: list[Member] = []
    for number, image in enumerate(images):
        members += [
            (f"{prefix}{number:04d}.cls", b"%d" % (number % 3)),
            (f"{prefix}{number:04d}.png", encode(image)),
        ]
    return members


PNG = encode(random_images(1)[0])


def index(tars: Sequence[Path | str], folder: Path, heldout_fraction: float = 0.2, size: int = 8) -> ShardIndex:
    source = Shards(urls=tuple(map(str, tars)))
    data = DataConfig(
        source=source,
        image_size=size,
        channels=3,
        heldout_fraction=heldout_fraction,
        shard_cache=ShardCacheConfig(folder=folder.parent / "shard-cache"),
    )
    return pack(data, folder, quiet)


def test_local_tars_are_indexed_where_they_are(tmp_path: Path) -> None:
    images = random_images(10)
    tars = [write_tar(tmp_path / f"{n}.tar", labelled(images[5 * n : 5 * n + 5])) for n in range(2)]
    index([tmp_path / "{0..1}.tar"], tmp_path / "packed")
    made = ShardIndex.load(tmp_path / "packed")
    assert [entry.location for entry in made.shards] == [str(tar) for tar in tars]
    assert made.count("heldout") == 2
    assert made.class_names == ("0", "1", "2")
    train, heldout = ShardReader(made, "train", "none"), ShardReader(made, "heldout", "none")
    mask = heldout_mask(10, 0.2, seed=0)
    np.testing.assert_array_equal(train.read(np.arange(8)), images[~mask])
    np.testing.assert_array_equal(heldout.read(np.arange(2)), images[mask])
    np.testing.assert_array_equal(train.labels, (np.flatnonzero(~mask) % 5) % 3)


def test_the_same_images_have_the_same_digest_packed_or_found(tmp_path: Path) -> None:
    images = random_images(10)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(10) % 3)
    source = Arrays(images=tmp_path / "a.npz", labels=tmp_path / "a.npz")
    packed = pack(DataConfig(source=source, image_size=8, channels=3, heldout_fraction=0.2), tmp_path / "p", quiet)
    found = index([write_tar(tmp_path / "a.tar", labelled(images))], tmp_path / "f")
    assert packed.digest == found.digest


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG", "BMP"])
def test_images_of_any_format_are_read_as_pil_decodes_them(tmp_path: Path, form: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(random_images(1)[0]).save(buffer, form)
    made = index([write_tar(tmp_path / "a.tar", [(f"0.{form.lower()}", buffer.getvalue())])], tmp_path / "p", 0.0)
    expected = np.asarray(Image.open(io.BytesIO(buffer.getvalue())))
    np.testing.assert_array_equal(ShardReader(made, "train", "none").read(np.arange(1))[0], expected)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_and_what_webdataset_skips_are_understood(tmp_path: Path, tar_format: int) -> None:
    folder = tarfile.TarInfo("data")
    folder.type = tarfile.DIRTYPE
    long = "n" * 90 if tar_format == tarfile.USTAR_FORMAT else "n" * 300
    members: list[Member] = [
        (folder, b""),
        ("__meta__/0.png", PNG),
        ("data/README", b"no extension"),
        ("data/._0.png", b"left by another system"),
        (f"data/{long}.PNG", PNG),
        (f"data/{long}.json", b"{}"),
        ("data.v2/0.image.png", PNG),
        ("data.v2/0.cls", b"5\n"),
    ]
    samples = read_samples(write_tar(tmp_path / "a.tar", members, tar_format))
    assert [(sample.key, sample.label) for sample in samples] == [(f"data/{long}", -1), ("data.v2/0", 5)]
    content = (tmp_path / "a.tar").read_bytes()
    assert all(content[s.offset_bytes : s.offset_bytes + s.size_bytes] == PNG for s in samples)
    theirs = [sample["__key__"] for sample in webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)]
    gc.collect()  # it leaves the shard to the garbage collector to close
    assert theirs[1:] == [sample.key for sample in samples]  # its first is data/, of the hidden file


def test_a_tar_cut_anywhere_is_refused_or_has_lost_nothing(tmp_path: Path) -> None:
    """Beyond the end-of-archive marker there is only padding, which may go."""
    whole = write_tar(tmp_path / "whole.tar", labelled(random_images(12)))
    content, samples = whole.read_bytes(), read_samples(whole)
    marker_end = len(content.rstrip(b"\0")) // 512 * 512 + 512 + 1024
    assert marker_end < len(content)
    cuts = sorted({*range(0, len(content), 131), *range(0, len(content), 512), marker_end - 1, marker_end})
    cut_tar = tmp_path / "cut.tar"
    for cut in cuts:
        cut_tar.write_bytes(content[:cut])
        if cut >= marker_end:
            assert read_samples(cut_tar) == samples
            continue
        with pytest.raises(DataError, match=r"cut.tar: (not a whole|truncated|damaged)"):
            read_samples(cut_tar)
    assert len(cuts) > 200


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    whole = tmp_path / "whole.tar"
    if not whole.exists():
        write_tar(whole, [(f"{n}.png", encode(image)) for n, image in enumerate(random_images(4))])
        index([whole], tmp_path / "whole")
    content = bytearray(whole.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    changed = tmp_path / "changed.tar"
    changed.write_bytes(content)
    outcome = digest_or_refusal(changed)
    assert outcome == ShardIndex.load(tmp_path / "whole").digest or str(changed) in outcome


def digest_or_refusal(tar: Path) -> str:
    try:
        return index([tar], tar.with_suffix("")).digest
    except DataError as error:
        return str(error)


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


BAD_MEMBERS: dict[str, tuple[list[Member], str]] = {
    "no members": ([], "no samples; expected members such as"),
    "no samples": ([("README", b"text")], "no samples; expected members such as"),
    "no image": ([("0.cls", b"1"), ("1.png", PNG)], r"sample 0 has 0 images \(cls\), expected one"),
    "two images": ([("0.png", PNG), ("0.jpg", PNG)], r"sample 0 has 2 images \(png, jpg\), expected one"),
    "key twice": ([("0.png", PNG), ("1.png", PNG), ("0.png", PNG)], "sample 0 is there twice"),
    "extension twice": ([("0.png", PNG), ("0.png", PNG)], "sample 0 is there twice"),
    "parts apart": ([("0.png", PNG), ("1.png", PNG), ("0.cls", b"1")], r"twice \(member 0.cls\)"),
    "label is a word": ([("0.cls", b"dog"), ("0.png", PNG)], "0.cls holds b'dog', expected a class number"),
    "label is negative": ([("0.cls", b"-1"), ("0.png", PNG)], "0.cls holds b'-1', expected a class number"),
    "label is empty": ([("0.cls", b""), ("0.png", PNG)], "0.cls holds b'', expected a class number"),
    "label is endless": (
        [("0.cls", b"1" * 400), ("0.png", PNG)],
        "0.cls holds b'1+', expected a class number",
    ),
    "parent folder": ([("a/../../0.png", PNG)], r"member a/../../0.png points outside the archive"),
    "absolute path": ([("/etc/0.png", PNG)], "member /etc/0.png points outside the archive"),
    "symbolic link": (
        [(link("0.png", tarfile.SYMTYPE), b"")],
        "member 0.png is a link, device or sparse file",
    ),
    "hard link": ([("1.png", PNG), (link("0.png", tarfile.LNKTYPE), b"")], "member 0.png is a link, device"),
    "device": ([(link("0.png", tarfile.CHRTYPE), b"")], "member 0.png is a link, device or sparse file"),
    "link out of the archive": (
        [(link("0/..data", tarfile.SYMTYPE), b""), ("0.png", PNG)],
        "member 0/..data is a link, device or sparse file",
    ),
    **{
        f"pickle .{extension}": ([("0.png", PNG), (f"0.{extension}", b"")], f"member 0.{extension} is a pickle, which")
        for extension in ("pkl", "pickle", "pyd", "pth", "pt", "joblib", "dill", "PKL", "extra.pkl")
    },
}


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_bad_members_are_refused_by_name(tmp_path: Path, case: str) -> None:
    members, message = BAD_MEMBERS[case]
    with pytest.raises(DataError, match=rf"bad.tar: .*{message}"):
        read_samples(write_tar(tmp_path / "bad.tar", members))


def test_a_picture_of_30000_by_30000_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """It would take 2.7 GB. 900 MB of zeros a channel pack into a few kilobytes of PNG."""
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tar = write_tar(tmp_path / "bomb.tar", [("0.png", PNG), ("1.png", bomb_png(30_000))])
    with pytest.raises(DataError, match=r"bomb.tar: member 1.png: not a readable image \(Image size \(900000000"):
        index([tar], tmp_path / "p", 0.0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 200_000


def test_an_image_larger_than_asked_for_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """Below the size that PIL itself refuses. Its pixels are not even there."""
    tar = write_tar(tmp_path / "large.tar", [("0.png", bomb_png(9_000)[:100])])
    with pytest.raises(DataError, match=r"large.tar: member 0.png: a 9000x9000 image of mode RGB, expected 8x8"):
        index([tar], tmp_path / "p", 0.0)


def bomb_png(side: int) -> bytes:
    """A PNG of side x side black pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000_000))  # as many as any decoder should look at
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_member_too_large_for_any_image_is_refused_unread(tmp_path: Path) -> None:
    member = tarfile.TarInfo("0.png")
    member.size = 2**30 + 1
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(member.tobuf())
        file.truncate(512 + 2**30 + 512 + 1024)  # of a hole in the file
    with pytest.raises(DataError, match=r"a.tar: member 0.png has 1073741825 bytes, expected an image of at most 1"):
        read_samples(tmp_path / "a.tar")


@pytest.mark.parametrize("url", ["{0..9999999999}.tar", "{a,b}" * 40, "{{a},b}" * 40])
def test_braces_that_stand_for_more_names_than_memory_holds_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"its braces stand for up to [\d,]+ names; list fewer, or use a glob"):
        Shards(urls=(url,))


@pytest.mark.parametrize("url", ["pipe:cat a.tar", "pipe:curl http://host/a.tar", "{a.tar,pipe:cat a.tar}", " pipe:x"])
def test_a_command_in_place_of_a_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"pipe:.*: a command, which is never run; give the tars' own paths"):
        Shards(urls=(url,))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of what webdataset leaves open
def test_a_cut_at_any_of_300_places_never_passes_where_webdataset_alone_lets_many_through(tmp_path: Path) -> None:
    """What webdataset is silent about is a set with fewer or incomplete samples and no exception."""
    whole = write_tar(tmp_path / "whole.tar", labelled(random_images(50, size=32)))
    content, made = whole.read_bytes(), index([whole], tmp_path / "whole", size=32)
    marker_end = len(content.rstrip(b"\0")) // 512 * 512 + 512 + 1024
    cuts = np.linspace(1, marker_end - 1, 300).astype(int).tolist()
    silent = 0
    for cut in cuts:
        whole.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"whole.tar: (not a whole|truncated|damaged)"):
            read_samples(whole)
        with pytest.raises(DataError, match=rf"whole.tar: {cut} bytes, the index says {len(content)}"):
            made.check_shards()
        silent += passes_webdataset(whole)
    assert len(set(cuts)) == 300
    print(f"webdataset alone lets {silent} of 300 cuts pass: {silent / 3:.0f} %")
    assert silent > 30


def passes_webdataset(tar: Path) -> bool:
    try:
        for _ in webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False):
            pass
    except Exception:
        return False
    finally:
        gc.collect(0)
    return True


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(DataError, match=r"a.tar: not a whole, uncompressed tar"):
        read_samples(tmp_path / "a.tar")


def test_joined_tars_are_refused(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "one.tar", [("0.png", PNG)]).read_bytes()
    (tmp_path / "two.tar").write_bytes(one + one)
    with pytest.raises(DataError, match=r"two.tar: data after the end-of-archive marker at byte \d+; split joined"):
        read_samples(tmp_path / "two.tar")


def test_a_damaged_header_is_refused_where_it_lies(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [("0.png", PNG), ("1.png", PNG)])
    second = read_samples(tar)[1].offset_bytes - 512
    content = bytearray(tar.read_bytes())
    content[second] ^= 1
    tar.write_bytes(content)
    with pytest.raises(DataError, match=rf"a.tar: damaged at byte {second}: neither a member nor the end"):
        read_samples(tar)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a png", "member 0.png: not a readable image"),
        (b"", "member 0.png: not a readable image"),
        (PNG[:-40], "member 0.png: not a readable image"),
        (
            encode(np.zeros((8, 9, 3), np.uint8)),
            "member 0.png: a 9x8 image of mode RGB, expected 8x8 of mode RGB",
        ),
        (
            encode(np.zeros((8, 8, 1), np.uint8)),
            "member 0.png: a 8x8 image of mode L, expected 8x8 of mode RGB",
        ),
    ],
)
def test_an_image_of_the_wrong_content_size_or_mode_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    tar = write_tar(tmp_path / "a.tar", [("0.png", content), ("1.png", PNG)])
    with pytest.raises(DataError, match=rf"{tar}: {message}"):
        index([tar], tmp_path / "p", 0.0)


@pytest.mark.parametrize(("first", "found"), [(True, "no"), (False, "a")])
def test_labels_for_some_images_only_are_refused(tmp_path: Path, first: bool, found: str) -> None:
    members: list[tuple[str, list[Member]]] = [
        ("with.tar", [("0.cls", b"1"), ("0.png", PNG)]),
        ("without.tar", [("1.png", PNG)]),
    ]
    tars = [write_tar(tmp_path / name, some) for name, some in (members if first else members[::-1])]
    with pytest.raises(DataError, match=rf"{tars[1]}: sample \d has {found} .cls member, unlike \d of {tars[0]}"):
        index(tars, tmp_path / "p", 0.0)


def test_labels_beyond_the_names_are_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", labelled(random_images(3)))
    data = DataConfig(source=Shards(urls=(str(tar),), class_names=("a", "b")), image_size=8, channels=3)
    with pytest.raises(DataError, match=r"a.tar \(data.source.urls\): labels from 0 to 2, expected 0 to 1"):
        pack(data, tmp_path / "p", quiet)


def test_remote_tars_are_fetched_once_and_indexed(tmp_path: Path, served: Served) -> None:
    images = random_images(6)
    for number in range(2):
        write_tar(served.folder / f"{number}.tar", labelled(images[3 * number : 3 * number + 3]))
    first = index([f"{served.url}/{{0,1}}.tar"], tmp_path / "p")
    assert served.requests == ["/0.tar", "/1.tar"]
    tars = [served.folder / "0.tar", served.folder / "1.tar"]
    assert first.digest == index(tars, tmp_path / "l").digest
    assert [entry.location for entry in first.shards] == [f"{served.url}/0.tar", f"{served.url}/1.tar"]
    assert (tmp_path / "p/index.json").stat().st_mode & 0o077 == 0  # a URL may be signed
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["files.json", "index", "index.json"]


def test_indexing_that_was_interrupted_fetches_no_tar_again(tmp_path: Path, served: Served) -> None:
    write_tar(served.folder / "0.tar", labelled(random_images(3)))
    with pytest.raises(DataError, match=r"absent.tar: cannot be fetched"):
        index([f"{served.url}/{{0,absent}}.tar"], tmp_path / "p")
    write_tar(served.folder / "absent.tar", labelled(random_images(4)))
    index([f"{served.url}/{{0,absent}}.tar"], tmp_path / "p")
    assert served.requests.count("/0.tar") == 1


def test_indexing_again_fetches_what_may_have_changed(tmp_path: Path, served: Served) -> None:
    tar = write_tar(served.folder / "0.tar", labelled(random_images(3)))
    first = index([f"{served.url}/0.tar"], tmp_path / "p")
    write_tar(tar, labelled(random_images(4)[1:]))
    second = index([f"{served.url}/0.tar"], tmp_path / "p")
    assert first.shards[0].bytes == second.shards[0].bytes
    assert first.digest != second.digest
    with pytest.raises(DataError, match=r"0.tar: \d+ bytes of sha256 \w+, the index says \d+ of \w+; restore"):
        reader(first, tmp_path / "another").read(np.arange(2))


def reader(made: ShardIndex, folder: Path) -> ShardReader:
    return ShardReader(made, "train", "none", ShardCacheConfig(folder=folder))


def test_a_remote_tar_that_is_not_whole_is_refused_and_not_kept(tmp_path: Path, served: Served) -> None:
    whole = write_tar(served.folder / "a.tar", labelled(random_images(6))).read_bytes()
    (served.folder / "a.tar").write_bytes(whole[:2048])
    with pytest.raises(DataError, match=r"http://.*/a.tar: truncated: 2048 bytes"):
        index([f"{served.url}/a.tar"], tmp_path / "p")
    (served.folder / "a.tar").write_bytes(whole)
    assert len(index([f"{served.url}/a.tar"], tmp_path / "p").table(0)) == 6


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{url}/absent.tar", r"http://127.0.0.1:\d+/absent.tar: cannot be fetched"),
        ("{url}/absent.tar?token=secret", r"http://127.0.0.1:\d+/absent.tar: cannot be fetched \(FileNotFoundError\)"),
        (
            "nosuch://user:secret@host/a.tar?token=secret",
            r"^nosuch://host/a.tar: cannot be fetched \(ValueError\)",
        ),
    ],
)
def test_a_remote_tar_that_cannot_be_fetched_is_refused_without_its_secrets(
    tmp_path: Path, served: Served, url: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as refusal:
        index([url.format(url=served.url)], tmp_path / "p")
    assert "secret" not in str(refusal.value)
    assert list((tmp_path / "p").iterdir()) == []
