"""How much arithmetic a network is: its floating-point operations, counted layer by layer."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .augmentation import AUGMENT_LABELS, Augmentation
from .conditioning import Conditioning, Unconditional
from .objectives import Objective


def training_flops(
    objective: Objective, conditioning: Conditioning, augmentation: Augmentation | None = None
) -> dict[str, int]:
    """What the network computes to learn from one image, forward and backward, by torch's names of the operators.

    Counted as by `_counted`.
    """
    return _counted(objective, conditioning, augmentation, backward=True)


def evaluation_flops(objective: Objective, conditioning: Conditioning) -> dict[str, int]:
    """What one call of the network computes for one image, forward alone: a sampler's unit; as `_counted`."""
    return _counted(objective, conditioning, None, backward=False)


def _counted(
    objective: Objective, conditioning: Conditioning, augmentation: Augmentation | None, backward: bool
) -> dict[str, int]:
    """FLOP by operator of a loss, of one image, and of its way back where that is asked for.

    Matrix products, convolutions and attention, with a multiplication and an addition as two; not what acts on each
    element alone, nor what an implementation computes twice to save memory (Chowdhery et al. 2022, appendix B). The
    network is built and called on the device "meta", of which tensors have a shape and no content.
    """
    from torch.utils.flop_counter import FlopCounterMode  # brings Triton along, half a second that others need not wait

    meta = torch.device("meta")
    with meta:
        network = objective.build()
    x0, t = torch.empty(1, *objective.spec.latent_shape, device=meta), torch.empty(1, dtype=torch.float64, device=meta)
    label = None if isinstance(conditioning, Unconditional) else torch.empty(1, dtype=torch.long, device=meta)
    told = None if augmentation is None else torch.empty(1, AUGMENT_LABELS, device=meta)
    # attention by its definition: the faster kernels compute it anew on the way back
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss = objective.losses(network, x0, t, torch.empty_like(x0), label, told).sum()
        if backward:
            loss.backward()
    return {operator.__name__: flops for operator, flops in counter.get_flop_counts()["Global"].items()}
