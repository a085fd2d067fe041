"""The cache of remote shards: each comes once, whole and checked, within a limit, for all processes of a node."""

import fcntl
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from pipeline.data import remote
from pipeline.data.order import Blocks, Permutation
from pipeline.data.reader import ShardReader
from pipeline.data.shard_cache import Content, ShardCache, ShardCacheConfig
from pipeline.data.shards import pack
from pipeline.data.sources import Arrays, Shards
from pipeline.errors import DataError
from pipeline.runfile.data_config import DataConfig

from .conftest import Served
from .waiting import wait_until

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)


def quiet(done: int, total: int) -> None: ...


def content_of(content: bytes) -> Content:
    return Content(len(content), hashlib.sha256(content).hexdigest())


def shard(served: Served, name: str, size_bytes: int = 10_000) -> tuple[str, Content]:
    """Serves random bytes. -> their URL, and what they are."""
    content = np.random.default_rng(len(name) + ord(name[0])).bytes(size_bytes)
    (served.folder / name).write_bytes(content)
    return f"{served.url}/{name}", content_of(content)


def cache(folder: Path, **changes: Any) -> ShardCache:
    return ShardCache(ShardCacheConfig(folder=folder / "cache", **changes))


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cache").iterdir() if path.name != "lock")


def read(shards: ShardCache, url: str, content: Content | None) -> bytes:
    with shards.open(url, content) as file:
        return file.read()


@pytest.fixture(autouse=True)
def quick_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSE_S", 0.01)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


def test_a_shard_is_fetched_once_and_named_by_its_url_and_content(tmp_path: Path, served: Served) -> None:
    url, content = shard(served, "a.tar")
    for _ in range(3):
        assert content_of(read(cache(tmp_path), url, content)) == content
    assert served.requests == ["/a.tar"]
    assert kept(tmp_path) == [f"{hashlib.sha256(url.encode()).hexdigest()}.{content.sha256[:16]}.tar"]


