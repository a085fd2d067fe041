"""Likelihoods of a run: batches whole or measured again, folded in order, found again by every run of the model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evaluation import ODELikelihood, VariationalBound
from model import NO_GUIDANCE, TrainedModel
from pipeline.clusters.cluster import Cluster, connected
from pipeline.data.prepare import Prepare
from pipeline.data.reader import ShardReader
from pipeline.errors import DataError, TrainingError
from pipeline.files import read_arrays
from pipeline.models.weights import weights_digest
from pipeline.runfile.config import ClusterConfig, Config
from pipeline.scoring.likelihood import (
    CURVES,
    LikelihoodWork,
    LikelihoodWriter,
    _work,
    draw_likelihoods,
    likelihoods_in_words,
    measure,
)
from pipeline.stage import Result, Run
from pipeline.terminal import Terminal
from pipeline.training.checkpoint import SPEC, WEIGHTS
from pipeline.training.trained_model import ModelFolders

BOUND = VariationalBound(images=7)
ODE = ODELikelihood(images=4, split="train", probes=2, rtol=0.3, atol=0.3)
THREADS = torch.get_num_threads()


def run_in(folder: Path, fill: float | None = None, chunk_images: int = 3) -> Run:
    """As it is after training: prepared digits, and a network of random weights, or of this one number."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", images=pixels, labels=np.arange(40) % 10)
    source = {"kind": "arrays", "images": str(folder / "data.npz"), "labels": str(folder / "data.npz")}
    config = Config.model_validate(
        {
            "name": "tiny",
            "data": {"source": source, "image_size": 8, "channels": 1, "heldout_fraction": 0.5},
            "network": {"kind": "ddpm_unet", "base_channels": 8, "channel_multipliers": [1], "attention_sizes": []},
            "path": {"kind": "vp_cosine", "T": 5},
            "target": {"kind": "edm"},
            "conditioning": {"kind": "class_label", "classes": 10},
            "train": {"images": 8},
            "sample": {"images": 6, "chunk_images": chunk_images, "sampler": {"kind": "ddim", "steps": 2}},
            "evaluate": {"extractor": {"kind": "classifier"}},
            "register": {"model_name": "tiny"},
            "output": str(folder / "out"),
        }
    )
    run = Run(config, Terminal(), Cluster(ClusterConfig(), 2, 0))
    run.results["prepare"] = Prepare().finish(run)
    train = folder / f"train-{fill}"
    train.mkdir(exist_ok=True)
    torch.manual_seed(0)
    weights = {
        name: 0.1 * torch.randn_like(weight) if fill is None else torch.full_like(weight, fill)
        for name, weight in config.spec.build().state_dict().items()
    }
    save_file(weights, train / WEIGHTS)
    (train / SPEC).write_text(config.spec.model_dump_json())
    run.results["train"] = Result(train, {"weights_digest": weights_digest(weights)}, 1.0, reused=False)
    return run


def measured(work: LikelihoodWork) -> LikelihoodWork:
    """As the actors leave it, but in this process and in another order."""
    work.folder.mkdir(parents=True, exist_ok=True)
    writer = LikelihoodWriter(work, THREADS)
    for batch in reversed(work.batches):
        writer.write(batch)
    return work


def test_every_image_is_in_one_batch_and_the_last_is_short(tmp_path: Path) -> None:
    work = _work(run_in(tmp_path), BOUND)
    assert [work.numbers(batch).tolist() for batch in work.batches] == [[0, 1, 2], [3, 4, 5], [6]]


