"""Training without an index: what webdataset draws is trained on, held-out images are not, and damage is refused."""

import hashlib
import io
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydantic import ValidationError

from pipeline.data.prepare import check_prepared
from pipeline.data.reader import ShardReader
from pipeline.data.shard_cache import ShardCacheConfig
from pipeline.data.shard_images import encode
from pipeline.data.shard_index import ShardIndex
from pipeline.data.shards import pack
from pipeline.data.sources import Stream
from pipeline.data.stream import StreamFeed, StreamPlan
from pipeline.errors import DataError
from pipeline.runfile.data_config import DataConfig
from pipeline.training.checkpoint import CHECKPOINTS, Snapshot
from pipeline.training.train import Train
from pipeline.training.train_loop import Worker

from .commands import new_folder, run
from .conftest import Served
from .trainings import TINY, prepared, worker_of

IMAGES = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 1), dtype=np.uint8)
SIZES = (50, 3, 37)  # of the tars
CPU = torch.device("cpu")


def write_tar(path: Path, numbers: range, labels: bool = True, **others: bytes) -> Path:
    """The images of these numbers, of class number % 3; others: further members."""
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            members = {f"{number:04d}.png": encode(IMAGES[number])}
            members |= {f"{number:04d}.cls": b"%d" % (number % 3)} if labels else {}
            for name, content in (members | others).items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            others = {}
    return path


@pytest.fixture
def tars(tmp_path: Path) -> list[Path]:
    ends = np.cumsum(SIZES).tolist()
    return [
        write_tar(tmp_path / f"{number}.tar", range(end - size, end))
        for number, (size, end) in enumerate(zip(SIZES, ends, strict=True))
    ]


def data_of(urls: list[Any], tmp_path: Path, **source: Any) -> DataConfig:
    return DataConfig(
        source=Stream(urls=tuple(map(str, urls)), **{"reference_images": 60, "shuffle_buffer": 20} | source),
        image_size=8,
        channels=1,
        heldout_fraction=0.25,
        shard_cache=ShardCacheConfig(folder=tmp_path / "shard-cache", timeout_s=0.5),
    )


def packed(data: DataConfig, tmp_path: Path) -> ShardIndex:
    return pack(data, tmp_path / "packed", lambda *_: None)


def feed_of(data: DataConfig, index: ShardIndex, seed: int = 0) -> StreamFeed:
    plan = StreamPlan.of(data.source)
    assert plan is not None
    return StreamFeed(plan, index, data.shard_cache, seed, CPU)


def numbers_of(images: torch.Tensor) -> list[int]:
    """Which of IMAGES these are."""
    known = {image.tobytes(): number for number, image in enumerate(IMAGES)}
    return [known[image.tobytes()] for image in images.numpy()]


def all_of(index: ShardIndex, split: Any) -> npt.NDArray[np.uint8]:
    reader = ShardReader(index, split, "none")
    return reader.read(np.arange(len(reader)))


def test_the_first_images_are_the_reference_and_those_held_out_are_never_trained_on(
    tars: list[Path], tmp_path: Path
) -> None:
    data = data_of(tars, tmp_path)
    index = packed(data, tmp_path)
    heldout = set(numbers_of(torch.from_numpy(all_of(index, "heldout"))))
    train = set(numbers_of(torch.from_numpy(all_of(index, "train"))))
    assert (len(train), len(heldout)) == (45, 15)
    assert train | heldout == set(range(60))
    feed, drawn = feed_of(data, index), list[int]()
    for start in range(0, 2_000, 50):
        images, labels = feed.read(start, start + 50)
        drawn += numbers_of(images)
        assert labels.tolist() == [number % 3 for number in drawn[-50:]]
    assert set(drawn) == set(range(90)) - heldout  # the weaker promise: all in the end, but some far more often


def test_fewer_images_than_the_reference_asks_for_are_all_of_it(tars: list[Path], tmp_path: Path) -> None:
    index = packed(data_of(tars, tmp_path, reference_images=1_000), tmp_path)
    assert index.count("train") + index.count("heldout") == 90


