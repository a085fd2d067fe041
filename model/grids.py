"""Time grids: at which times a sampler evaluates the network.

A grid is a falling list of times; samplers add the data's own time behind it. On a path of T steps the grids that are
even in t visit whole steps; `karras` and `lambda_uniform`, which are even in the noise level, fall between them.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

import torch

from .continuous_paths import UnitTimePath
from .discrete_paths import DiscretePath
from .gaussian_path import GaussianPath

Grid = Literal["uniform", "trailing", "leading", "linspace", "karras", "lambda_uniform", "quadratic", "quadratic_paper"]
"""Where the times lie; `time_grid` says of each which they are."""

_RHO = 7.0


def time_grid(grid: Grid, path: GaussianPath, steps: int) -> list[float]:
    """`steps` times from the noisiest to the cleanest. ValueError where this path has no such grid."""
    if steps < 1 or (isinstance(path, DiscretePath) and steps > path.T):
        most = f"1 to {path.T}" if isinstance(path, DiscretePath) else "1 or more"
        length = f" of T = {path.T} steps" if isinstance(path, DiscretePath) else ""
        raise ValueError(f"a path{length} has no grid of {steps}; ask for {most} steps")
    return _GRIDS[grid](path, steps)[::-1]


def _uniform(path: GaussianPath, S: int) -> list[float]:
    """Equal gaps that end at the data: tau_i = i T / S, i = 1..S, rounded down. Song et al. 2021 (DDIM), appendix D.2.

    Their published code counts 0, T/S, 2T/S, ... instead and so never visits the noisiest steps; that is `leading`.
    """
    if isinstance(path, DiscretePath):
        return [i * path.T // S - 1.0 for i in range(1, S + 1)]
    if not isinstance(path, UnitTimePath):
        return _at(path, [i / S for i in range(1, S + 1)])
    if path.t_min > 1 / S:
        raise ValueError(
            f"an even grid of {S} steps ends at t = {1 / S:g}, cleaner than the path's first_time {path.t_min:g}; use "
            "linspace or fewer steps"
        )
    return [i / S for i in range(1, S + 1)]


def _trailing(path: GaussianPath, S: int) -> list[float]:
    """Like uniform, but rounded to the nearest step. Lin et al. 2023, table 2."""
    if isinstance(path, DiscretePath):
        return [round(Fraction(i * path.T, S)) - 1.0 for i in range(1, S + 1)]
    return _uniform(path, S)


def _leading(path: GaussianPath, S: int) -> list[float]:
    """Equal gaps from the cleanest time up; the noisiest times are not visited. Lin et al. 2023, table 2."""
    if isinstance(path, DiscretePath):
        return [float(i * (path.T // S)) for i in range(S)]
    return _at(path, [i / S for i in range(S)])


def _linspace(path: GaussianPath, S: int) -> list[float]:
    """Equal gaps from the cleanest time to the noisiest, both included. Nichol & Dhariwal 2021, section 4."""
    if isinstance(path, DiscretePath):
        return [float(round((path.T - 1) * share)) for share in _exact_shares(S)]
    return _at(path, _shares(S))


def _quadratic(path: GaussianPath, S: int) -> list[float]:
    """Gaps that grow evenly, both ends included; on T steps rounded, and pushed up where two would coincide.

    After Song et al. 2021 (DDIM), appendix D.2, who used it for CIFAR-10; see `quadratic_paper` for their code. The
    pushing never overshoots: tau_i + (S - 1 - i) is convex in i, so it is largest at its ends, S - 1 and T - 1.
    """
    if not isinstance(path, DiscretePath):
        return _at(path, [share**2 for share in _shares(S)])
    steps: list[float] = []
    for share in _exact_shares(S):
        t = float(round((path.T - 1) * share**2))
        steps.append(max(t, steps[-1] + 1) if steps else t)
    return steps


def _quadratic_paper(path: GaussianPath, S: int) -> list[float]:
    """Song et al. 2021 (DDIM), published code: it ends at 0.8 T, and repeats the cleanest steps where S is large."""
    if isinstance(path, DiscretePath):
        return [float(math.floor(Fraction(4 * path.T, 5) * share**2)) for share in _exact_shares(S)]
    return _at(path, [0.8 * share**2 for share in _shares(S)])


def _karras(path: GaussianPath, S: int) -> list[float]:
    """Even in (sigma / alpha)^(1 / 7). Karras et al. 2022, eq. 5."""
    lowest, highest = ((-lam).exp() ** (1 / _RHO) for lam in _lambda_ends("karras", path))
    noise_to_data = (lowest + (highest - lowest) * _float64(_shares(S))) ** _RHO
    return _within(path, -noise_to_data.log())


def _lambda_uniform(path: GaussianPath, S: int) -> list[float]:
    """Even in lambda = log(alpha / sigma). Lu et al. 2022 (DPM-Solver), section 3.4."""
    highest, lowest = _lambda_ends("lambda_uniform", path)
    return _within(path, highest + (lowest - highest) * _float64(_shares(S)))


def _lambda_ends(grid: str, path: GaussianPath) -> tuple[torch.Tensor, torch.Tensor]:
    """The lambdas at t_min and at t_max."""
    if path.loses_image:
        raise ValueError(
            f"grid {grid} is even in the noise level, which is infinite where alpha = 0, as at the noisy end of this "
            "path; use uniform"
        )
    at_min, at_max = path.lam(_float64([path.t_min, path.t_max]))
    return at_min, at_max


def _within(path: GaussianPath, lam: torch.Tensor) -> list[float]:
    """The times of these lambdas; rounding carries none beyond the path's ends."""
    return [float(t) for t in path.time(lam).clamp(path.t_min, path.t_max)]


def _at(path: GaussianPath, shares: list[float]) -> list[float]:
    """The times at these shares of the path."""
    return [float(t) for t in path.training_time(_float64(shares)).clamp(path.t_min, path.t_max)]


def _float64(numbers: list[float]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")  # whatever the default device, which may be "meta"


def _exact_shares(S: int) -> list[Fraction]:
    """0 to 1 in S points; the only point of one is 1, the noisy end."""
    return [Fraction(i, S - 1) for i in range(S)] if S > 1 else [Fraction(1)]


def _shares(S: int) -> list[float]:
    return [float(share) for share in _exact_shares(S)]


_GRIDS: dict[Grid, Callable[[GaussianPath, int], list[float]]] = {
    "uniform": _uniform,
    "trailing": _trailing,
    "leading": _leading,
    "linspace": _linspace,
    "karras": _karras,
    "lambda_uniform": _lambda_uniform,
    "quadratic": _quadratic,
    "quadratic_paper": _quadratic_paper,
}
