"""Grids are strictly falling lists of steps from T - 1, whatever T and the number of steps."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import GRIDS, Grid, time_grid


@pytest.mark.parametrize("grid", GRIDS)
@given(data=st.data(), T=st.integers(2, 3000))
def test_grid_falls_strictly_from_the_noisiest_step(grid: Grid, data: st.DataObject, T: int) -> None:
    steps = data.draw(st.integers(1, T))
    times = time_grid(grid, T, steps)
    assert len(times) == steps
    assert times[0] == T - 1
    assert times[-1] >= 0
    assert all(now > after for now, after in pairwise(times))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50, 999, 1000])
def test_grid_has_exactly_the_asked_steps(grid: Grid, steps: int) -> None:
    times = time_grid(grid, 1000, steps)
    assert len(set(times)) == steps
    assert set(times) <= set(range(1000))


@pytest.mark.parametrize("grid", GRIDS)
def test_as_many_steps_as_the_path_has_are_all_of_them(grid: Grid) -> None:
    assert time_grid(grid, 1000, 1000) == list(range(999, -1, -1))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_impossible_number_of_steps_is_refused_with_both_numbers(grid: Grid, steps: int) -> None:
    with pytest.raises(ValueError, match=rf"a path of T = 1000 steps has no grid of {steps}; ask for 1 to 1000 steps"):
        time_grid(grid, 1000, steps)


def test_uniform_grid_has_equal_gaps_where_they_divide() -> None:
    assert time_grid("uniform", 1000, 10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert time_grid("uniform", 10, 4) == [9, 6, 4, 1]


def test_uniform_gaps_differ_by_one_at_most() -> None:
    times = time_grid("uniform", 1000, 37)
    assert {now - after for now, after in pairwise(times)} == {27, 28}


def test_quadratic_grid_is_the_square_of_an_even_one() -> None:
    """Where neighbours are more than a step apart: t = 999 (i / 10)^2."""
    assert time_grid("quadratic", 1000, 11) == [999, 809, 639, 490, 360, 250, 160, 90, 40, 10, 0]


def test_quadratic_grid_takes_every_step_near_the_data() -> None:
    times = time_grid("quadratic", 1000, 100)
    gaps = [now - after for now, after in pairwise(times)]
    assert times[-8:] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert all(now >= after - 1 for now, after in pairwise(gaps))  # widening, but for rounding
