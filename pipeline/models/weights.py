"""Weights of a network as they lie in a file: read whole, told from another network's, and named by their digest."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn, uint8

from ..errors import ConfigError


def read_weights(file: Path) -> dict[str, Tensor]:
    """The weights in a file. ConfigError where it is not whole."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file}: not a whole safetensors file ({error}); restore it, or train again") from None


def check_weights(weights: Mapping[str, Tensor], network: nn.Module, source: str, whose: str) -> None:
    """ConfigError, with the first name that differs, unless the weights are those of such a network.

    source: where the weights are from. whose: what the error says after `the network`.
    """
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for each in sorted(found.keys() | expected.keys()):
        if found.get(each) != expected.get(each):
            shapes = [list(side[each]) if each in side else "none" for side in (found, expected)]
            raise ConfigError(
                f"{source}: {each} is {shapes[0]}, where the network {whose} has {shapes[1]}; these are the weights of "
                "another model"
            )


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes, types and bytes of the weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(uint8).numpy().tobytes())
    return digest.hexdigest()
