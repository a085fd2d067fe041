"""What the planner says, against closed forms written down otherwise and against real files."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save

from model import Denoising
from pipeline.__main__ import main
from pipeline.data.shards import pack
from pipeline.errors import ConfigError
from pipeline.files import write_arrays
from pipeline.planning.costs import Step, drawing_rounds, measured_here
from pipeline.planning.devices import DEVICES, STARTS_S, STARTS_SOURCE, Measurement, exchange_s, rate_of
from pipeline.planning.plan import Plan, one_checkpoint, plan_for, print_plan
from pipeline.planning.trial import Trial, measure
from pipeline.planning.volumes import (
    all_reduce_bytes,
    checkpoint_bytes,
    chunk_bytes,
    feature_counts,
    features_bytes,
    gradient_bytes,
    images_of,
    network_of,
    shard_bytes,
    sharded_bytes,
    weights_bytes,
)
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load
from pipeline.training.checkpoint import Snapshot
from pipeline.training.train_step import Recipe, TrainStep

ROOT = Path(__file__).parents[2]
DIGITS, CIFAR10 = ROOT / "pipeline/runs/digits.yaml", ROOT / "pipeline/runs/cifar10.yaml"
RESULTS = ROOT / "tests/benchmarks/results"
TRIAL = Trial(2, "CPU", "fp32", start_s=4.0, train_s=0.002, evaluation_s=0.0005, classifier_s=0.0003)


def config_of(file: Path = DIGITS, *overrides: str) -> Config:
    return load(file, overrides, Config)


def shown(plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_plan(plan, console)
    text = console.file.getvalue()
    assert isinstance(text, str)
    assert max(map(len, text.splitlines())) <= 100
    return text


def ring(parts: int, workers: int) -> float:
    """Parts of an array that each worker sends, counted step by step: once around to add up, once to hand out."""
    return sum(parts / workers for _turn in range(2) for _step in range(workers - 1))


@pytest.mark.parametrize("workers", [1, 2, 8, 1024])
def test_all_reduce_is_what_a_ring_sends(workers: int) -> None:
    assert all_reduce_bytes(4 * 35_746_307, workers) == pytest.approx(4 * ring(35_746_307, workers))
    assert sharded_bytes(1.0, workers) == pytest.approx(1.5 * ring(1, workers))


@pytest.mark.parametrize("overrides", [[], ["train.also_averaged=[{kind: power_function, sigma_rel: 0.1}]"]])
def test_a_checkpoint_is_as_large_as_planned(tmp_path: Path, overrides: list[str]) -> None:
    config = config_of(DIGITS, *overrides)
    recipe = Recipe(Denoising(config.spec, config.train.weighting), config.train, config.conditioning)
    step = TrainStep(recipe, torch.device("cpu"))
    for parameter in step.parameters:
        parameter.grad = torch.zeros_like(parameter)
    step.state.optimizer.step()  # makes its moments
    step.state.images_seen = 128
    written = Snapshot.of(step.state, {}).write(tmp_path)
    size = sum(file.stat().st_size for file in written.iterdir())
    assert checkpoint_bytes(network_of(config), 1 + len(config.train.also_averaged), 0) == pytest.approx(size, rel=0.01)


def test_the_checkpoint_of_the_large_network_is_as_large_as_the_measured_one() -> None:
    measured = json.loads((RESULTS / "recovery-2cpu-2026-11-27.json").read_text())["checkpoint"]["bytes"]
    assert one_checkpoint(config_of(CIFAR10)) == pytest.approx(measured, rel=0.01)


def test_weights_are_as_large_as_planned() -> None:
    network = config_of().spec.build()
    assert weights_bytes(network) == pytest.approx(len(save(network.state_dict())), rel=0.001)
    assert gradient_bytes(network) == 4 * 176_849


def test_chunks_and_features_are_as_large_as_planned(tmp_path: Path) -> None:
    digest = np.array("0" * 64)
    write_arrays(
        tmp_path / "chunk.npz",
        images=np.zeros((200, 8, 8, 1), np.uint8),
        seeds=np.arange(200),
        network_evaluations=np.array(50.0),
        pixels_sha256=digest,
        device=np.array("CPU AVX2"),
    )
    write_arrays(
        tmp_path / "features.npz",
        pool=np.zeros((200, 64), np.float32),
        logits=np.zeros((200, 10), np.float32),
        extractor=digest,
    )
    assert (tmp_path / "chunk.npz").stat().st_size == chunk_bytes(200, 64)
    assert (tmp_path / "features.npz").stat().st_size == features_bytes(200, 64, 10)


@pytest.mark.parametrize("shard_format", ["png", "npy"])
def test_shards_of_digits_are_as_large_as_planned(tmp_path: Path, shard_format: str) -> None:
    data = config_of(DIGITS, f"data.shard_format={shard_format}", "data.shard_images=1000").data
    index = pack(data, tmp_path, lambda *_: None)
    assert images_of(data) == index.count("train") + index.count("heldout")
    assert shard_bytes(data, [index.count("train"), index.count("heldout")]) == sum(each.bytes for each in index.shards)


def test_images_are_counted_where_they_are(tmp_path: Path) -> None:
    def images(source: str) -> int | None:
        return images_of(config_of(DIGITS, f"data.source={source}").data)

    assert images(f"{{kind: image_folder, path: {tmp_path / 'none'}, classes: none}}") is None
    (tmp_path / "one.png").touch()
    assert images(f"{{kind: image_folder, path: {tmp_path}, classes: none}}") == 1
    assert images(f"{{kind: shards, index: {tmp_path}}}") is None
    assert images("{kind: stream, urls: [a.tar], reference_images: 7}") == 7
    pack(config_of().data, tmp_path / "packed", lambda *_: None)
    assert images(f"{{kind: shards, index: {tmp_path / 'packed'}}}") == 1_797


def test_features_are_those_of_the_extractor() -> None:
    extractor = config_of(CIFAR10).evaluate.extractor
    assert feature_counts(extractor, 10) == (2048, 1008)
    assert feature_counts(config_of().evaluate.extractor, 10) == (64, 10)


def test_a_step_on_this_machine_is_its_share_of_the_batch() -> None:
    plan = Plan.of(config_of(), measured_here(TRIAL))
    step = Step.of(plan.config, plan.speeds)
    assert step.seconds == step.compute_s == pytest.approx(64 * 0.002)
    assert step.limit == "arithmetic"
    assert drawing_rounds(plan.config, 4) == (3, 10)
    text = shown(plan)
    assert "17% of the devices' time idle" not in text
    assert "measured now: 500 images/s of each process, 2 at once, fp32" in text


def test_decoding_limits_where_nothing_is_kept_and_the_network_is_fast() -> None:
    fast = Trial(2, "CPU", "fp32", start_s=4.0, train_s=1e-9, evaluation_s=1e-9, classifier_s=1e-4)
    step = Step.of(config_of(DIGITS, "data.cache=none"), measured_here(fast))
    assert step.seconds == step.read_s
    assert step.limit.startswith("decoding images")


def test_gradients_limit_many_devices_behind_a_slow_network() -> None:
    plan = plan_for(CIFAR10, ["train.batch_size=1024"], "h200", 1024)
    step = Step.of(plan.config, plan.speeds)
    assert step.limit == "the exchange of gradients"
    sent = 4 * ring(35_746_307, 1024)
    buckets, hops = -(-4 * 35_746_307 // (25 * 2**20)), 2 * 10
    assert plan.speeds.exchange_s == pytest.approx(sent / 12.5e9 + buckets * hops * 20e-6)
    assert "exchange of gradients" in shown(plan)
    assert exchange_s(DEVICES["h200"], 1, 0.0) == 0


def test_what_was_not_measured_is_said_and_what_stands_in_its_place() -> None:
    text = shown(plan_for(CIFAR10, [], "h200", 8))
    train = next(line for line in text.splitlines() if line.startswith("train "))
    assert "not measured" in train
    assert "25% of the published 989 TFLOP/s in bf16" in text.replace("\n", " ")
    assert "100 Gbit/s" in text


def test_what_was_measured_on_a_device_is_taken_for_networks_alike_only() -> None:
    core = DEVICES["epyc-core"]
    alike = rate_of(core, "train", "ddpm_unet", 37e9, "fp32")
    assert alike.measured
    assert "step-2cpu-2026-11-27.json" in alike.because
    assert not rate_of(core, "train", "ddpm_unet", 1e12, "fp32").measured
    assert not rate_of(core, "train", "dit", 37e9, "fp32").measured
    plan = plan_for(CIFAR10, [], "epyc-core", 2)
    assert {stage.name: stage.measured for stage in plan.stages}["train"]
    assert not {stage.name: stage.measured for stage in plan_for(CIFAR10, [], "epyc-core", 4).stages}["train"]


ROWS = [row for device in DEVICES.values() for row in device.measured]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.work} {row.flops:.3g}")
def test_each_measured_row_is_that_of_its_record(row: Measurement) -> None:
    names = {"training": "pipeline, 2 workers of 1 thread"}
    record = json.loads((RESULTS / row.source).read_text())
    speeds = record["images_per_s"][names.get(row.source.partition("-")[0], "ours, float32")]
    calls = 5 if row.work == "sample" else 1
    assert row.flop_per_s == pytest.approx(np.median(speeds) * calls * row.flops / 2, rel=0.001)


def test_start_ups_are_those_of_their_record() -> None:
    record = json.loads((RESULTS / STARTS_SOURCE).read_text())
    assert {name: seconds for name, seconds in STARTS_S.items() if name != "guide"} == record["start_ups_s"]
    assert STARTS_S["guide"] == STARTS_S["train"]  # it starts in the same way


def test_bad_devices_are_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="--device h2000: unknown; expected one of epyc-core, a100, h100, h200"):
        plan_for(DIGITS, [], "h2000", 8)
    assert main(["plan", str(DIGITS), "--gpus", "8"]) == 2
    assert "--gpus: of which kind?" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="128 is less than"):
        plan_for(CIFAR10, [], "h200", 256)


def test_more_workers_than_this_machine_has_room_for_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(DIGITS), "cluster.cpus_per_worker=10_000"]) == 2
    assert "train.num_workers: 2 with 10000 CPU each, but this machine has room for" in capsys.readouterr().err


def test_the_trial_measures_two_processes_that_exchange_gradients() -> None:
    small = ["network.base_channels=8", "sample.sampler.steps=3", "sample.chunk_images=4", "train.batch_size=4"]
    found = measure(config_of(DIGITS, *small), 2, on_gpu=False)
    assert found.processes == 2
    assert min(found.start_s, found.train_s, found.evaluation_s, found.classifier_s) > 0
