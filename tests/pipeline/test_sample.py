"""Chunks of drawn images: whole and of the right seeds, or drawn again; pixels only from finite numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model import DDIM, DDPMUNet, EDMPath, GaussianPath, ModelSpec, VPCosine
from pipeline.errors import DataError, SamplingError, TrainingError
from pipeline.files import read_arrays, write_arrays
from pipeline.models.drawing import STRIP_FRAMES, images_counted, noised
from pipeline.runfile.config import SampleConfig
from pipeline.sampling.chunks import Chunks, ChunkTask
from pipeline.sampling.drawer import Drawer, Equipment
from pipeline.training.checkpoint import SPEC, WEIGHTS
from pipeline.training.trained_model import ModelFolders

MODEL = ModelSpec(
    image_size=8,
    channels=1,
    network=DDPMUNet(base_channels=8, channel_multipliers=(1,), blocks_per_level=1, attention_sizes=()),
    path=VPCosine(),
)


def chunks_in(folder: Path, images: int = 7, seed: int = 100, **options: Any) -> Chunks:
    config = SampleConfig(images=images, seed=seed, chunk_images=3, sampler=DDIM(steps=2), **options)
    return Chunks(folder, config, "cpu")


def drawer(folder: Path, chunks: Chunks, fill: float | None = None) -> Drawer:
    torch.manual_seed(0)
    weights = MODEL.build().state_dict()
    if fill is not None:
        weights = {name: torch.full_like(weight, fill) for name, weight in weights.items()}
    save_file(weights, folder / WEIGHTS)
    (folder / SPEC).write_text(MODEL.model_dump_json())
    return drawer_of(folder, chunks)


def drawer_of(folder: Path, chunks: Chunks) -> Drawer:
    """For such a set, of the model that has been saved in the folder."""
    model = ModelFolders(folder, None, folder / WEIGHTS)
    return Drawer(Equipment.of(chunks.config, model, "cpu"), torch.get_num_threads())


def test_the_last_chunk_is_drawn_whole_and_kept_in_part(tmp_path: Path) -> None:
    chunks = chunks_in(tmp_path)
    assert (chunks.count, [chunks.images_of(chunk) for chunk in range(3)]) == (3, [3, 3, 1])
    worker = drawer(tmp_path, chunks)
    for chunk in range(chunks.count):
        assert not chunks.is_whole(chunk)
        worker.draw(ChunkTask(chunks, chunk))
        assert chunks.is_whole(chunk)
    longer = chunks_in(tmp_path / "longer", images=9)
    worker.draw(ChunkTask(longer, 2))
    np.testing.assert_array_equal(chunks.read(2), longer.read(2)[:1])
    assert chunks.read_all(7).shape == (7, 8, 8, 1)
    assert chunks.read_all(4).shape == (4, 8, 8, 1)


def test_a_damaged_chunk_is_refused_and_then_removed_to_be_drawn_again(tmp_path: Path) -> None:
    chunks = chunks_in(tmp_path)
    drawer(tmp_path, chunks).draw(ChunkTask(chunks, 0))
    content = chunks.path(0).read_bytes()
    chunks.path(0).write_bytes(content[:-50])
    with pytest.raises(DataError, match=r"chunk-000000-cpu\.npz: no whole file of seeds, images.*remove .*done\.json"):
        chunks.read(0)
    assert not chunks.is_whole(0)
    assert not chunks.path(0).exists()


def test_a_chunk_of_other_seeds_is_refused(tmp_path: Path) -> None:
    chunks = chunks_in(tmp_path)
    images, evaluations = np.zeros((3, 8, 8, 1), np.uint8), np.array(2.0)
    write_arrays(chunks.path(1), images=images, seeds=chunks.seeds(0), network_evaluations=evaluations)
    with pytest.raises(DataError, match=r"3 images of seeds from \[100\], expected 3 from \[103\]; remove"):
        chunks.read(1)


def test_images_that_are_not_finite_are_refused_rather_than_written(tmp_path: Path) -> None:
    chunks = chunks_in(tmp_path)
    with pytest.raises(TrainingError, match=r"seeds from 103: images are not finite.*lower train\.learning_rate"):
        drawer(tmp_path, chunks, fill=float("nan")).draw(ChunkTask(chunks, 1))
    assert not chunks.path(1).exists()


def test_calls_of_the_network_are_counted_and_not_taken_from_the_configuration(tmp_path: Path) -> None:
    chunks = chunks_in(tmp_path)
    worker = drawer(tmp_path, chunks)
    for chunk in range(chunks.count):
        worker.draw(ChunkTask(chunks, chunk))
    assert chunks.network_evaluations() == 2
    longer = chunks.config.model_copy(update={"sampler": DDIM(steps=9)})
    chunks.path(2).unlink()
    worker.draw(
        ChunkTask(replace(chunks, config=longer), 2)
    )  # as an adaptive sampler might on the last chunk, of one image
    assert chunks.network_evaluations() == pytest.approx((3 * 2 + 3 * 2 + 1 * 9) / 7)


def test_a_chunk_that_comes_out_otherwise_the_second_time_is_told_of(tmp_path: Path) -> None:
    chunks = chunks_in(tmp_path)
    worker = drawer(tmp_path, chunks)
    worker.draw(ChunkTask(chunks, 1))
    worker.draw(ChunkTask(chunks, 1))
    names = "images", "seeds", "network_evaluations", "pixels_sha256", "device"
    kept = dict(zip(names, read_arrays(chunks.path(1), *names), strict=True))
    write_arrays(chunks.path(1), **(kept | {"pixels_sha256": np.array("0" * 64)}))
    says = (
        r"chunk-000001-cpu\.npz: non-deterministic sampler: drawn again on CPU .*, its pixels have sha256 .* not 0000"
    )
    with pytest.raises(SamplingError, match=says):
        worker.draw(ChunkTask(chunks, 1))
    assert str(read_arrays(chunks.path(1), "pixels_sha256")[0]) == "0" * 64
    chunks.check_same(1, "another processor", "0" * 64)  # which may round otherwise


def test_a_batch_of_two_halves_counts_both_and_nothing_is_counted_afterwards() -> None:
    network = torch.nn.Linear(1, 1)
    with images_counted(network) as count:
        assert count() == 0
        network(torch.zeros(4, 1))
        network(torch.zeros(8, 1))
    network(torch.zeros(4, 1))
    assert count() == 12


def test_a_chunk_that_does_not_say_its_network_evaluations_is_drawn_again(tmp_path: Path) -> None:
    chunks = chunks_in(tmp_path)
    write_arrays(chunks.path(0), images=np.zeros((3, 8, 8, 1), np.uint8), seeds=chunks.seeds(0))
    assert not chunks.is_whole(0)
    with pytest.raises(DataError, match=r"chunk-000000-cpu\.npz: no whole file of network_evaluations"):
        chunks.network_evaluations()


def test_the_strip_shows_how_the_first_images_of_the_set_emerged(tmp_path: Path) -> None:
    chunks = chunks_in(tmp_path)
    worker = drawer(tmp_path, chunks)
    worker.draw(ChunkTask(chunks, 1))
    assert not chunks.strip.exists()
    worker.draw(ChunkTask(chunks, 0))
    frames, times = read_arrays(chunks.strip, "frames", "times")
    assert frames.shape == (3, 3, 8, 8, 1)
    assert times.tolist() == [999, 0, -1]
    np.testing.assert_array_equal(frames[-1], chunks.read(0))


@pytest.mark.parametrize("options", [{}, {"compile": True}])
def test_beside_the_first_chunk_lies_the_way_from_its_first_image_to_its_second(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    chunks = chunks_in(tmp_path, images=3, **options)
    drawer(tmp_path, chunks).draw(ChunkTask(chunks, 0))
    (frames,) = read_arrays(chunks.interpolation, "frames")
    assert frames.shape == (STRIP_FRAMES, 8, 8, 1)
    np.testing.assert_array_equal(frames[[0, -1]], chunks.read(0)[:2])
    assert chunks.network_evaluations() == 2


@pytest.mark.parametrize("name", ["strip", "interpolation"])
def test_the_first_chunk_without_its_strips_is_drawn_again(tmp_path: Path, name: str) -> None:
    chunks = chunks_in(tmp_path)
    drawer(tmp_path, chunks).draw(ChunkTask(chunks, 0))
    assert chunks.is_whole(0)
    getattr(chunks, name).unlink()
    assert not chunks.is_whole(0)


def test_images_are_picked_in_the_order_asked_for(tmp_path: Path) -> None:
    chunks = chunks_in(tmp_path)
    worker = drawer(tmp_path, chunks)
    for chunk in range(chunks.count):
        worker.draw(ChunkTask(chunks, chunk))
    numbers = np.array([6, 0, 4, 0])
    np.testing.assert_array_equal(chunks.pick(numbers), chunks.read_all(7)[numbers])


def test_chunks_are_drawn_as_precision_and_compile_say_and_each_alike_by_any_actor(tmp_path: Path) -> None:
    exact = chunks_in(tmp_path)
    drawer(tmp_path, exact).draw(ChunkTask(exact, 1))
    for options in ({"precision": "bf16"}, {"compile": True}):
        alone, shared = (chunks_in(tmp_path / f"{who} {options}", **options) for who in ("alone", "shared"))
        one = drawer_of(tmp_path, alone)
        assert one.model.network.execution == alone.config.execution
        for chunk in (0, 1):
            one.draw(ChunkTask(alone, chunk))
        torch.compiler.reset()  # another actor compiles for itself
        drawer_of(tmp_path, shared).draw(ChunkTask(shared, 1))
        np.testing.assert_array_equal(alone.read(1), shared.read(1))
        assert np.abs(alone.read(1).astype(int) - exact.read(1)).max() <= (1 if "compile" in options else 8)


@pytest.mark.parametrize("path", [VPCosine(), EDMPath()])
def test_noised_images_are_themselves_at_first_and_noise_in_the_end(path: GaussianPath) -> None:
    spec = MODEL.model_copy(update={"path": path})
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    frames, times = noised(spec, images)
    assert frames.shape == (STRIP_FRAMES, 2, 8, 8, 1)
    assert times == sorted(times)
    assert (times[0], times[-1]) == (path.t_data, path.t_max)
    np.testing.assert_array_equal(frames[0], images)
    off = [np.abs(frame.astype(float) - images).mean() for frame in frames]
    assert off == sorted(off)
