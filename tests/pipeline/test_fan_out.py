"""The pool of actors: it grows into room, an idle one takes over, and the same images come out whoever draws them."""

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import save_file

from evaluation import Classifier, save_classifier
from evaluation.classifier import Architecture, ClassifierNetwork
from model import DDIM, DDPMUNet, ModelSpec, VPCosine
from pipeline.clusters.cluster import Cluster
from pipeline.clusters.fan_out import actor_pool, fan_out
from pipeline.features.features import Extraction
from pipeline.files import read_arrays, sha256_of
from pipeline.runfile.config import ClusterConfig, SampleConfig
from pipeline.sampling.chunks import Chunks, ChunkTask
from pipeline.sampling.drawer import Drawer, Equipment
from pipeline.training.checkpoint import SPEC, WEIGHTS
from pipeline.training.trained_model import ModelFolders

from .trainings import kill
from .waiting import wait_until

MODEL = ModelSpec(
    image_size=8,
    channels=1,
    network=DDPMUNet(base_channels=8, channel_multipliers=(1,), blocks_per_level=1, attention_sizes=()),
    path=VPCosine(),
)
WAIT_S = 200


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One of seven CPUs, as it believes."""
    ray.init("local", num_cpus=7, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 1024**2)
    yield Cluster(ClusterConfig(timeout_s=WAIT_S), 7, 0)
    ray.shutdown()


def worker() -> type:
    """A class that is sent to the workers as it is: they need not find this file."""

    class Worker:
        def ready(self) -> None: ...

        def sleep(self, seconds: float) -> None:
            time.sleep(seconds)

        def stumble(self, marks: Path) -> None:
            """Hangs, where nobody has before."""
            try:
                marks.touch(exist_ok=False)
            except FileExistsError:
                return
            time.sleep(600)

    return Worker


def test_an_actor_joins_as_soon_as_there_is_room(cluster: Cluster) -> None:
    other = ray.remote(num_cpus=6)(worker()).remote()
    ray.get(other.ready.remote())
    with actor_pool(cluster, (1, 2), worker()) as pool:
        assert (len(pool.ready), len(pool.starting)) == (1, 1)
        done = fan_out(pool, [0.1] * 1000, "sleep", "sample", WAIT_S)
        next(done)
        ray.kill(other)
        wait_until(lambda: next(done) and len(pool.ready) == 2, within_s=WAIT_S, every_s=0)


def test_an_idle_actor_takes_over_what_another_hangs_on(cluster: Cluster, tmp_path: Path) -> None:
    tasks = [tmp_path / name for name in "abc"]
    for calm in tasks[1:]:
        calm.touch()
    with actor_pool(cluster, (2, 2), worker()) as pool:
        assert sorted(fan_out(pool, tasks, "stumble", "sample", WAIT_S)) == tasks


def save_model(folder: Path) -> ModelFolders:
    torch.manual_seed(0)
    save_file(MODEL.build().state_dict(), folder / WEIGHTS)
    (folder / SPEC).write_text(MODEL.model_dump_json())
    return ModelFolders(folder, None, folder / WEIGHTS)


def save_extractor(path: Path) -> Extraction:
    torch.manual_seed(0)
    shape = Architecture(image_size=8, channels=1, classes=10, width=4, features=16)
    save_classifier(ClassifierNetwork(shape).eval(), path)
    return Extraction(Classifier(), path, sha256_of(path))


def fingerprint(chunks: Chunks, digest: str) -> str:
    """sha256 of all pixels and features of the set."""
    found = hashlib.sha256(chunks.read_all(chunks.config.images).tobytes())
    for batch in chunks.batches():
        for array in read_arrays(chunks.features(digest).path(batch), "pool", "logits"):
            found.update(array.tobytes())
    return found.hexdigest()


def draw(cluster: Cluster, folder: Path, actors: int, order: list[int], extraction: Extraction, deaths: int) -> str:
    """The set drawn by so many actors, of which some are killed on the way. -> its fingerprint."""
    config = SampleConfig(images=59, chunk_images=5, sampler=DDIM(steps=20, eta=1))
    chunks = Chunks(folder, config, "cpu")
    equipment = Equipment.of(config, save_model(folder), "cpu", extraction)
    with actor_pool(cluster, (actors, actors), Drawer, equipment, 1) as pool, ThreadPoolExecutor(1) as elsewhere:
        killed = elsewhere.submit(kill_some, folder, deaths)
        tasks = [ChunkTask(chunks, number) for number in [*order, *order[:3]]]  # the last ones are duplicates
        drawn = [task.number for task in fan_out(pool, tasks, "draw", "sample", WAIT_S)]
        assert sorted(drawn) == sorted(task.number for task in tasks)
        killed.result()
    return fingerprint(chunks, extraction.digest)


def kill_some(folder: Path, deaths: int) -> None:
    for number in range(deaths):
        wait_until(lambda seen=number: len(list(folder.glob("chunk-*.npz"))) > seen, within_s=WAIT_S, every_s=0.001)
        kill("Drawer")


@pytest.mark.slow
def test_one_four_and_seven_actors_in_any_order_with_duplicates_and_deaths_draw_the_same(
    cluster: Cluster, tmp_path: Path
) -> None:
    extraction = save_extractor(tmp_path / "classifier.safetensors")
    chunks = range(12)
    found = []
    for actors, order, deaths in ((1, chunks, 0), (4, reversed(chunks), 1), (7, [*chunks[5:], *chunks[:5]], 2)):
        folder = tmp_path / str(actors)
        folder.mkdir()
        found.append(draw(cluster, folder, actors, list(order), extraction, deaths))
    assert len(set(found)) == 1
