"""The benchmarks run from end to end, with a tiny network: what they measure so means nothing."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "tests/benchmarks"
sys.path.insert(0, str(SCRIPTS))  # as Python does for a script

import contestants
import frechet
import records
import roofline

QUICK = ("--device", "cpu", "--quick")
BAD_PARTS = ("failed", "cut short")
ABSENT = (
    "ray mlflow webdataset torchmetrics torch_fidelity torchvision diffusers safetensors sklearn matplotlib PIL fsspec "
    "braceexpand aiohttp filelock yaml rich pandas scipy"
)
"""What the GPU benchmark does without."""
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split()))  # whoever imports one of them is told that it is not there
del sys.argv[:2]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(script: str, output: Path, *options: str, absent: str = "") -> dict[str, Any]:
    """The record that the script leaves where these packages are not installed."""
    command = [sys.executable, "-c", WITHOUT, absent, str(SCRIPTS / script), "--output", str(output), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, timeout=600)
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def test_every_part_of_the_gpu_benchmark_runs_with_torch_numpy_and_pydantic_alone(tmp_path: Path) -> None:
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8))
    found = run("gpu.py", tmp_path / "gpu.json", *QUICK, "--cifar10", str(images), absent=ABSENT)
    parts = {name: part for name, part in found.items() if isinstance(part, dict) and name != "images_per_s"}
    assert parts.keys() == {
        "correctness", "rates", "training", "sampling", "synchronisation", "roofline", "batch_sizes", "curves"
    }  # fmt: skip
    assert not {name: part for name, part in parts.items() if part.keys() & set(BAD_PARTS)}
    assert "left out" in parts["synchronisation"]
    assert parts["training"]["diffusers"] == "left out: not installed"
    assert parts["correctness"]["float32, relative error of the gradient"] < 1e-4
    assert (
        found["command"] == "python tests/benchmarks/gpu.py --output gpu.json --device cpu --quick --cifar10 images.npy"
    )


@pytest.mark.slow
def test_the_step_benchmark_compares_what_is_installed_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    found = run("step.py", tmp_path / "step.json", *QUICK, "--rounds", "1")
    assert found["ratios"]["ours, float32 / diffusers, float32"]["ratio"] > 0
    assert found["left_out"]["ours, best settings"] == "compiled, which --quick does not do"


def test_the_same_network_is_built_of_diffusers_parts() -> None:
    theirs, ours = contestants.diffusers_unet(contestants.DDPM), contestants.spec_of(contestants.DDPM).build()
    assert contestants.parameter_count(theirs) == contestants.parameter_count(ours) == 35_746_307


@pytest.mark.slow
def test_the_sampling_benchmark_compares_the_same_network_with_diffusers(tmp_path: Path) -> None:
    found = run("sampling.py", tmp_path / "sampling.json", *QUICK, "--rounds", "1", "--batch-size", "2", "--steps", "2")
    assert found["ratios"]["ours, float32 / diffusers, float32"]["ratio"] > 0
    assert found["left_out"] == ["ours, best settings"]


@pytest.mark.slow
def test_the_scoring_benchmark_compares_one_model_and_one_extractor_with_diffusers_and_pytorch_fid(
    tmp_path: Path,
) -> None:
    found = run("scoring.py", tmp_path / "scoring.json", "--quick")
    ours, theirs = (found[f"{name}, round 1"]["distance"] for name in ("ours", "diffusers, PNG, pytorch-fid"))
    assert ours == pytest.approx(theirs, rel=0.3)  # other noise, and few images
    assert found["left_out"] == {}
    assert all(figures["ratio"] > 0 for figures in found["ratios"].values())
    assert len(found["ratios"]) == 3


@pytest.mark.slow
def test_the_scoring_benchmark_names_what_it_leaves_out(tmp_path: Path) -> None:
    found = run("scoring.py", tmp_path / "scoring.json", "--quick", "--limit-s", "1")
    assert set(found["left_out"]) == {"ours", "one actor", "diffusers, PNG, pytorch-fid"}
    assert found["ratios"] == {}


@pytest.mark.slow
def test_the_memory_benchmark_measures_both_modes_and_an_actor(tmp_path: Path) -> None:
    found = run("scoring_memory.py", tmp_path / "memory.json", "--images", "250", "500", "--features", "16")
    for work in ("features kept", "moments", "an actor"):
        assert {images: figures["grown_mb"] > 0 for images, figures in found[work].items()} == {
            "250": True,
            "500": True,
        }


def test_the_frechet_benchmark_compares_the_same_distance() -> None:
    record, speeds = records.Record(None, torch.device("cpu")), dict[str, list[float]]()
    frechet.measure(argparse.Namespace(features=16, images=1000, rounds=2), record, speeds)
    assert {name: len(rounds) for name, rounds in speeds.items()} == {frechet.OURS: 2, frechet.THEIRS: 2}
    assert record.content["relative difference"] < 1e-9


def test_a_limit_of_time_ends_what_is_under_way_and_is_gone_afterwards() -> None:
    with pytest.raises(records.OutOfTime), records.time_limit(0.05):
        time.sleep(60)
    with records.time_limit(0.05):
        pass
    time.sleep(0.1)


def test_a_ratio_is_the_median_over_rounds_that_both_finished() -> None:
    assert records.ratio({"ours": [2.0, 9.0, 4.0], "theirs": [1.0, 3.0]}, "ours", "theirs") == 2.5


def test_the_roofline_of_a_product_is_its_arithmetic_or_its_traffic() -> None:
    a, b = torch.zeros(64, 32), torch.zeros(32, 16)
    for flop_per_s, bytes_per_s in ((1e3, 1e12), (1e12, 1e3)):
        with roofline.Roofline(flop_per_s, bytes_per_s) as bound:
            torch.relu(a @ b)
        assert bound.flops == 2 * 64 * 32 * 16
        traffic = 4 * (64 * 32 + 32 * 16 + 64 * 16)
        assert bound.product_s == pytest.approx(max(bound.flops / flop_per_s, traffic / bytes_per_s))
        assert bound.rest_s == pytest.approx(2 * 4 * 64 * 16 / bytes_per_s)
