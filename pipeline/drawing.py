"""What drawing needs on actors and at once: how often the network was asked, and how images emerge from noise."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from model import State, TrainedModel

STRIP_FRAMES = 9


@contextmanager
def images_counted(network: nn.Module, on_count: Callable[[int], None] = lambda _: None) -> Iterator[Callable[[], int]]:
    """Yields a function that says how many images the network has been given since, repeats counted.

    on_count hears the number before each call of the network, which does not take place where it raises.
    """
    counted = 0

    def add(_network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal counted
        counted += len(inputs[0])
        on_count(counted)

    hook = network.register_forward_pre_hook(add)
    try:
        yield lambda: counted
    finally:
        hook.remove()


def strip(model: TrainedModel, way: Iterable[State]) -> tuple[NDArray[np.uint8], list[float]]:
    """Images at evenly spaced states of their way, the first and the last included: frames uint8 [S, N, H, W, C], and
    the S times.
    """
    states = list(way)
    shown = np.unique(np.linspace(0, len(states) - 1, STRIP_FRAMES).round().astype(int))
    frames = np.stack([model.pictures(states[number].x).cpu().numpy() for number in shown])
    return frames, [states[number].t for number in shown]