def test_draws_are_a_function_of_the_seed_and_the_position_begun_at(tars: list[Path], tmp_path: Path) -> None:
    data = data_of(tars, tmp_path)
    index = packed(data, tmp_path)

    def drawn(seed: int, start: int) -> list[int]:
        feed = feed_of(data, index, seed)
        return [number for at in range(start, start + 96, 32) for number in numbers_of(feed.read(at, at + 16)[0])]

    assert drawn(0, 0) == drawn(0, 0)
    assert len({tuple(drawn(seed, start)) for seed in (0, 1) for start in (0, 16, 32)}) == 6


def test_more_workers_than_tars_all_have_images(tars: list[Path], tmp_path: Path) -> None:
    data = data_of(tars[:1], tmp_path, reference_images=10)
    index = packed(data, tmp_path)
    for rank in range(3):
        feed = feed_of(data, index)
        for step in range(20):
            images, labels = feed.read(24 * step + 8 * rank, 24 * step + 8 * rank + 8)
            assert images.shape == (8, 8, 8, 1)
            assert labels.shape == (8,)


def test_images_without_classes_are_streamed_without(tmp_path: Path) -> None:
    data = data_of([write_tar(tmp_path / "a.tar", range(40), labels=False)], tmp_path)
    assert feed_of(data, packed(data, tmp_path)).read(0, 16)[1].tolist() == [-1] * 16


def spoilt(tar: Path, what: str) -> None:
    if what == "cut":
        tar.write_bytes(tar.read_bytes()[:2_000])
    elif what == "pickle":
        write_tar(tar, range(5), **{"0000.pkl": b"cos\nsystem\n(S'false'\ntR."})
    elif what == "image":
        write_tar(tar, range(5), **{"x.png": encode(IMAGES[0])[:-30], "x.cls": b"1"})
    elif what == "size":
        write_tar(tar, range(5), **{"x.png": encode(np.zeros((9, 9, 1), np.uint8)), "x.cls": b"1"})
    elif what == "no class":
        write_tar(tar, range(5), labels=False)
    elif what == "class":
        write_tar(tar, range(5), **{"x.png": encode(IMAGES[80]), "x.cls": b"7"})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cut", "2.tar: (not a whole, uncompressed tar|truncated)"),
        ("pickle", "2.tar: member 0000.pkl is a pickle, which can run code"),
        ("image", "2.tar: member x.png: not a readable image"),
        ("size", "2.tar: member x.png: a 9x9 image of mode L, expected 8x8"),
        ("no class", "2.tar: member 000..png: its sample has no .cls member, unlike the first images"),
        ("class", "2.tar: member x.png: class 7, and the first images of data.source.urls have 3 classes; give"),
    ],
)
def test_a_bad_tar_is_refused_with_its_name_and_the_members(
    tars: list[Path], tmp_path: Path, what: str, message: str
) -> None:
    data = data_of(tars, tmp_path, reference_images=20)
    index = packed(data, tmp_path)
    spoilt(tars[2], what)
    feed = feed_of(data, index)
    with pytest.raises(DataError, match=message):
        feed.read(0, 2_000)


def test_a_bad_reference_is_refused_when_it_is_prepared(tars: list[Path], tmp_path: Path) -> None:
    spoilt(tars[0], "image")
    with pytest.raises(DataError, match=r"0.tar: member x.png: not a readable image"):
        packed(data_of(tars[:1], tmp_path), tmp_path)


def test_a_stream_of_nothing_but_copies_of_held_out_images_is_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", range(0))
    with tarfile.open(tar, "w") as archive:
        for number in range(30):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(encode(IMAGES[0]))
            archive.addfile(member, io.BytesIO(encode(IMAGES[0])))
    data = data_of([tar], tmp_path)
    feed = feed_of(data, packed(data, tmp_path))
    with pytest.raises(DataError, match="101 images in a row are held out, or copies of such"):
        feed.read(0, 8)


def test_what_needs_an_index_and_commands_are_refused() -> None:
    with pytest.raises(ValidationError, match="a command, which is never run"):
        Stream(urls=("pipe:cat a.tar",))
    with pytest.raises(ValidationError, match=r"order.kind blocks needs an index of all images, and source stream"):
        DataConfig.model_validate(
            {
                "source": {"kind": "stream", "urls": ["a.tar"]},
                "image_size": 8,
                "channels": 1,
                "order": {"kind": "blocks", "shards": 2},
            }
        )


