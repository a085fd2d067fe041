"""bfloat16 is chosen where the device has units for it, and float32 is rounded where that was asked for only."""

import pytest
import torch

from model import fast_precision, float32_products


def test_a_cpu_computes_in_bfloat16_where_it_has_tiles_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for tiles, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        assert fast_precision(torch.device("cpu")) == expected


def test_gpus_round_factors_where_tf32_is_asked_for_alone() -> None:
    switches = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [switch.fp32_precision for switch in switches]
    for precision, expected in (("tf32", "tf32"), ("fp32", "ieee"), ("bf16", "ieee")):
        with float32_products(precision):
            assert [switch.fp32_precision for switch in switches] == [expected] * 3
    assert [switch.fp32_precision for switch in switches] == before
