"""Networks in closed form, samplers of every kind and setting, and the exact moments of what they make."""

import itertools
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import torch
from annotated_types import Ge, Le
from pydantic.fields import FieldInfo
from torch import Tensor, nn

from model import EpsDenoiser, Path, Sampler, Stream, normal
from model.denoiser import coefficients
from model.samplers import NoiseSource

MEMBERS: tuple[type[Any], ...] = get_args(get_args(Sampler)[0])
"""Every sampler there is; a new member of the union is tested by every test that walks over these."""


class IdealNetwork(nn.Module):
    """E[eps | x_t] for images whose pixels are independent N(mean, std^2): what perfect training would end in."""

    def __init__(self, path: Path, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.path, self.mean, self.std = path, mean, std

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = coefficients(self.path, t, x_t)
        return sigma * (x_t - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)


class WavyNetwork(nn.Module):
    """A smooth network that no sampler could mistake for a linear one: x0 = alpha x_t + sigma wave(x_t, t), which goes
    beyond [-1, 1] here and there and so is clipped.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = coefficients(self.path, t, x_t)
        phase = t.to(x_t.dtype).view(-1, 1, 1, 1) / 300
        wave = 0.5 * torch.sin(2 * x_t + phase) + 0.3 * x_t.flip(3)
        return sigma * x_t - alpha * wave


class ConstantNetwork(nn.Module):
    """Predicts the same noise everywhere: with a large value, images far outside [-1, 1]."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x_t: Tensor, _: Tensor) -> Tensor:
        return torch.full_like(x_t, self.value)


def variants(**fixed: Any) -> list[Any]:
    """Every member of the Sampler union with every combination of its named choices, flags and bounds of numbers."""
    found = []
    for member in MEMBERS:
        options = {name: list(_options(field)) for name, field in member.model_fields.items() if name not in fixed}
        found += [member(**fixed, **dict(zip(options, choice, strict=True))) for choice in _product(options)]
    return found


def _product(options: dict[str, list[Any]]) -> Iterator[tuple[Any, ...]]:
    return itertools.product(*options.values())


def _options(field: FieldInfo) -> Iterator[Any]:
    if get_origin(field.annotation) is Literal:
        yield from get_args(field.annotation)
    elif field.annotation is bool:
        yield from (False, True)
    else:
        bounds = [rule.ge if isinstance(rule, Ge) else rule.le for rule in field.metadata if isinstance(rule, Ge | Le)]
        yield from dict.fromkeys([*bounds, field.default])


def name_of(sampler: Any) -> str:
    """Test id: the settings in order, such as ddim-7-1.0-quadratic-x0."""
    settings = sampler.model_dump()
    return "-".join([settings.pop("kind"), *map(str, settings.values())])


def run(sampler: Any, network: nn.Module, path: Path, x: Tensor, noise: NoiseSource) -> list[Tensor]:
    """All states after the initial one."""
    return list(sampler.trajectory(EpsDenoiser(network, path), path, x, noise))


def seeded(seeds: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, NoiseSource]:
    """Initial noise and step noise of each seed, float64."""
    x = normal(0, Stream.INITIAL_NOISE, seeds, shape).double()
    return x, lambda step: normal(0, Stream.STEP_NOISE, seeds, shape, step).double()


def exact_moments(sampler: Any, network: nn.Module, path: Path) -> list[tuple[float, float]]:
    """Mean and variance of a pixel after every step, for an affine denoiser whose images are not clipped.

    The state is then mean + sum of c_i z_i over the initial and the step noises z_i. Row 0 gets no noise and finds the
    mean; row i gets z_i = 1 and nothing else and finds c_i. No random number is drawn, so no tolerance is needed.
    """
    rows = torch.eye(sampler.steps + 2, dtype=torch.float64)[:, 1:]  # row, noise
    columns = [column.view(-1, 1, 1, 1) for column in rows.unbind(1)]
    states = run(sampler, network, path, columns[0], lambda step: columns[step + 1])
    means = [state[0].item() for state in states]
    return [(mean, (state[1:] - mean).square().sum().item()) for mean, state in zip(means, states, strict=True)]
