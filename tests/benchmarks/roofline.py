"""How fast a piece of work can be at best: an operation takes as long as its arithmetic or its memory traffic asks.

After Williams et al. 2009, "Roofline: an insightful visual performance model". Both rates are measured, not read from a
data sheet.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


def seconds_of(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The shortest time of one call, of so many; the first call of all does not count."""
    times = []
    for _ in range(repeats + 1):
        arrive(device)
        began = time.perf_counter()
        work()
        arrive(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def arrive(device: torch.device) -> None:
    """Waits for what the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...]) -> float:
    """FLOP/s of the fastest product of two square matrices among these sizes."""

    def rate(n: int) -> float:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        return 2 * n**3 / seconds_of(lambda: a @ b, device, 10)

    return max(map(rate, sizes))


def memory_rate(device: torch.device, size_bytes: int) -> float:
    """Bytes/s, read and written, of adding one to so many bytes of float32 in place."""
    values = torch.zeros(size_bytes // 4, device=device)
    return 2 * size_bytes / seconds_of(lambda: values.add_(1), device, 10)


@dataclass
class Roofline(TorchDispatchMode):
    """Sums the bounds of all operations in its `with` block; each reads its inputs and writes its results once.

    What is fused takes less than `rest_s`; products and convolutions take `product_s` at least, whatever is fused.
    """

    flop_per_s: float
    bytes_per_s: float
    flops: int = 0
    product_s: float = 0.0
    """Of operations with counted arithmetic: matrix products, convolutions, attention."""
    rest_s: float = 0.0
    """Of all others: norms, activations, additions, the optimizer, the averages."""

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function.is_view:
            return result
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        memory_s = sum(each.numel() * each.element_size() for each in tensors) / self.bytes_per_s
        if function.overloadpacket in flop_registry:
            flops = flop_registry[function.overloadpacket](*args, **kwargs, out_val=result)
            self.flops += flops
            self.product_s += max(flops / self.flop_per_s, memory_s)
        else:
            self.rest_s += memory_s
        return result
