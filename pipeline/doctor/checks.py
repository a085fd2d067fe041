"""The checks of `doctor`. To add one: a function of the examination, and its name in `CHECKS`.

It returns what it has seen, and fails by raising an error that says what is wrong and, after a semicolon, the cure.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import ray

from evaluation import WeightsFile

from ..clusters.shipment import PACKAGES
from ..data.prepare import Prepare
from ..data.shard_index import ShardIndex
from ..data.sources import Shards, Stream
from ..errors import ClusterError, ConfigError, DataError, PipelineError, TrackingError
from ..figures import size
from ..files import write_text
from ..models.warm_start import find_start
from ..planning.volumes import averages_kept, checkpoint_bytes, checkpoints_written, network_of, weights_bytes
from ..redaction import redacted
from ..tracking.mlflow_store import check_answers, explained
from . import on_nodes
from .examination import Check, Examination, NotCheckedError, message_of, seen_alike

_IDLE_SHARE = 0.05  # of the workers' time, from which on an uneven batch is worth a word
_SAMPLE_SHARDS = 16
_NCCL_BYTES = 1024**3  # what NCCL's guide asks a container to have, "Troubleshooting: Shared memory"


def cluster_answers(examination: Examination) -> str:
    """Address and token."""
    cluster = examination.join()
    count = len(examination.nodes)
    return f"{cluster}, {count} node{'s' if count > 1 else ''}"


def resources_suffice(examination: Examination) -> str:
    """For the fewest workers and samplers that the file asks for, each on one node."""
    config, room = examination.config, examination.room
    fewest = {"train.num_workers": min(config.train.worker_range), "cluster.num_samplers": min(config.sampler_range)}
    for key, count in fewest.items():
        examination.cluster.require(count, key)
        if count > room:
            raise ClusterError(
                f"{key}: {count} workers, and the nodes have room for {room}, since the "
                f"{config.cluster.cpus_per_worker} CPUs of each must be on one of them; lower "
                f"cluster.cpus_per_worker or {key}, or take larger nodes"
            )
    free = ray.available_resources()
    unused = f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free now"
    return f"room for {room} workers, {max(fewest.values())} needed at least; {unused}"


def batch_suits_workers(examination: Examination) -> str:
    """An uneven share makes all wait for those who have more; too few images are none."""
    batch, workers = examination.config.train.batch_size, max(examination.config.train.worker_range)
    least, most = batch // workers, -(-batch // workers)
    idle = 1 - batch / (workers * most)
    if idle > _IDLE_SHARE:
        raise ConfigError(
            f"train.batch_size {batch} on {workers} workers: {most} images for some and {least} for others, so that "
            f"{idle:.0%} of their time is lost; make it a multiple of train.num_workers, such as {workers * most}"
        )
    prepared = Prepare().recall(examination.run)
    images = prepared.facts["train_images"] if prepared else batch
    if images < batch and not isinstance(examination.config.data.source, Stream):
        raise DataError(
            f"train.batch_size {batch}, and there are {images} images to train on; lower train.batch_size or "
            f"data.heldout_fraction, or add images"
        )
    return f"{batch} images on {workers} workers, {most if least == most else f'{least} or {most}'} each"


def versions_agree(examination: Examination) -> str:
    """Python, torch, CUDA, NCCL, Ray and this code, here and on all nodes."""
    cure = "install the same on every node, best by one image of a container"
    found = {
        "here": on_nodes.versions(PACKAGES),
        **examination.everywhere(cure, on_nodes.versions, PACKAGES),
    }
    for part in found["here"]:
        values = {name: versions[part] for name, versions in found.items()}
        if not seen_alike(values):
            if part == "this code":
                cure = "install this tree on every node, or name the head by cluster.address=HOST:PORT, which sends it"
            raise ClusterError(f"{part} is not the same, {examination.by_value(values)}; {cure}")
    return ", ".join(f"{part} {value}" for part, value in found["here"].items())


def output_is_shared(examination: Examination) -> str:
    """What is written here is read on every node, and what they write is read here."""
    output, word = examination.run.output, uuid.uuid4().hex
    folder = output / f".doctor-{word[:8]}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"output {output}: cannot be written to ({error}); correct output") from error
    try:
        write_text(folder / "driver", word)
        cure = f"make {output} a folder that all nodes share and may write to, or choose another output"
        answers = examination.everywhere(cure, on_nodes.exchange, str(folder), word)
        for name, file in answers.items():
            if not (folder / file).is_file() or (folder / file).read_text() != word:
                raise ClusterError(f"{name}: what it writes to {output} does not come here; {cure}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return f"{output}, read and written by every node"


def disk_has_room(examination: Examination) -> str:
    """Of output, for the checkpoints that a training keeps."""
    train = examination.config.train
    network = network_of(examination.config)
    checkpoint = checkpoint_bytes(network, 1 + len(train.also_averaged), points=0)
    most = min(train.keep_checkpoints + 2, checkpoints_written(train) + 1)  # with the best, and one that is written
    needed = checkpoint * most + weights_bytes(network) * averages_kept(train)
    output = next(folder for folder in (examination.run.output, *examination.run.output.parents) if folder.exists())
    free = shutil.disk_usage(output).free
    if needed > free:
        raise DataError(
            f"output {output}: {size(free)} are free, and checkpoints of {size(checkpoint)} will take {size(needed)}; "
            f"make room, lower train.keep_checkpoints, or choose another output"
        )
    return f"{size(free)} free, and checkpoints will take up to {size(needed)}"


def shards_are_whole(examination: Examination) -> str:
    """All are there on every node, and those that are read are what was indexed."""
    cluster = examination.config.cluster
    limit_s = cluster.task_timeout_s if examination.all_shards else cluster.timeout_s
    cure = "restore the shard there, or prepare the data again"
    found = _shards(examination)
    look: Callable[..., int]
    what: str | list[str]
    if isinstance(found, ShardIndex):
        total, look, what = len(found.shards), on_nodes.read_shards, str(found.folder)
    else:
        total, look, what = len(found), on_nodes.read_tars, found
    chosen = _sample(total, examination.all_shards)
    nodes = examination.nodes
    shares = {node.id: chosen[number :: len(nodes)] for number, node in enumerate(nodes)}
    examination.everywhere(cure, look, what, shares, limit_s, limit_s=limit_s)
    return f"{total} shards on every node, {len(chosen)} of them read{'' if len(chosen) == total else ' (--all: all)'}"


def _shards(examination: Examination) -> ShardIndex | list[str]:
    """The index of what was prepared or is given, or else the tars that are to be."""
    source = examination.config.data.source
    prepared = Prepare().recall(examination.run)
    if prepared and not isinstance(source, Stream):
        examination.after(output_is_shared)
        return ShardIndex.load(prepared.folder)
    if isinstance(source, Shards) and source.index is not None:
        return ShardIndex.load(source.index.expanduser().absolute())
    if isinstance(source, Shards | Stream):
        return source.locations()
    raise NotCheckedError("there are none yet; 'python -m pipeline prepare' packs the images, without a cluster")


def _sample(total: int, every: bool) -> list[int]:
    """Numbers of shards from first to last."""
    count = total if every else min(total, _SAMPLE_SHARDS)
    return [number * total // count for number in range(count)]


def shared_memory_suffices(examination: Examination) -> str:
    """For Ray's object store and, where there are GPUs, NCCL."""
    cure = "mount a larger /dev/shm (docker: --shm-size; Kubernetes: an emptyDir of medium Memory)"
    found = examination.everywhere(cure, on_nodes.shared_memory_bytes)
    troubles = {}
    for node in examination.nodes:
        needed = int(node.resources.get("object_store_memory", 0)) + (_NCCL_BYTES if node.resources.get("GPU") else 0)
        if found[node.name] < needed:
            troubles[node.name] = f"{size(found[node.name])} of /dev/shm, and Ray and NCCL need {size(needed)}"
    if troubles:
        raise ClusterError(f"{examination.by_value(troubles)}; {cure}")
    return f"at least {size(min(found.values()))} of /dev/shm on each node"


