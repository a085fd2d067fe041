"""In which arithmetic a network computes. Its weights, what the path does and every sum stay float32 or more."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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


@contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """Within it float32 products and convolutions on GPUs are rounded for tf32 and exact otherwise.

    By default torch rounds those of convolutions alone. The switches are the whole process's, so they are put back.
    """
    cudnn: Any = torch.backends.cudnn  # the type checker sees the file, not the object that takes its place
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for switch, earlier in zip(switches, before, strict=True):
            switch.fp32_precision = earlier


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Within it a network computes in bfloat16 where asked to; `float32_products` tells tf32 from fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within it float32 stays float32, whatever is around."""
    if not torch.amp.is_autocast_available(device.type):  # as for "meta", on which shapes are computed
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
