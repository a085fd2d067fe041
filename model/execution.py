"""How a network is executed while images are drawn: in which arithmetic, and step by step or compiled."""

from typing import cast

import torch
from torch import Tensor, nn

from .precision import Precision, autocast, float32_products
from .record import Record


class Execution(Record):
    """What a network's output depends on by rounding alone, beside the device and the batch."""

    precision: Precision = "fp32"
    """Arithmetic of the network. fp32: all of it; tf32: on GPUs, factors of products are rounded to 10 bits; bf16:
    autocast, in which norms and softmax still add up in float32."""
    compile: bool = False
    """By torch.compile, once for each shape of its inputs; on GPUs replayed as CUDA graphs."""

    def of(self, network: nn.Module) -> "ExecutedNetwork":
        """The network, ready to be asked, where its weights are."""
        return ExecutedNetwork(network, self)


EAGER = Execution()


class ExecutedNetwork(nn.Module):
    """A network that is called as the one it holds; its output is the caller's to keep.

    Under bf16 the output may be bfloat16, and is the only thing that is: inputs and weights stay float32.
    """

    def __init__(self, network: nn.Module, execution: Execution) -> None:
        super().__init__()
        self.execution = execution
        on_gpu = any(parameter.is_cuda for parameter in network.parameters())
        self._graphs = execution.compile and on_gpu
        if execution.compile:
            mode = "reduce-overhead" if self._graphs else None
            # A break in the graph, or sizes that are guessed, would be slow in silence.
            network = cast(nn.Module, torch.compile(network, fullgraph=True, dynamic=False, mode=mode))
        self.network = network

    def forward(self, x: Tensor, *told: Tensor) -> Tensor:
        """x: [B, C, H, W]; told: [B] each, as the network takes them."""
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        precision = self.execution.precision
        with float32_products(precision), autocast(x.device, precision):
            output: Tensor = self.network(x, *told)
        return output.clone() if self._graphs else output  # the graph's next replay overwrites it