def test_readers_at_once_keep_to_the_limit(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    contents = {f"memory://{number}.tar": bytes([number]) * 1000 for number in range(8)}
    for url, content in contents.items():
        memory.pipe_file(url.removeprefix("memory:/"), content)
    sizes = list[int]()

    def visit(seed: int) -> None:
        for url in np.random.default_rng(seed).permutation(list(contents)).tolist():
            assert read(cache(tmp_path, limit_bytes=5_500), url, content_of(contents[url])) == contents[url]
            with suppress(FileNotFoundError):
                sizes.append(sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(visit, range(12)))
    assert len(sizes) > 50
    assert max(sizes) <= 5_500


def test_shards_of_one_name_in_two_folders_do_not_collide(tmp_path: Path, served: Served) -> None:
    """They do in webdataset's cache, which takes the last part of the URL for the name."""
    for name in ("train", "val"):
        (served.folder / name).mkdir()
        (served.folder / name / "000.tar").write_bytes(name.encode())
    shards = cache(tmp_path)
    for name in ("train", "val", "train"):
        assert read(shards, f"{served.url}/{name}/000.tar", content_of(name.encode())) == name.encode()


def test_any_file_system_of_fsspec_will_do(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/a.tar", b"content")
    assert read(cache(tmp_path), "memory://a.tar", content_of(b"content")) == b"content"


@pytest.mark.parametrize("other", [b"content of anothersize", b"Content"])
def test_other_bytes_than_were_indexed_are_refused_and_not_kept(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, other: bytes
) -> None:
    memory.pipe_file("/a.tar", other[:7])
    with pytest.raises(DataError, match=r"memory://a.tar: \d+ bytes of sha256 \w+, the index says 8 of \w+; restore"):
        read(cache(tmp_path), "memory://a.tar", content_of(b"content."))
    assert kept(tmp_path) == []


def test_more_bytes_than_were_indexed_end_the_fetching(tmp_path: Path, served: Served) -> None:
    url, content = shard(served, "a.tar")
    served.stall.set()
    with pytest.raises(DataError, match=r"a.tar: more than the 10 bytes that the index says; index anew"):
        read(cache(tmp_path, timeout_s=30), url, Content(10, content.sha256))
    assert kept(tmp_path) == []


def test_the_shard_read_longest_ago_makes_room(tmp_path: Path, served: Served) -> None:
    shards = {name: shard(served, name) for name in ("a.tar", "b.tar", "c.tar")}
    small = cache(tmp_path, limit_bytes=25_000)
    for name in ("a.tar", "b.tar", "a.tar", "c.tar", "a.tar", "c.tar"):
        read(small, *shards[name])
    assert served.requests == ["/a.tar", "/b.tar", "/c.tar"]
    assert len(kept(tmp_path)) == 2
    read(small, *shards["b.tar"])
    assert served.requests[3:] == ["/b.tar"]


def test_a_shard_that_is_being_read_is_never_removed(tmp_path: Path, served: Served) -> None:
    (a, content_a), (b, content_b), (c, content_c) = (shard(served, name) for name in ("a.tar", "b.tar", "c.tar"))
    small = cache(tmp_path, limit_bytes=25_000, timeout_s=0.5)
    with small.open(a, content_a):
        read(small, b, content_b)
        read(small, c, content_c)  # in the place of b, although a was read longer ago
        assert Path(small._path(a, content_a.sha256)).exists()
        with (
            small.open(c, content_c),
            pytest.raises(DataError, match=r"b.tar: 10000 bytes find no room in .*raise data.shard_cache.limit_bytes"),
        ):
            read(small, b, content_b)
    assert content_of(read(small, b, content_b)) == content_b


@pytest.mark.parametrize("indexed", [True, False])
def test_a_shard_beyond_the_limit_is_refused(tmp_path: Path, served: Served, indexed: bool) -> None:
    url, content = shard(served, "a.tar")
    with pytest.raises(DataError, match=r"a.tar: 10000 bytes find no room in .*limit_bytes 9999"):
        read(cache(tmp_path, limit_bytes=9_999), url, content if indexed else None)
    assert kept(tmp_path) == []


def test_a_connection_that_ends_early_is_made_again(tmp_path: Path, served: Served) -> None:
    url, content = shard(served, "a.tar")
    served.failures = 2
    assert content_of(read(cache(tmp_path), url, content)) == content
    assert len(served.requests) == 3


def test_a_server_that_stands_still_is_given_up_within_a_finite_time(tmp_path: Path, served: Served) -> None:
    url, content = shard(served, "a.tar")
    served.stall.set()
    began_s = time.monotonic()
    with pytest.raises(DataError, match=r"a.tar: cannot be fetched \(\w+\); correct the address or access") as refusal:
        read(cache(tmp_path, timeout_s=0.3), f"{url}?signature=secret", content)
    assert time.monotonic() - began_s < 5
    assert "secret" not in str(refusal.value)
    assert kept(tmp_path) == []


def test_a_file_system_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(fsspec.AbstractFileSystem):
        protocol = "stuck"

        def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
            del rpath, lpath, options
            time.sleep(3)

    fsspec.register_implementation("stuck", Stuck, clobber=True)
    monkeypatch.setattr(remote, "_ATTEMPTS", 1)
    with pytest.raises(DataError, match=r"stuck://a.tar: cannot be fetched \(no byte for 0.3 s\)"):
        read(cache(tmp_path, timeout_s=0.3), "stuck://a.tar", content_of(b""))


def test_many_threads_fetch_a_shard_once(tmp_path: Path, served: Served) -> None:
    url, content = shard(served, "a.tar", 1_000_000)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: content_of(read(cache(tmp_path), url, content)), range(8)))
    assert found == [content] * 8
    assert served.requests == ["/a.tar"]


READER = """
import sys
from pathlib import Path
from pipeline.data.shard_cache import Content, ShardCache, ShardCacheConfig
folder, limit_bytes, rounds, *shards = sys.argv[1:]
cache = ShardCache(ShardCacheConfig(folder=Path(folder), limit_bytes=int(limit_bytes), timeout_s=30))
for _ in range(int(rounds)):
    for shard in shards:
        url, size, sha256 = shard.split("|")
        with cache.open(url, Content(int(size), sha256)) as file:
            assert len(file.read()) == int(size)
"""


def reading(folder: Path, limit_bytes: int, rounds: int, shards: list[tuple[str, Content]]) -> subprocess.Popen[bytes]:
    named = [f"{url}|{content.bytes}|{content.sha256}" for url, content in shards]
    return subprocess.Popen([sys.executable, "-c", READER, str(folder), str(limit_bytes), str(rounds), *named])


def test_processes_of_a_node_share_what_is_fetched(tmp_path: Path, served: Served) -> None:
    shards = [shard(served, f"{letter}.tar", 50_000) for letter in "abcd"]
    process = reading(tmp_path / "cache", 10**9, 1, shards[::-1])
    for url, content in shards:
        assert content_of(read(cache(tmp_path), url, content)) == content
    assert process.wait() == 0
    assert sorted(served.requests) == ["/a.tar", "/b.tar", "/c.tar", "/d.tar"]