def test_results_are_of_the_trained_model_and_of_these_images_in_order(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    results = measured(_work(run, BOUND)).results()
    reader = ShardReader(run.index, "heldout", "none")
    numbers = np.arange(7)
    model: TrainedModel = ModelFolders.of(run).load(NO_GUIDANCE, torch.device("cpu"))
    expected = BOUND.measure(
        model, torch.from_numpy(reader.read(numbers)), torch.arange(7), torch.from_numpy(reader.labels[numbers])
    )
    for name in BOUND.results:
        np.testing.assert_allclose(results[name], expected[name], rtol=1e-4)
    other_class = torch.from_numpy((reader.labels[numbers] + 1) % 10)
    others = BOUND.measure(model, torch.from_numpy(reader.read(numbers)), torch.arange(7), other_class)
    assert (np.abs(results["bits"] - others["bits"]) > 1e-5).all()  # p(image | class)


def test_damaged_and_short_batches_are_measured_again(tmp_path: Path) -> None:
    work = measured(_work(run_in(tmp_path), BOUND))
    assert all(map(work.is_whole, work.batches))
    first, second, last = map(work.path, work.batches)
    first.write_bytes(first.read_bytes()[:-30])
    second.write_bytes(last.read_bytes())
    assert [work.is_whole(batch) for batch in work.batches] == [False, False, True]
    with pytest.raises(DataError, match=r"batch-000001\.npz: 1 images, expected 3; run the same command again"):
        work.read(work.batches[1])
    with pytest.raises(DataError, match=r"batch-000000\.npz: no whole file of bits, .*; run the same command again"):
        work.results()


@pytest.mark.parametrize("likelihood", [BOUND, ODE], ids=lambda each: each.kind)
def test_what_has_been_measured_is_folded_without_a_cluster(tmp_path: Path, likelihood: Any) -> None:
    run = run_in(tmp_path)
    results = measured(_work(run, likelihood)).results()
    scores = measure(run, [likelihood], tmp_path)  # Ray is not running: it would fail
    assert scores == likelihood.scores(results)
    assert all(np.isfinite(value) for value in scores.values())


def test_runs_that_draw_otherwise_find_it_and_other_models_do_not(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    here = _work(run, BOUND).folder
    sample = run.config.sample.model_copy(update={"seed": 5, "images": 99})
    assert (
        _work(
            Run(run.config.model_copy(update={"sample": sample}), run.terminal, run.cluster, None, run.results), BOUND
        ).folder
        == here
    )
    assert _work(run, BOUND.model_copy(update={"variance": "fixed_small"})).folder != here
    assert _work(run_in(tmp_path, fill=0.1), BOUND).folder != here
    assert _work(run_in(tmp_path, chunk_images=2), BOUND).folder != here


def test_batches_of_the_ode_are_small_since_gradients_are_kept(tmp_path: Path) -> None:
    run = run_in(tmp_path, chunk_images=500)
    many = {"images": 300, "split": "train"}
    assert _work(run, ODE.model_copy(update=many)).batch_images == 64
    assert _work(run, BOUND.model_copy(update=many)).batch_images == 300


@pytest.mark.parametrize("likelihood", [BOUND, ODE], ids=lambda each: each.kind)
def test_likelihoods_that_are_not_finite_are_refused_rather_than_written(tmp_path: Path, likelihood: Any) -> None:
    work = _work(run_in(tmp_path, fill=float("nan")), likelihood)
    work.folder.mkdir(parents=True)
    match = (
        f"likelihoods: {likelihood.kind}, {likelihood.split} images from 0: .*not finite.*; lower train.learning_rate"
    )
    with pytest.raises(TrainingError, match=match):
        LikelihoodWriter(work, THREADS).write(work.batches[0])
    assert not work.path(work.batches[0]).exists()


def test_curves_of_a_bound_are_kept_and_drawn(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    assert list(draw_likelihoods(tmp_path, tmp_path)) == []
    results = measured(_work(run, BOUND)).results()
    measure(run, [BOUND], tmp_path)
    terms, rate, distortion = read_arrays(tmp_path / CURVES, "terms", "rate", "distortion")
    assert len(terms) == len(rate) == len(distortion) == 5
    assert terms.sum() + results["prior"].mean() == pytest.approx(results["bits"].mean(), rel=1e-5)
    assert [path.name for path in draw_likelihoods(tmp_path, tmp_path)] == ["bound_terms.png", "rate_distortion.png"]
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("bound_terms.png", "rate_distortion.png"))


def test_lines_say_the_score_its_error_and_of_what() -> None:
    scores = {
        "bits_per_dim_bound": 3.14159,
        "bits_per_dim_bound_standard_error": 0.0123,
        "bits_per_dim_ode": 2.9,
        "bits_per_dim_ode_standard_error": 0.01,
        "bits_per_dim_ode_standard_error_of_probes": 0.002,
    }
    assert likelihoods_in_words(scores, [BOUND, ODE]) == {
        "bits/dim, bound": "3.142 \u00b1 0.012 of 7 heldout images; variance fixed_large; lower is better",
        "bits/dim, ODE": "2.900 \u00b1 0.010 of 4 train images; 2 probes, \u00b1 0.002 of them; lower is better",
    }


@pytest.mark.slow
def test_a_cluster_measures_what_is_missing(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    with connected(ClusterConfig()) as cluster:
        run.cluster = cluster
        scores = measure(run, [BOUND, ODE], tmp_path)
    work = _work(run, BOUND)
    on_cluster = {name: values.copy() for name, values in work.results().items()}
    for batch in work.batches:
        work.path(batch).unlink()
    here = measured(work).results()
    for name in BOUND.results:
        np.testing.assert_allclose(on_cluster[name], here[name], rtol=1e-4)  # there with one thread
    assert set(scores) == {*BOUND.scores(here), *ODE.scores(_work(run, ODE).results())}
