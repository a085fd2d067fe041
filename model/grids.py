"""Time grids: at which steps a sampler evaluates the network.

A grid is a strictly falling list of steps from T - 1; the samplers add the data's own t = -1 behind it.
"""

from typing import Literal, get_args

Grid = Literal["uniform", "quadratic"]
GRIDS: tuple[Grid, ...] = get_args(Grid)


def time_grid(grid: Grid, T: int, steps: int) -> list[int]:
    """`steps` distinct times in [0, T), falling from T - 1. ValueError unless 1 <= steps <= T."""
    if not 1 <= steps <= T:
        raise ValueError(f"a path of T = {T} steps has no grid of {steps}; ask for 1 to {T} steps")
    rising = _uniform(T, steps) if grid == "uniform" else _quadratic(T, steps)
    return rising[::-1]


def _uniform(T: int, S: int) -> list[int]:
    """tau_i = floor(i T / S), i = 1..S, counted from 1. Song et al. 2021 (DDIM), appendix D.2, with c = T / S.

    Their published code counts 0, T/S, 2T/S, ... instead and so never visits the noisiest steps.
    """
    return [(i * T) // S - 1 for i in range(1, S + 1)]


def _quadratic(T: int, S: int) -> list[int]:
    """tau_i = (T - 1) (i / (S - 1))^2, i = 0..S-1, rounded and pushed up where two would coincide.

    After Song et al. 2021 (DDIM), appendix D.2, who used it for CIFAR-10; their code stops at 0.8 T and repeats the
    first steps. The pushing never overshoots: tau_i + (S - 1 - i) is convex in i, so it is largest at its ends, S - 1
    and T - 1.
    """
    if S == 1:
        return [T - 1]
    steps: list[int] = []
    for i in range(S):
        tau = round((T - 1) * (i / (S - 1)) ** 2)
        steps.append(max(tau, steps[-1] + 1) if steps else tau)
    return steps
