"""What a training's time goes into: parts that add up, a slow reader and a late worker seen as what they are."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model import Precision
from pipeline.stage import Run
from pipeline.training.speed import SHARES, matmul_flop_per_s, speed_in_words, split, time_spent
from pipeline.training.train_loop import Worker
from pipeline.training.train_step import Batch

from .trainings import POINT, TINY, prepared, worker_of

SECONDS = st.floats(0, 1e4)


@given(seconds=st.floats(1e-3, 1e4), step_s=SECONDS, exposed_s=SECONDS, waited_s=SECONDS)
def test_the_parts_of_the_time_are_its_whole(seconds: float, step_s: float, exposed_s: float, waited_s: float) -> None:
    parts = split(seconds, step_s, exposed_s, waited_s)
    assert tuple(parts) == SHARES
    assert sum(parts.values()) == pytest.approx(seconds)
    assert min(parts.values()) >= 0


def test_waiting_for_images_while_the_device_has_work_left_costs_nothing() -> None:
    assert split(10, step_s=9, exposed_s=2, waited_s=5) == {"compute": 7, "communication": 2, "data": 1, "other": 0}
    assert split(10, step_s=6, exposed_s=0, waited_s=3) == {"compute": 6, "communication": 0, "data": 3, "other": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = TINY | {
        "train": {"images": 320, "batch_size": 32},
        "sample": {"images": 2, "sampler": {"kind": "ddim"}},
    }
    return prepared(settings, tmp_path_factory.mktemp("tiny"), None)


@pytest.mark.parametrize("slow_s", [0, 0.3])
def test_a_reader_that_is_slow_is_what_the_time_goes_into(
    tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_s: float
) -> None:
    read = Worker._read

    def read_slowly(worker: Worker, start: int) -> Batch:
        time.sleep(slow_s)
        return read(worker, start)

    monkeypatch.setattr(Worker, "_read", read_slowly)
    worker = worker_of(tiny, tmp_path)
    meter = worker.meter()
    assert list(worker.steps(meter)) == list(range(1, 11))
    found = worker.measured(meter)
    assert sum(found[f"{name}_share"] for name in SHARES) == pytest.approx(1)
    if slow_s:
        assert found["data_share"] * found["seconds"] > 0.9 * slow_s  # while the first batch comes, at least
    assert found["communication_share"] == 0
    assert found["compute_share"] > 0
    assert found["flop_per_s"] == pytest.approx(found["images_per_s"] * meter.flops_per_image)
    assert found["matmul_fraction"] == pytest.approx(found["flop_per_s"] / meter.matmul_flop_per_s)
    assert worker.waited_s == 0


_WORKER = """
import json, sys, time
from datetime import timedelta
import torch
from torch import nn
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from pipeline.training.speed import Meter, StepTimer

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=120))


def parallel():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(40, 300), nn.Linear(300, 300))
    return DistributedDataParallel(network, gradient_as_bucket_view=True, static_graph=True, bucket_cap_mb=0.1)


plain, timed = parallel(), parallel()
timer = StepTimer(torch.device("cpu"), timed)
meter = Meter(0, timer, 1000, "fp32")
for step in range(4):
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(10 * step + rank))
    plain.zero_grad()
    plain(x).square().mean().backward()
    time.sleep(0.2 * rank)
    timed.zero_grad()
    with timer.step():
        timed(x).square().mean().backward()
    for one, other in zip(plain.parameters(), timed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
print(json.dumps(meter.take(40, 0.0)), flush=True)
dist.barrier()
dist.destroy_process_group()
"""


def test_two_workers_see_the_time_for_which_one_is_late_as_communication_and_learn_as_without(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WORKER]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    first, second = (json.loads(text) for text in said)
    assert first == second  # means over both
    assert first["communication_share"] * first["seconds"] > 0.1  # of 0.8 s the half, as one of them waits
    assert sum(first[f"{name}_share"] for name in SHARES) == pytest.approx(1)
    assert first["flop_per_s"] == pytest.approx(1000 * first["images_per_s"])
    assert first["data_share"] == 0


@pytest.mark.parametrize(
    ("precision", "dtype", "switch"),
    [("fp32", torch.float32, "ieee"), ("tf32", torch.float32, "tf32"), ("bf16", torch.bfloat16, "ieee")],
)
def test_the_device_is_measured_in_the_arithmetic_of_training_and_without_random_numbers(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, dtype: torch.dtype, switch: str
) -> None:
    before, product, seen = torch.get_rng_state(), torch.mm, set()

    def seen_product(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        seen.add((a.dtype, torch.backends.cuda.matmul.fp32_precision))
        return product(a, b, out=out)

    monkeypatch.setattr(torch, "mm", seen_product)
    assert matmul_flop_per_s(torch.device("cpu"), precision) > 1e6
    assert seen == {(dtype, switch)}
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_is_weighed_by_the_time_of_its_points_those_of_earlier_code_left_out() -> None:
    old = {"seconds": 50.0, "images_per_s": 1.0, "data_wait_share": 0.5}
    other = POINT | {"seconds": 6.0, "matmul_fraction": 0.121, "compute_share": 0.51, "data_share": 0.4}
    found = time_spent([old, POINT, other])
    assert found["matmul_fraction"] == pytest.approx(0.171)
    assert found["data_share"] == pytest.approx(0.3)
    assert sum(found[f"{name}_share"] for name in SHARES) == pytest.approx(1)
    assert time_spent([old]) == time_spent([]) == {}


def test_the_figures_in_words() -> None:
    words = "91 % compute, 6 % communication, 0 % data, 3 % other; 41.2 GFLOP/s, 32 % of the matmul rate"
    assert speed_in_words(POINT) == words