def test_remote_tars_are_fetched_by_the_shard_cache_once(tars: list[Path], tmp_path: Path, served: Served) -> None:
    for tar in tars:
        tar.replace(served.folder / tar.name)
    data = data_of([f"{served.url}/{{0..2}}.tar"], tmp_path)
    index = packed(data, tmp_path)
    served.requests.clear()
    feed = feed_of(data, index)
    for start in range(0, 1_000, 50):
        feed.read(start, start + 50)
    assert sorted(set(served.requests)) == ["/0.tar", "/1.tar", "/2.tar"]
    assert len(served.requests) <= 6  # fsspec may ask for the size first


def test_a_remote_tar_that_stalls_is_given_up(tars: list[Path], tmp_path: Path, served: Served) -> None:
    tars[0].replace(served.folder / "0.tar")
    served.stall.set()
    with pytest.raises(DataError, match=r"0.tar: cannot be fetched"):
        packed(data_of([f"{served.url}/0.tar"], tmp_path), tmp_path)


def settings(tars: list[Path], **source: Any) -> dict[str, Any]:
    urls = {"kind": "stream", "urls": [str(tar) for tar in tars], "reference_images": 60, "shuffle_buffer": 20}
    return TINY | {
        "data": TINY["data"] | {"source": urls | source},
        "train": {"images": 960, "batch_size": 60, "learning_rate": 2e-3},
        "sample": {"images": 10, "sampler": {"kind": "ddim", "steps": 2}},
    }


def trained(worker: Worker, steps: int) -> Worker:
    for batch in islice(worker._batches(), steps):
        worker.step(batch)
    return worker


def state_of(worker: Worker) -> str:
    """Digest of the weights and of Adam's moments."""
    tensors = list(worker.state.network.state_dict().values())
    for moments in worker.state.optimizer.state_dict()["state"].values():
        tensors += [moments["exp_avg"], moments["exp_avg_sq"]]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def test_a_training_is_reproducible_and_its_state_goes_on_exactly(tars: list[Path], tmp_path: Path) -> None:
    of = prepared(settings(tars), tmp_path / "out", None)
    check_prepared(of)  # a batch of 60 is no more than the tars can give, though the reference has only 48
    worker = trained(worker_of(of, tmp_path / "one"), 10)
    assert state_of(trained(worker_of(of, tmp_path / "two"), 10)) == state_of(worker)
    Snapshot.of(worker.state, worker.job.identity).write(tmp_path / "one" / CHECKPOINTS)
    again = worker_of(of, tmp_path / "one")
    again.resume(again.newest_checkpoint())
    assert again.state.images_seen == 600
    assert state_of(again) == state_of(worker)
    trained(again, 100)  # which is more than are left
    assert again.state.images_seen == 960


def test_other_tars_are_another_training_of_the_same_reference(tars: list[Path], tmp_path: Path) -> None:
    first = prepared(settings(tars), tmp_path / "out", None)
    fewer = prepared(settings(tars[:2], reference_images=53), tmp_path / "out", None)
    buffered = prepared(settings(tars, shuffle_buffer=30), tmp_path / "out", None)
    assert first.results["prepare"].facts["data_digest"] == buffered.results["prepare"].facts["data_digest"]
    folders = {Train().folder(run) for run in (first, fewer, buffered)}
    tars[2].touch()
    assert len(folders | {Train().folder(first)}) == 4


@pytest.mark.slow
def test_the_command_line_streams_to_two_workers_and_scores(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """One tar for two workers."""
    tar = write_tar(tmp_path / "a.tar", range(90))
    source = f"{{kind: stream, urls: ['{tar}'], reference_images: 60, shuffle_buffer: 20}}"
    folder = new_folder(
        tmp_path_factory,
        "stream",
        f"""\
version: 1
name: tiny
data: {{source: {source}, image_size: 8, channels: 1, heldout_fraction: 0.2}}
network: {{kind: ddpm_unet, base_channels: 8, channel_multipliers: [1], blocks_per_level: 1, attention_sizes: []}}
path: {{kind: vp_cosine}}
train: {{images: 1_920, batch_size: 64, num_workers: 2, checkpoint_images: 640}}
sample: {{images: 40, sampler: {{kind: ddim, steps: 3}}}}
evaluate: {{extractor: {{kind: classifier, images: 2_000, width: 4, features: 16}}}}
register: {{model_name: ddpm-tiny}}
""",
    )
    finished = run("run", folder)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "48 images to compare with, 12 held out; 1 tars to train on" in finished.stdout