def workers_reduce(examination: Examination) -> str:
    """As many processes as training begins with, each where a worker would be, add up a tensor."""
    fewest, most = (limit(examination.config.train.worker_range) for limit in (min, max))
    world_size = min(most, examination.room)
    if world_size < fewest:
        raise NotCheckedError("there is no room for the fewest workers")
    if world_size == 1:
        raise NotCheckedError("one worker exchanges nothing")
    cluster = examination.cluster
    backend = "nccl" if cluster.use_gpu else "gloo"
    rank: Any = ray.remote(
        num_cpus=cluster.config.cpus_per_worker, num_gpus=1 if cluster.use_gpu else 0, scheduling_strategy="SPREAD"
    )(on_nodes.Rank)
    ranks = [rank.remote() for _ in range(world_size)]
    deadline_s = time.monotonic() + cluster.config.timeout_s
    try:
        (address,) = _gathered([ranks[0].meeting_point.remote()], deadline_s)
        left_s = deadline_s - time.monotonic()
        reduced = _gathered(
            [each.all_reduce.remote(address, number, world_size, backend, left_s) for number, each in enumerate(ranks)],
            deadline_s,
        )
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise ClusterError(
            f"{world_size} workers cannot exchange by {backend}: {message_of(error)}; let all ports through between "
            f"the nodes, and name the network's interface by NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME on each"
        ) from error
    finally:
        for each in ranks:
            ray.kill(each)
    nodes, seconds = len({node for node, _ in reduced}), max(seconds for _, seconds in reduced)
    return (
        f"{world_size} workers on {nodes} node{'s' if nodes > 1 else ''} by {backend}, 4 MiB in {seconds * 1000:.0f} ms"
    )


