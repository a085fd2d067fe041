"""Fourth stage: Ray actors draw images from the trained model, in fixed chunks of seeds.

Chunk c holds the images c * B to (c + 1) * B and is always drawn as one batch of B, the last one too, whose surplus
is dropped: so an image does not depend on how many images, actors or attempts there were. A chunk is one file, whole
or absent, and says how often the network was called for it, on which device, and the sha256 of its pixels: one that is
drawn again must have the same. Beside it lie its features, taken where it was drawn; beside the first also how its
first images emerged, and what is between two of them.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from model import State, default_label, interpolate_seeds, trajectory

from .checkpoint import weights_digest
from .compiler import check_compiler
from .config import SampleConfig
from .drawing import STRIP_FRAMES, images_counted, strip
from .errors import DataError, SamplingError, TrainingError
from .fan_out import actor_pool, fan_out
from .features import Batch, Extraction, FeatureFiles
from .files import read_arrays, remove_drafts, write_arrays
from .keyroles import identity
from .reference import extraction_of
from .stage import Facts, Run, Stage
from .trained_model import ModelFolders, posthoc_average, weights_identity

STRIP, INTERPOLATION = "strip.npz", "interpolation.npz"
_STRIP_IMAGES = 8


class Sample(Stage):
    """Draws `sample.images` images; chunks that exist already are kept."""

    name = "sample"
    format = 5

    def identity(self, run: Run) -> Any:
        guide = run.results.get("guide")
        return {
            "model": weights_identity(run),
            "guide": guide and guide.facts["weights_digest"],
            "spec": identity(run.config.spec),
            "sample": identity(run.config.sample),
        }

    def compute(self, run: Run, folder: Path) -> Facts:
        config = run.config.sample
        device = run.joined.device_type
        folders, average, trained = ModelFolders.of(run), posthoc_average(run), run.results["train"].facts
        chunks = Chunks(folder, config, device)
        remove_drafts(folder)
        missing = [chunk for chunk in range(chunks.count) if not chunks.is_whole(chunk)]
        to_draw = sum(chunks.images_of(chunk) for chunk in missing)
        drawn, seconds = config.images - to_draw, 0.0
        extraction = extraction_of(run) if "reference" in run.results else None
        timeout_s = run.config.cluster.task_timeout_s
        with (
            run.terminal.progress(config.images, "images") as progress,
            actor_pool(
                run.joined, run.samplers(len(missing)), Drawer, folders, chunks, run.threads, extraction
            ) as pool,
        ):
            progress.update(drawn)  # only now: the rate is that of drawing
            start = time.perf_counter()
            for chunk in fan_out(pool, missing, "draw", self.name, timeout_s):
                drawn += chunks.images_of(chunk)
                progress.update(drawn)
            seconds = time.perf_counter() - start
        return {
            "images": config.images,
            "network_evaluations": chunks.network_evaluations(),
            "images_per_s": round(to_draw / seconds, 1) if missing else None,
            "device_type": device,
            "devices": chunks.devices(),
            "weights_digest": weights_digest(load_file(folders.weights)) if average else trained["weights_digest"],
            "sigma_rel": config.sigma_rel,
            "reconstruction_error": average and average.reconstruction.error,
        }

    def figure(self, facts: Facts) -> str:
        speed = "" if facts["images_per_s"] is None else f", {facts['images_per_s']:,.0f} images/s"
        return f"{facts['images']:,} images of {facts['network_evaluations']:,.4g} network evaluations{speed}"


@dataclass(frozen=True)
class Chunks:
    """The files of a sample set: which there are, and what each must hold."""

    folder: Path
    config: SampleConfig
    device_type: str
    """cpu or cuda; an image is the same to the bit only on one type, so chunks of two never mix."""

    @property
    def count(self) -> int:
        """Number of chunks of the whole set."""
        return -(-self.config.images // self.config.chunk_images)

    def images_of(self, chunk: int) -> int:
        """Images that this chunk adds to the set; the last one may add fewer than it draws."""
        return min(self.config.chunk_images, self.config.images - chunk * self.config.chunk_images)

    def path(self, chunk: int) -> Path:
        """Where the chunk's file is, or is to be."""
        return self.folder / f"chunk-{chunk:06d}-{self.device_type}.npz"

    @property
    def strip(self) -> Path:
        """Where the denoising strip of the first images is, or is to be: frames uint8 [S, N, H, W, C], their times."""
        return self.folder / STRIP

    @property
    def interpolation(self) -> Path:
        """Where the images from the first seed to the second are, or are to be: frames uint8 [F, H, W, C]."""
        return self.folder / INTERPOLATION

    def seeds(self, chunk: int) -> NDArray[np.int64]:
        """Seeds of the whole chunk. -> int64 [chunk_images]."""
        start = self.config.seed + chunk * self.config.chunk_images
        return np.arange(start, start + self.config.chunk_images)

    def read(self, chunk: int) -> NDArray[np.uint8]:
        """The chunk's images, uint8 [images_of, H, W, C]. DataError where the file is missing or damaged."""
        path = self.path(chunk)
        try:
            seeds, images, _ = read_arrays(path, "seeds", "images", "network_evaluations")
        except DataError as error:
            raise DataError(f"{error}; {self._remedy}") from None
        expected = self.seeds(chunk)[: self.images_of(chunk)]
        if not np.array_equal(seeds, expected) or len(images) != len(expected):
            raise DataError(
                f"{path}: {len(images)} images of seeds from {seeds[:1]}, expected {len(expected)} from "
                f"{expected[:1]}; {self._remedy}"
            )
        return np.asarray(images)

    def pick(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """These images of the set, in their order; each chunk is read once. int64 [n], n > 0 -> uint8 [n, H, W, C]."""
        chunks, places = np.divmod(numbers, self.config.chunk_images)
        read = {chunk: self.read(chunk) for chunk in np.unique(chunks).tolist()}
        return np.stack([read[chunk][place] for chunk, place in zip(chunks.tolist(), places.tolist(), strict=True)])

    @property
    def _remedy(self) -> str:
        return f"remove {self.folder / 'done.json'}, and the same command draws anew what is missing or damaged"

    def is_whole(self, chunk: int) -> bool:
        """Whether the chunk is there, the first with its strips; a damaged file is removed, to be drawn again."""
        try:
            self.read(chunk)
        except DataError:
            self.path(chunk).unlink(missing_ok=True)
            return False
        return chunk > 0 or (self.strip.exists() and self.interpolation.exists())

    def read_all(self, images: int) -> NDArray[np.uint8]:
        """The first `images` images of the set. -> uint8 [images, H, W, C]."""
        last = -(-images // self.config.chunk_images)
        return np.concatenate([self.read(chunk) for chunk in range(last)])[:images]

    def batch(self, chunk: int) -> Batch:
        """The chunk as images whose features are taken together."""
        return Batch("samples", chunk, self.images_of(chunk))

    def batches(self) -> Iterator[Batch]:
        """All chunks, in order."""
        return map(self.batch, range(self.count))

    def features(self, extractor_digest: str) -> FeatureFiles:
        """Where the features of the chunks are, or are to be, by the extractor of these weights."""
        return FeatureFiles(self.folder, extractor_digest, self.device_type)

    def check_same(self, chunk: int, device: str, pixels_sha256: str) -> None:
        """SamplingError where the chunk is there, was drawn on such a device, and has other pixels."""
        try:
            kept_sha256, kept_device = (str(each) for each in read_arrays(self.path(chunk), "pixels_sha256", "device"))
        except DataError:
            return
        if (kept_device, kept_sha256 != pixels_sha256) == (device, True):
            raise SamplingError(
                f"{self.path(chunk)}: non-deterministic sampler: drawn again on {device}, its pixels have sha256 "
                f"{pixels_sha256[:12]} and not {kept_sha256[:12]}; scores would depend on chance. Are nodes of one "
                f"device of different software? Else report it; remove {self.folder} to draw all of it anew"
            )

    def devices(self) -> list[str]:
        """Names of the devices that drew the set, sorted."""
        return sorted({str(read_arrays(self.path(chunk), "device")[0]) for chunk in range(self.count)})

    def network_evaluations(self) -> float:
        """Calls of the network for each image, mean over the whole set. DataError where a chunk is missing."""
        chunks = range(self.count)
        each = [float(read_arrays(self.path(chunk), "network_evaluations")[0]) for chunk in chunks]
        return float(np.average(each, weights=[self.images_of(chunk) for chunk in chunks]))


class Drawer:
    """Runs as an actor: loads the weights once, draws chunks, and takes their features on the way."""

    def __init__(
        self, folders: ModelFolders, chunks: Chunks, threads: int, extraction: Extraction | None = None
    ) -> None:
        torch.set_num_threads(threads)
        if chunks.config.compile:
            check_compiler("sample.compile")
        self.chunks = chunks
        self.sampler, self.guidance = chunks.config.sampler, chunks.config.guidance
        self.device = torch.device(chunks.device_type)
        self.model = folders.load(self.guidance, self.device, chunks.config.execution)
        self.extractor = extraction and extraction.load(chunks.device_type)

    def ready(self) -> None:
        """Returns once the weights are loaded."""

    def draw(self, chunk: int) -> None:
        """Draws and writes one chunk; the strips before the first, which is whole only with them."""
        seeds, way = self.chunks.seeds(chunk), list[State]()
        seeds_there = torch.from_numpy(seeds).to(self.device)
        try:
            with images_counted(self.model.network) as count:
                for state in trajectory(self.model, self.sampler, seeds_there, guidance=self.guidance):
                    if chunk == 0:
                        way.append(State(state.t, state.x[:_STRIP_IMAGES].clone()))
            images = self.model.pictures(state.x)
            if way:
                frames, times = strip(self.model, way)
                write_arrays(self.chunks.strip, frames=frames, times=np.array(times))
                write_arrays(self.chunks.interpolation, frames=self._between(seeds_there[0]))
        except FloatingPointError as error:
            raise TrainingError(
                f"sample: seeds from {seeds[0]}: {error}; lower train.learning_rate, set sample.sampler.clip "
                f"to x0_and_eps, or loosen the tolerances of an adaptive sampler"
            ) from None
        kept = self.chunks.images_of(chunk)
        pixels = images[:kept].cpu().numpy()
        sha256, device = hashlib.sha256(pixels.tobytes()).hexdigest(), device_name(self.device)
        self.chunks.check_same(chunk, device, sha256)
        if self.extractor:
            self.chunks.features(self.extractor.digest).write(self.chunks.batch(chunk), self.extractor(pixels))
        write_arrays(
            self.chunks.path(chunk),
            images=pixels,
            seeds=seeds[:kept],
            network_evaluations=np.array(count() / len(seeds)),
            pixels_sha256=np.array(sha256),
            device=np.array(device),
        )

    def _between(self, first: Tensor) -> NDArray[np.uint8]:
        """Images from this seed to the next, all of the first one's class. -> uint8 [F, H, W, C].

        A compiled network is given whole chunks, since it would be compiled anew for batches of another size.
        """
        config = self.chunks.config
        label = default_label(self.model.spec, self.guidance, first)
        shares = torch.linspace(0, 1, STRIP_FRAMES, dtype=torch.float64, device=self.device)
        if config.compile:
            shares = F.pad(shares, (0, -len(shares) % config.chunk_images))
        seed, told = int(first), None if label is None else int(label)
        frames = [
            interpolate_seeds(self.model, self.sampler, seed, seed + 1, some, told, self.guidance)
            for some in shares.split(config.chunk_images)
        ]
        return torch.cat(frames)[:STRIP_FRAMES].cpu().numpy()


def device_name(device: torch.device) -> str:
    """The kind of processor: on one kind the same chunk has the same pixels, to the bit."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {torch.backends.cpu.get_cpu_capability()}"
