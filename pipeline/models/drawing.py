"""What `generate` and the sampling actors share: by what kind of processor is drawn, how often the network was asked,
how images emerge from noise, and how they drown in it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model import ModelSpec, State, Stream, TrainedModel, normal, to_uint8, to_unit_range

STRIP_FRAMES = 9


def device_name(device: torch.device) -> str:
    """The kind of processor: on one kind the same chunk has the same pixels, to the bit."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {torch.backends.cpu.get_cpu_capability()}"


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


def noised(spec: ModelSpec, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], list[float]]:
    """Images as q(x_t | x_0) has them at evenly spaced times of the path, themselves first, each with one noise for all
    times: frames uint8 [S, N, H, W, C], and the S times.

    images: uint8 [N, H, W, C]. What lies outside [-1, 1] is shown as its ends.
    """
    codec = spec.codec.build()  # pixels as they are: it has no weights that would have to be loaded
    x0 = codec.encode(to_unit_range(torch.from_numpy(images)))
    eps = normal(0, Stream.NOISE, torch.arange(len(images)), spec.latent_shape)
    shares = torch.linspace(0, 1, STRIP_FRAMES, dtype=torch.float64)[1:]
    times = [spec.path.t_data, *spec.path.training_time(shares).tolist()]
    states = (spec.noisy(x0, torch.full((len(images),), t, dtype=torch.float64), eps) for t in times)
    return np.stack([to_uint8(codec.decode(state)).numpy() for state in states]), times