def _gathered(references: Sequence[Any], deadline_s: float) -> list[Any]:
    """All results; the first error at once, or TimeoutError at the deadline."""
    pending = list(references)
    while pending:
        done, pending = ray.wait(pending, timeout=max(0, deadline_s - time.monotonic()))
        if not done:
            raise TimeoutError("they have not met in time (cluster.timeout_s)")
        ray.get(done)
    return ray.get(list(references))


def mlflow_answers(examination: Examination) -> str:
    """From here, and where it is a server, from every node, with the Host header of the address."""
    uri, timeout_s = examination.run.tracking_uri, examination.config.tracking.timeout_s
    check_answers(uri, timeout_s)
    if not uri.startswith(("http://", "https://")):
        return f"{redacted(uri)}, from here, where alone it is used"
    cure = "let the nodes reach the server"
    symptoms = examination.everywhere(cure, on_nodes.ask_mlflow, uri, timeout_s)
    if troubles := {name: explained(symptom) for name, symptom in symptoms.items() if symptom}:
        raise TrackingError(redacted(f"{uri} from {examination.by_value(troubles)}; {cure}"))
    return f"{redacted(uri)}, from here and from every node"


def weights_are_there(examination: Examination) -> str:
    """Those of the extractor, on every node, and the right ones."""
    extractor = examination.config.evaluate.extractor
    if not isinstance(extractor, WeightsFile):
        return f"extractor {extractor.kind} is trained on the images"
    cure = "copy the file to the same path on every node"
    found = {
        "here": on_nodes.extractor_sha256(extractor),
        **examination.everywhere(cure, on_nodes.extractor_sha256, extractor.absolute()),
    }
    if not seen_alike(found):
        raise PipelineError(f"{extractor.path}: sha256 is not the same, {examination.by_value(found)}; {cure}")
    return f"{extractor.path}, sha256 {found['here'][:12]}, on every node"


def start_is_there(examination: Examination) -> str:
    """The weights that training starts from, which are read here alone and reach the workers by way of output."""
    name = examination.config.train.warm_start
    if name is None:
        return "training starts from random weights"
    return f"training starts from {find_start(name, examination.config, examination.run.tracking_uri)}"


CHECKS: tuple[Check, ...] = (
    cluster_answers,
    resources_suffice,
    batch_suits_workers,
    versions_agree,
    output_is_shared,
    disk_has_room,
    shards_are_whole,
    shared_memory_suffices,
    workers_reduce,
    mlflow_answers,
    weights_are_there,
    start_is_there,
)
