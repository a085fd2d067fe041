"""bfloat16 is chosen where the device has units for it, and float32 is rounded where that was asked for only."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import autocast, fast_precision, float32_products


def test_a_cpu_computes_in_bfloat16_where_it_has_tiles_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for tiles, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        assert fast_precision(torch.device("cpu")) == expected


def test_a_gpu_computes_in_bfloat16_where_it_has_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for units, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, units=units: units)
        assert fast_precision(torch.device("cuda")) == expected


def test_gpus_round_factors_where_tf32_is_asked_for_alone() -> None:
    switches = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [switch.fp32_precision for switch in switches]
    for precision, expected in (("tf32", "tf32"), ("fp32", "ieee"), ("bf16", "ieee")):
        with float32_products(precision):
            assert [switch.fp32_precision for switch in switches] == [expected] * 3
    assert [switch.fp32_precision for switch in switches] == before


def test_norms_and_softmax_add_up_in_float32_under_bfloat16() -> None:
    """10,000 and its neighbours are one number in bfloat16's sums, and 256 ones are as many as it can count."""
    x = (10_000 + 64 * torch.randint(-4, 5, (2, 8, 16, 16))).bfloat16()
    queries, keys, values = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 1000, 8), torch.ones(1, 1, 1000, 8)
    with autocast(torch.device("cpu"), "bf16"):
        for norm in (nn.GroupNorm(2, 8), nn.LayerNorm(16)):
            torch.testing.assert_close(norm(x).float(), norm.double()(x.double()).float(), rtol=0.01, atol=0.01)
        assert (F.scaled_dot_product_attention(queries, keys, values) == 1).all()