def test_what_a_killed_process_left_is_fetched_anew_and_takes_no_room(tmp_path: Path, served: Served) -> None:
    shards = [shard(served, f"{letter}.tar") for letter in "ab"]
    served.stall.set()
    process = reading(tmp_path / "cache", 10_000, 1, shards[:1])
    while not list((tmp_path / "cache").glob("*.part")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    served.stall.clear()
    small = cache(tmp_path, limit_bytes=10_000)
    for url, content in (*shards[::-1], shards[0]):
        assert content_of(read(small, url, content)) == content
    assert len(kept(tmp_path)) == 1


def test_waiting_for_a_process_that_comes_no_further_ends(tmp_path: Path, served: Served) -> None:
    url, content = shard(served, "a.tar")
    (tmp_path / "cache").mkdir()
    impatient = cache(tmp_path, timeout_s=0.3)
    with impatient._lock_path(url).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        impatient.fill(url, content)  # prefetching leaves it to the other
        with pytest.raises(DataError, match=r"a.tar: another process fetches it, and no byte came for 0.3 s; end"):
            read(impatient, url, content)
    assert served.requests == []


def test_a_relative_folder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cache is relative, and workers start in folders of their own; give an abs"):
        ShardCacheConfig(folder=Path("cache"))


@pytest.fixture
def remote_shards(tmp_path: Path, served: Served) -> ShardReader:
    """40 images in 8 remote shards of 5."""
    np.savez(tmp_path / "a.npz", images=PIXELS)
    data = DataConfig(
        source=Arrays(images=tmp_path / "a.npz"), image_size=8, channels=3, heldout_fraction=0, shard_images=5
    )
    pack(data, served.folder, quiet)
    config = ShardCacheConfig(folder=tmp_path / "cache", prefetch=2)
    source = Shards(urls=(f"{served.url}/train-{{000000..000007}}.tar",))
    index = pack(data.model_copy(update={"source": source, "shard_cache": config}), tmp_path / "index", quiet)
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    served.requests.clear()
    return ShardReader(index, "train", "none", config)


def test_remote_images_are_read_through_the_cache(remote_shards: ShardReader, served: Served) -> None:
    np.testing.assert_array_equal(remote_shards.read(np.arange(12)), PIXELS[:12])
    np.testing.assert_array_equal(remote_shards.read(np.arange(15)), PIXELS[:15])
    assert sorted(served.requests) == [f"/train-00000{number}.tar" for number in range(3)]


@pytest.mark.parametrize("order", [Blocks(shards=2), Permutation()])
def test_the_shards_that_the_order_needs_next_are_fetched_ahead(
    tmp_path: Path, remote_shards: ShardReader, served: Served, order: Blocks | Permutation
) -> None:
    stream = order.open(remote_shards.shard_sizes, seed=1)
    ahead = stream.shards_ahead(0)
    assert len(ahead) == (4 if isinstance(order, Blocks) else 8)
    remote_shards.prefetch(ahead)
    remote_shards.prefetch(stream.shards_ahead(1))
    wait_until(lambda: len([name for name in kept(tmp_path) if name.endswith(".tar")]) == len(ahead), within_s=20)
    assert sorted(served.requests) == sorted(f"/train-{shard:06d}.tar" for shard in ahead)
    samples = stream.samples(0, 10)
    np.testing.assert_array_equal(remote_shards.read(samples), PIXELS[samples])
    assert len(served.requests) == len(ahead)


def test_what_prefetching_cannot_get_is_told_by_the_reading(remote_shards: ShardReader, served: Served) -> None:
    (served.folder / "train-000003.tar").unlink()
    remote_shards.prefetch((3, 4))
    wait_until(lambda: "/train-000004.tar" in served.requests, within_s=20)
    with pytest.raises(DataError, match=r"train-000003.tar: cannot be fetched \(FileNotFoundError|cannot be fetched"):
        remote_shards.read(np.array([17]))


def test_nothing_is_fetched_ahead_where_that_is_turned_off(remote_shards: ShardReader, served: Served) -> None:
    config = ShardCacheConfig(folder=remote_shards._shard_cache.folder, prefetch=0)
    ShardReader(remote_shards._index, "train", "none", config).prefetch((0, 1))
    time.sleep(0.2)
    assert served.requests == []


def test_no_file_and_no_lock_stays(tmp_path: Path, remote_shards: ShardReader) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    remote_shards.read(np.arange(40))
    for _ in range(3):
        remote_shards.read(np.arange(40))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 4  # connections that aiohttp keeps for later
    assert all(name.endswith(".tar") for name in kept(tmp_path))
