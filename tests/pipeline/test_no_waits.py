"""A training step asks the device for nothing, so that between two points of the curve the host never waits for a GPU.

A CPU would not show it. So torch's own marks of its operators tell: those refused here have numbers for a result, or a
shape that hangs on numbers, or make a tensor of Python's numbers, which goes to a GPU by a copy that is waited for.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import (
    Augmentation,
    ClassLabels,
    DDPMUNet,
    Denoising,
    Eps,
    LearnedRange,
    ModelSpec,
    Unconditional,
    VPCosine,
)
from model.ncsnpp import NCSNpp
from pipeline.runfile.train_config import TrainConfig
from pipeline.training.train_step import Batch, Recipe, TrainStep

from ..model.unions import PAIRS, SAMPLINGS, WEIGHTINGS, name_of

BATCH = 4
LEVELS: dict[str, Any] = {
    "base_channels": 8,
    "channel_multipliers": (1,),
    "blocks_per_level": 1,
    "attention_sizes": (),
}
SPEC: dict[str, Any] = {"image_size": 4, "channels": 1, "network": DDPMUNet(**LEVELS), "path": VPCosine()}


class NoWaits(TorchDispatchMode):
    """RuntimeError where an operator would make the host wait for a GPU."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        indexes = "index" in function.overloadpacket.__name__  # by numbers waits for nothing, by a mask it does
        masks = indexes and any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1]))
        sized = torch.Tag.dynamic_output_shape in function.tags and not indexes
        read = torch.Tag.data_dependent_output in function.tags
        if masks or sized or read or function is torch.ops.aten.lift_fresh.default:
            raise RuntimeError(f"{function} waits for the device")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.masked_fill_(x > 0, 1).nonzero(),
        lambda x: x.__setitem__(x > 0, x[:1]),
        lambda x: x + torch.tensor([1.0]),
        lambda x: torch.equal(x, x),
    ],
)
def test_what_waits_for_a_gpu_is_refused(work: Callable[[Tensor], Any]) -> None:
    x = torch.arange(4.0)
    work(x.clone())
    with pytest.raises(RuntimeError, match="waits for the device"), NoWaits():
        work(x)


def cases() -> Iterator[Any]:
    """The settings of a step: of the model's, and of `train`."""
    for path, target in PAIRS:
        yield pytest.param({"path": path, "target": target}, {}, id=f"{name_of(path)}-{name_of(target)}")
    for part, members in (("times", SAMPLINGS), ("weighting", WEIGHTINGS)):
        for member in members:
            yield pytest.param({}, {part: member}, id=f"{part}-{name_of(member)}")
    told = NCSNpp(**LEVELS, augment_labels=9)
    yield pytest.param({"network": told}, {"augmentation": Augmentation(probability=0.9)}, id="augmentation")
    yield pytest.param({"variance": LearnedRange()}, {}, id="learned_range")
    yield pytest.param({"classes": 3}, {}, id="classes")
    options: list[dict[str, Any]] = [
        {"hflip": True},
        {"microbatch_images": 3},
        {"precision": "bf16"},
        {"clip_norm": None},
        {"also_averaged": [{"kind": "power_function"}]},
    ]
    for option in options:
        yield pytest.param({}, option, id=str(option))


@pytest.mark.parametrize(("spec", "train"), list(cases()))
def test_a_step_waits_for_nothing(spec: dict[str, Any], train: dict[str, Any]) -> None:
    config = TrainConfig.model_validate({"images": 1000, "batch_size": BATCH, "warmup_images": 100} | train)
    conditioning = ClassLabels(classes=3) if "classes" in spec else Unconditional()
    model = ModelSpec.model_validate(SPEC | {"target": Eps()} | spec)
    step = TrainStep(Recipe(Denoising(model, config.weighting), config, conditioning), torch.device("cpu"))
    images, labels = torch.zeros(BATCH, 4, 4, 1, dtype=torch.uint8), torch.full((BATCH,), 1)

    def take(steps: int) -> None:
        for _ in range(steps):
            step(Batch(step.state.images_seen, images, labels))

    take(2)  # in which the path's table and the optimizer's moments are made
    with NoWaits():
        take(2)
    assert step.state.skipped.tolist() == [0, 0, 0]
