"""Grids fall from the noisiest time to the cleanest, are the papers', and never leave the path."""

import math
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from model import VPSDE, EDMPath, Grid, RectifiedFlow, VPCosine, VPLinear, time_grid
from model.discrete_paths import DiscretePath
from model.gaussian_path import GaussianPath

from .unions import PATHS, name_of

GRIDS: tuple[Grid, ...] = get_args(Grid)
EVEN_IN_LAMBDA: tuple[Grid, ...] = ("karras", "lambda_uniform")
LOSING = [path for path in PATHS if path.loses_image]
CASES = [(path, grid) for path in PATHS for grid in GRIDS if path not in LOSING or grid not in EVEN_IN_LAMBDA]
each_grid = pytest.mark.parametrize("grid", GRIDS)
each_case = pytest.mark.parametrize(("path", "grid"), CASES, ids=[f"{name_of(path)}-{grid}" for path, grid in CASES])
DDPM = VPLinear()

CLEANEST: tuple[Grid, ...] = ("leading", "linspace", "karras", "lambda_uniform", "quadratic", "quadratic_paper")
"""Grids that end at the cleanest time; the others leave a whole gap to the data."""


@each_case
def test_grid_falls_from_its_noisy_end(path: GaussianPath, grid: Grid) -> None:
    for steps in (1, 2, 10, 50, 1000):
        times = time_grid(grid, path, steps)
        assert len(times) == steps
        assert all(type(t) is float for t in times)
        assert path.t_min <= times[-1] <= times[0] <= path.t_max
        repeats = grid == "quadratic_paper" and steps > 10
        assert all(now > after or (repeats and now == after) for now, after in pairwise(times)), steps


def at_share(path: GaussianPath, share: float) -> float:
    return float(path.training_time(torch.tensor(share, dtype=torch.float64)))


@pytest.mark.parametrize("grid", ["uniform", "trailing"])
def test_even_grid_finer_than_the_first_time_is_refused(grid: Grid) -> None:
    path = RectifiedFlow(first_time=0.2)
    assert len(time_grid(grid, path, 5)) == 5
    with pytest.raises(ValueError, match=r"an even grid of 10 steps ends at t = 0.1, cleaner than .* first_time 0.2"):
        time_grid(grid, path, 10)


@pytest.mark.parametrize("grid", get_args(Grid))
def test_grids_do_not_depend_on_the_default_device(grid: Grid) -> None:
    expected = time_grid(grid, VPSDE(), 7)
    with torch.device("meta"):
        assert time_grid(grid, VPSDE(), 7) == expected


@each_case
def test_grid_begins_and_ends_where_it_says(path: GaussianPath, grid: Grid) -> None:
    times = time_grid(grid, path, 50)
    discrete = isinstance(path, DiscretePath)
    starts: dict[Grid, float] = {
        "leading": 980.0 if discrete else at_share(path, 0.98),
        "quadratic_paper": 800.0 if discrete else at_share(path, 0.8),
    }
    start = starts.get(grid, path.t_max)
    assert times[0] == pytest.approx(start, rel=1e-12)
    if grid in CLEANEST:
        assert times[-1] == pytest.approx(path.t_min, abs=1e-9)
    else:
        share = at_share(path, 1 / 50) if isinstance(path, EDMPath) else path.t_max / 50
        assert times[-1] == pytest.approx(19.0 if discrete else share)


@each_case
def test_one_step_begins_at_the_noisy_end(path: GaussianPath, grid: Grid) -> None:
    """But for `leading`, which counts from the clean end, and the paper's quadratic, whose end is at 0.8 T."""
    paper = 800 if isinstance(path, DiscretePath) else at_share(path, 0.8)
    ends = {"leading": path.t_min, "quadratic_paper": paper}
    assert time_grid(grid, path, 1) == [pytest.approx(ends.get(grid, path.t_max))]


@each_grid
@settings(max_examples=50)
@given(data=st.data(), T=st.integers(2, 3000))
def test_grid_falls_whatever_the_number_of_steps(grid: Grid, data: st.DataObject, T: int) -> None:
    steps = data.draw(st.integers(1, T))
    times = time_grid(grid, VPLinear(T=T), steps)
    assert len(times) == steps
    assert times[-1] >= 0
    assert times[0] <= T - 1
    assert all(now > after or (grid == "quadratic_paper" and now == after) for now, after in pairwise(times))
    if grid not in EVEN_IN_LAMBDA:
        assert all(t == int(t) for t in times)


@pytest.mark.parametrize("grid", ["uniform", "trailing", "leading", "linspace", "quadratic"])
@pytest.mark.parametrize("path", [VPLinear(), VPCosine(T=37)], ids=name_of)
def test_as_many_steps_as_the_path_has_are_all_of_them(path: Any, grid: Grid) -> None:
    assert time_grid(grid, path, path.T) == list(range(path.T - 1, -1, -1))


@each_grid
@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_impossible_number_of_steps_is_refused_with_both_numbers(grid: Grid, steps: int) -> None:
    message = rf"^a path of T = 1000 steps has no grid of {steps}; ask for 1 to 1000 steps$"
    with pytest.raises(ValueError, match=message):
        time_grid(grid, DDPM, steps)


@each_grid
@pytest.mark.parametrize("steps", [-1, 0])
def test_a_continuous_path_has_no_grid_without_steps(grid: Grid, steps: int) -> None:
    with pytest.raises(ValueError, match=rf"^a path has no grid of {steps}; ask for 1 or more steps$"):
        time_grid(grid, RectifiedFlow(), steps)


