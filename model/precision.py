"""In which arithmetic a network computes. Its weights, what the path does and every sum stay float32 or more."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

Precision = Literal["fp32", "tf32", "bf16"]
"""fp32: float32 throughout. tf32: float32, but GPUs round the factors of matrix products and convolutions to 10 bits.
bf16: matrix products and convolutions in bfloat16; norms, softmax and time embedding still add up in float32."""


def fast_precision(device: torch.device) -> Precision:
    """bf16 where this device has matrix units for it (GPUs from Ampere on, CPUs with AMX), else fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"  # there is no public question


def set_float32(precision: Precision) -> None:
    """Whether this process's GPU rounds what is float32: TF32 where asked for, and nowhere else."""
    rounding = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = rounding
    torch.backends.cudnn.conv.fp32_precision = rounding  # type: ignore[attr-defined]  # missing in torch's own types


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Within it a network computes in this arithmetic; `set_float32` decides between fp32 and tf32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
