"""bfloat16 is chosen where the device has units for it, and float32 is rounded where that was asked for only."""

import pytest
import torch

from model import fast_precision, set_float32


def test_a_cpu_computes_in_bfloat16_where_it_has_tiles_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for tiles, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        assert fast_precision(torch.device("cpu")) == expected


def test_gpus_round_factors_where_tf32_is_asked_for_alone() -> None:
    for precision, expected in (("tf32", "tf32"), ("fp32", "ieee"), ("bf16", "ieee")):
        set_float32(precision)
        assert torch.backends.cuda.matmul.fp32_precision == expected
        assert torch.backends.cudnn.conv.fp32_precision == expected
