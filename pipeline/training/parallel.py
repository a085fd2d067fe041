"""How several workers train one network: a copy on each (DDP), or a shard of every tensor on each (FSDP2).

Sharded tensors are DTensors, with which optimizer, clipping and averages work as with others. Only what leaves or
enters the process must know: `gathered`, `whole` and `sharded_like`. FSDP2 is imported where it is used, for that alone
takes as long as to import torch.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import EMA

Parallel = Literal["ddp", "fsdp"]


def shard(network: nn.Module, device: torch.device, world_size: int) -> None:
    """Leaves each worker its shard of the network; each block is put together while it computes. Zhao et al. 2023."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world_size,))
    for part in network.children():
        for block in part if isinstance(part, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def replicate(network: nn.Module, device: torch.device, adds_up: bool) -> DistributedDataParallel:
    """The same network on each worker, gradients averaged while they are computed.

    adds_up: whether some passes come `without_exchange`; a static graph, which DDP exchanges sooner, has none.
    """
    replicas = DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=not adds_up,
    )
    replicas.broadcast_buffers = False  # as an argument torch 2.15 deprecates it, and 2.11 lacks its new name
    return replicas


def without_exchange(network: nn.Module) -> AbstractContextManager[Any]:
    """Within it gradients add up on each worker alone; the first backward pass outside exchanges them all."""
    if isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return nullcontext()


def gathered(tensor: Tensor) -> Tensor:
    """The whole of it; where it is sharded, all workers must ask."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]  # a DTensor then


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def whole(value: Any) -> Any:
    """The same structure with whole tensors, copied into this process's memory; of sharded ones all must ask."""
    if isinstance(value, Tensor):
        return gathered(value).detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(item) for item in value)
    return value


def load_whole(into: nn.Module | EMA, weights: Mapping[str, Tensor]) -> None:
    """Takes over whole weights, the same on all workers; of those that are sharded, this worker's shards."""
    into.load_state_dict(sharded_like(weights, into.state_dict()))


def sharded_like(tensors: Mapping[str, Tensor], pattern: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, the same on all workers, as this one holds them: those sharded that are so in `pattern`."""
    return {name: _sharded(tensor, pattern[name]) if name in pattern else tensor for name, tensor in tensors.items()}


def _sharded(tensor: Tensor, pattern: Any) -> Tensor:
    if not _is_sharded(pattern) or tensor.shape != pattern.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None)
