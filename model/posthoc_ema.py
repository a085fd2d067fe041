"""Averages of any length, made after the training from a few that were stored on its way.

Karras et al. 2024, section 3.2 and appendix C: a profile is approximated by a linear combination of the stored
profiles, and the same combination of the stored weights is then the average that one would have had.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from .ema import WIDEST_SIGMA_REL, check_alike, gamma_of
from .record import Record

_Array = NDArray[np.float64]


class EMASnapshot(Record):
    """A power-function average as it was at one moment of the training."""

    images_seen: int = Field(gt=0)
    """Images on which the network had been trained by then."""
    sigma_rel: float = Field(gt=0, le=WIDEST_SIGMA_REL)
    """Relative width of its profile."""


class Reconstruction(NamedTuple):
    """How to make an average of stored ones."""

    coefficients: tuple[float, ...]
    """One for each stored average, in their order; they sum to 1. 0 for those later than the wanted one."""
    error: float
    """|approximation - wanted profile| / |wanted profile|, L2 norms over the training; rounding hides what is below
    1e-7."""


def reconstruct_average(stored: Sequence[EMASnapshot], wanted: EMASnapshot) -> Reconstruction:
    """The combination of stored profiles that is nearest to the wanted one, in float64.

    Karras et al. 2024, algorithm 3, but the least squares are solved under the condition that the coefficients sum
    to 1; theirs are divided by their sum afterwards, which is not quite the nearest. ValueError where nothing was
    stored up to the wanted moment.
    """
    earlier = [index for index, snapshot in enumerate(stored) if snapshot.images_seen <= wanted.images_seen]
    if not earlier:
        raise ValueError(_nothing_words(stored, wanted))
    profiles = [*(stored[index] for index in earlier), wanted]
    t = np.array([profile.images_seen / wanted.images_seen for profile in profiles])
    gamma = np.array([gamma_of(profile.sigma_rel) for profile in profiles])
    products = inner_product(t[:, None], gamma[:, None], t, gamma)
    x = _nearest(products[:-1, :-1], products[:-1, -1])
    difference = np.append(x, -1)
    error2 = difference @ products @ difference / products[-1, -1]
    coefficients = np.zeros(len(stored))
    coefficients[earlier] = x
    return Reconstruction(tuple(coefficients.tolist()), math.sqrt(max(float(error2), 0.0)))


def inner_product(t_a: _Array, gamma_a: _Array, t_b: _Array, gamma_b: _Array) -> _Array:
    """Integral of p_a p_b over the training, where p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) up to t.

    Karras et al. 2024, eq. 151, written with ratios of at most 1, so that no power overflows.
    """
    end = np.minimum(t_a, t_b)
    powers = (end / t_a) ** (gamma_a + 1) * (end / t_b) ** (gamma_b + 1)
    return np.asarray((gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * powers / end)


def _nearest(A: _Array, b: _Array) -> _Array:
    """The x of sum 1 with the least x A x - 2 x b, by a Lagrange multiplier.

    Profiles are scaled to norm 1; of many narrow ones several are almost alike, hence least squares and no inverse.
    """
    norm = np.sqrt(np.diag(A))
    n = len(b)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = A / norm / norm[:, None]
    system[:n, n] = system[n, :n] = 1 / norm
    solution = np.linalg.lstsq(system, np.append(b / norm, 1.0))[0]
    return np.asarray(solution[:n] / norm)


def _nothing_words(stored: Sequence[EMASnapshot], wanted: EMASnapshot) -> str:
    if not stored:
        return "no averages were stored, expected at least one; store some of kind power_function while training"
    first = min(snapshot.images_seen for snapshot in stored)
    return (
        f"all {len(stored)} averages were stored after {wanted.images_seen:,} images, the first at {first:,}; ask for "
        "an average at that moment or later"
    )


@torch.no_grad()
def combine_weights(parts: Iterable[tuple[float, Callable[[], Mapping[str, Tensor]]]]) -> dict[str, Tensor]:
    """Sum of coefficient * weights, in float64, as float32. Each part is loaded when its turn comes, then let go.

    Those with coefficient 0 are not loaded. ValueError where there is none to load, or their weights are not alike.
    """
    total: dict[str, Tensor] = {}
    for number, (coefficient, load) in enumerate(parts):
        if coefficient == 0:
            continue
        state = load()
        total = total or {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in state.items()}
        check_alike(state, total, f"average {number}")
        for name, weight in state.items():
            total[name].add_(weight, alpha=coefficient)
    if not total:
        raise ValueError("nothing to combine: found no coefficient other than 0, expected at least one")
    return {name: weight.float() for name, weight in total.items()}