@pytest.mark.parametrize("grid", EVEN_IN_LAMBDA)
@pytest.mark.parametrize("path", LOSING, ids=name_of)
def test_grid_even_in_an_infinite_noise_level_is_refused(path: GaussianPath, grid: Grid) -> None:
    message = (
        rf"^grid {grid} is even in the noise level, which is infinite where alpha = 0, as at the noisy end of this "
        r"path; use uniform$"
    )
    with pytest.raises(ValueError, match=message):
        time_grid(grid, path, 10)


# What each grid is.


def test_uniform_grid_has_equal_gaps_down_to_the_data() -> None:
    assert time_grid("uniform", DDPM, 10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert time_grid("uniform", VPLinear(T=10), 4) == [9, 6, 4, 1]
    assert time_grid("uniform", RectifiedFlow(), 4) == [1, 0.75, 0.5, 0.25]


def test_uniform_gaps_differ_by_one_at_most() -> None:
    times = time_grid("uniform", DDPM, 37)
    assert {now - after for now, after in pairwise([*times, -1])} == {27, 28}


def test_trailing_grid_rounds_where_uniform_cuts() -> None:
    assert time_grid("trailing", VPLinear(T=10), 4) == [9, 7, 4, 1]  # 10, 7.5, 5, 2.5 less one, halves to even
    assert time_grid("trailing", DDPM, 3) == [999, 666, 332]
    assert time_grid("uniform", DDPM, 3) == [999, 665, 332]
    assert time_grid("trailing", RectifiedFlow(), 4) == time_grid("uniform", RectifiedFlow(), 4)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 50, 999, 1000])
@pytest.mark.parametrize("grid", ["trailing", "leading", "linspace"])
def test_grid_of_the_same_name_is_diffusers(grid: Grid, steps: int) -> None:
    make: Any = DDIMScheduler
    scheduler = make(timestep_spacing=grid)
    scheduler.set_timesteps(steps)
    theirs = [float(t) for t in scheduler.timesteps]
    if (grid, steps) == ("linspace", 1):
        assert (theirs, time_grid(grid, DDPM, 1)) == ([0.0], [999.0])  # one step from the clean end makes no image
    else:
        assert time_grid(grid, DDPM, steps) == theirs


@pytest.mark.parametrize("steps", [2, 50, 1000])
def test_linspace_is_even_with_both_ends(steps: int) -> None:
    assert time_grid("linspace", DDPM, steps) == np.linspace(999, 0, steps).round().tolist()
    flow = RectifiedFlow()
    assert time_grid("linspace", flow, steps) == pytest.approx(np.linspace(1, flow.t_min, steps).tolist())


def test_quadratic_grid_is_the_square_of_an_even_one() -> None:
    """Where neighbours are more than a step apart: t = 999 (i / 10)^2."""
    assert time_grid("quadratic", DDPM, 11) == [999, 809, 639, 490, 360, 250, 160, 90, 40, 10, 0]


def test_quadratic_grid_takes_every_step_near_the_data() -> None:
    times = time_grid("quadratic", DDPM, 100)
    gaps = [now - after for now, after in pairwise(times)]
    assert times[-8:] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert all(now >= after - 1 for now, after in pairwise(gaps))  # widening, but for rounding


@pytest.mark.parametrize(("steps", "unique"), [(10, 10), (50, 49), (100, 96), (1000, 688)])
def test_papers_quadratic_grid_repeats_its_cleanest_steps_and_ends_at_four_fifths(steps: int, unique: int) -> None:
    times = time_grid("quadratic_paper", DDPM, steps)
    assert (times[0], times[-1]) == (800, 0)
    assert len(set(times)) == unique


@pytest.mark.parametrize("steps", [2, 10, 50, 100])
def test_papers_quadratic_grid_is_its_published_code(steps: int) -> None:
    """Theirs is int(s) of np.linspace(0, sqrt(0.8 T), S) ** 2, which rounding brings below some whole numbers."""
    published = np.linspace(0, math.sqrt(800), steps) ** 2
    exact = [i * i * 800 / (steps - 1) ** 2 for i in range(steps)]
    ours = time_grid("quadratic_paper", DDPM, steps)[::-1]
    for ours_t, theirs, t in zip(ours, published, exact, strict=True):
        assert ours_t == math.floor(t + 1e-9)
        assert ours_t == int(theirs) or abs(theirs - ours_t) < 1e-9


@pytest.mark.parametrize("steps", [2, 18, 50])
def test_karras_grid_is_the_papers(steps: int) -> None:
    """Karras et al. 2022, eq. 5."""
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    expected = [(high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)]
    assert time_grid("karras", EDMPath(), steps) == pytest.approx(expected, rel=1e-12)


def evenness(path: GaussianPath, times: list[float], power: float) -> float:
    """Largest gap over smallest in (sigma / alpha)^power, or in lambda for power 0."""
    lam = path.lam(torch.tensor(times, dtype=torch.float64))
    gaps = (lam if power == 0 else (-power * lam).exp()).diff().abs()
    return float(gaps.max() / gaps.min())


@pytest.mark.parametrize("path", [path for path in PATHS if path not in LOSING], ids=name_of)
def test_grids_by_noise_level_are_even_in_it_on_every_path(path: GaussianPath) -> None:
    assert evenness(path, time_grid("karras", path, 20), 1 / 7) == pytest.approx(1, abs=1e-9)
    assert evenness(path, time_grid("lambda_uniform", path, 20), 0) == pytest.approx(1, abs=1e-9)
    assert evenness(path, time_grid("lambda_uniform", path, 20), 1 / 7) > 1.1
