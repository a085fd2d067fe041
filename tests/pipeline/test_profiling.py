"""The command `profile`: real steps without a cluster, a trace for a viewer, and sentences that fit the figures."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.training.profile_page import Operator, Profile, page, reading

from .trainings import POINT, TINY

FOUND = Profile(
    name="night",
    device=torch.device("cpu"),
    threads=2,
    precision="bf16",
    compiled=False,
    images=64,
    batch_size=128,
    parameters=1_000,
    flops={"convolution": 10**6, "convolution_backward": 2 * 10**6, "bmm": 3 * 10**5, "addmm": 10**5},
    figures=POINT,
    step_s=0.1,
    profiled_step_s=0.12,
    matmul_flop_per_s=128e9,
    operators=[
        Operator("aten::convolution_backward", 4, 0.04),
        Operator("aten::mkldnn_convolution", 4, 0.02),
        Operator("aten::_scaled_dot_product_flash_attention_for_cpu", 1, 0.016),
        Operator("aten::native_group_norm", 4, 0.003),
        Operator("Optimizer.step#Adam.step", 1, 0.001),
    ],
    waits=0,
    reads=3,
    memory_bytes=10**9,
)
ON_GPU = replace(FOUND, device=torch.device("cuda"), waits=1.5)


def test_the_tiny_run_is_profiled_without_a_cluster(tmp_path: Path) -> None:
    settings = TINY | {
        "version": 1,
        "output": str(tmp_path / "outputs"),
        "train": {"images": 640, "batch_size": 32, "num_workers": 2},
        "sample": {"images": 2, "sampler": {"kind": "ddim"}},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "pipeline", "profile", str(tmp_path / "tiny.yaml"), "cluster.device=cpu"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    (folder,) = tmp_path.glob("outputs/tiny-*/profile")
    text = (folder / "profile.md").read_text()
    assert "16 images of each 32" in text
    assert "`aten::convolution_backward` | convolution, backward |" in text
    for line in (folder / "profile.md").read_text().partition("## In words\n\n")[2].partition("\n\n")[0].splitlines():
        assert line.removeprefix("- ") in finished.stdout
    names = {event.get("name") for event in json.loads((folder / "trace.json").read_text())["traceEvents"]}
    assert {"aten::convolution_backward", "aten::_fused_adam_"} <= names
    assert not list(folder.parent.glob("**/checkpoints"))


def test_kinds_add_up_and_each_counted_operator_is_of_a_kind() -> None:
    assert {kind: (round(seconds, 6), number) for kind, (seconds, number) in FOUND.kinds().items()} == {
        "convolution, backward": (0.04, 128 * 10**6),
        "convolution": (0.02, 64 * 10**6),
        "attention": (0.016, 64 * 3 * 10**5),
        "normalisation": (0.003, 0),
        "optimizer and averages": (0.001, 0),
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::cudnn_convolution", "convolution"),
        ("ConvolutionBackward0", "convolution, backward"),
        ("aten::addmm", "matrix products"),
        ("aten::bmm", "attention"),
        ("aten::linalg_vector_norm", "everything else"),
        ("aten::_foreach_mul_", "optimizer and averages"),
        ("triton_poi_fused_add_0", "compiled kernels"),
    ],
)
def test_operators_are_told_apart_by_their_names(name: str, kind: str) -> None:
    assert Operator(name, 1, 1.0).kind == kind


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        (FOUND, "Of the time in operators: convolution, backward 50 %; convolution 25 %; attention 20 %."),
        (FOUND, "The reader keeps up: training waits for images 0.0 % of the time."),
        (replace(FOUND, figures=POINT | {"data_share": 0.3}), "Training waits for images 30 % of the time: try"),
        (FOUND, "A CPU does nothing behind the host's back, so no step waits for it."),
        (ON_GPU, "The host waits for the GPU 1.5 times in a step; the GPU idles 20 % of the time: try train.compile"),
        (
            replace(ON_GPU, step_s=0.081),
            "The host waits for the GPU 1.5 times in a step; the GPU idles 1 % of the time.",
        ),
        (FOUND, "A step reaches 32 % of the matmul rate; 95 % of the time in operators is in kinds whose FLOPs are"),
        (replace(FOUND, compiled=True), "A step reaches 32 % of the matmul rate."),
    ],
)
def test_sentences_follow_the_figures(profile: Profile, says: str) -> None:
    assert [sentence for sentence in reading(profile) if sentence.startswith(says)], reading(profile)


def test_the_page_names_device_arithmetic_and_speed() -> None:
    text = page(FOUND)
    for part in ("2 threads", "| bf16, not compiled |", "3.4 MFLOP to learn from one image", "| 100 images/s |"):
        assert part in text
    assert "| convolution | 20 | 25 % | 64 MFLOP | 3.2 GFLOP/s |" in text
    assert "bf16, compiled" in page(replace(FOUND, compiled=True))
