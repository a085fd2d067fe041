"""An average made afterwards is the one that would have been kept, and its error is what it says."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from model import EMAs, EMASnapshot, PowerFunctionEMA, combine_weights, reconstruct_average
from model.ema import WIDEST_SIGMA_REL, gamma_of
from model.posthoc_ema import inner_product

from .wrong_ema import OnePowerLess

BATCH, STEPS, STORED_EVERY = 64, 1600, 100
STORED_WIDTHS, OTHER_WIDTHS = (0.05, 0.10), (0.04, 0.06, 0.075, 0.09, 0.12, 0.15)
FINAL = BATCH * STEPS

NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(200)

Weights = dict[str, Tensor]

widths = st.floats(0.01, WIDEST_SIGMA_REL)
snapshots = st.builds(EMASnapshot, images_seen=st.integers(1, 1000).map(lambda k: 1000 * k), sigma_rel=widths)


class Training:
    """Weights on a random walk, averages of both kinds of width: some stored on the way, some only at the end."""

    def __init__(self, profile: type[PowerFunctionEMA]) -> None:
        generator = torch.Generator().manual_seed(0)
        network = nn.ParameterDict({"scalar": torch.zeros(()), "matrix": torch.zeros(8, 16)})
        averages = EMAs(network, *(profile(sigma_rel=width) for width in (*STORED_WIDTHS, *OTHER_WIDTHS)))
        self.stored: dict[EMASnapshot, Weights] = {}
        for seen in range(BATCH, FINAL + 1, BATCH):
            for parameter in network.parameters():
                parameter.data += torch.randn(parameter.shape, generator=generator)
            averages.update(network.parameters(), seen, BATCH)
            if seen % (STORED_EVERY * BATCH) == 0:
                for width, average in zip(STORED_WIDTHS, averages.averages, strict=False):
                    snapshot = EMASnapshot(images_seen=seen, sigma_rel=width)
                    self.stored[snapshot] = {name: w.clone() for name, w in average.state_dict().items()}
        self.final = {p.sigma_rel: a.state_dict() for p, a in zip(averages.profiles, averages.averages, strict=True)}

    def reconstructed(self, wanted: EMASnapshot) -> Weights:
        coefficients = reconstruct_average(list(self.stored), wanted).coefficients
        loaders = [lambda state=state: state for state in self.stored.values()]
        return combine_weights(zip(coefficients, loaders, strict=True))


@pytest.fixture(scope="module")
def training() -> Training:
    return Training(PowerFunctionEMA)


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Root mean square over all weights."""
    return torch.cat([(a[name].double() - b[name].double()).flatten() for name in a]).square().mean().sqrt().item()


def share_left(training: Training, width: float) -> float:
    """Distance of the reconstruction from the true average, by that of the nearest average stored at the end."""
    true = training.final[width]
    made = training.reconstructed(EMASnapshot(images_seen=FINAL, sigma_rel=width))
    return distance(made, true) / min(distance(training.final[other], true) for other in STORED_WIDTHS)


@pytest.mark.parametrize("width", OTHER_WIDTHS)
def test_reconstruction_is_the_average_that_would_have_been_kept(training: Training, width: float) -> None:
    assert share_left(training, width) < 0.02


def test_reconstruction_from_averages_of_one_power_less_is_not() -> None:
    """Known to be wrong."""
    assert min(share_left(Training(OnePowerLess), width) for width in OTHER_WIDTHS) > 0.05


@pytest.mark.parametrize("width", STORED_WIDTHS)
@pytest.mark.parametrize("seen", [FINAL, FINAL // 2])
def test_reconstruction_of_a_stored_average_is_that_average(training: Training, width: float, seen: int) -> None:
    wanted = EMASnapshot(images_seen=seen, sigma_rel=width)
    coefficients, error = reconstruct_average(list(training.stored), wanted)
    one_hot = [float(snapshot == wanted) for snapshot in training.stored]
    assert coefficients == pytest.approx(one_hot, abs=1e-10)
    assert error < 1e-6
    for name, weight in training.reconstructed(wanted).items():
        torch.testing.assert_close(weight, training.stored[wanted][name], rtol=1e-6, atol=1e-6)


@given(a=snapshots, b=snapshots)
def test_inner_product_is_the_integral(a: EMASnapshot, b: EMASnapshot) -> None:
    """Against Gauss-Legendre quadrature, up to where the earlier profile ends."""
    end = min(a.images_seen, b.images_seen)
    tau = (NODES + 1) / 2 * end
    values = [
        (gamma_of(p.sigma_rel) + 1) * (tau / p.images_seen) ** gamma_of(p.sigma_rel) / p.images_seen for p in (a, b)
    ]
    expected = (NODE_WEIGHTS * values[0] * values[1]).sum() / 2 * end
    t, gamma = (np.array([f(p) for p in (a, b)]) for f in (lambda p: p.images_seen, lambda p: gamma_of(p.sigma_rel)))
    assert inner_product(t[0], gamma[0], t[1], gamma[1]) == pytest.approx(expected, rel=1e-6)


@given(stored=st.lists(snapshots, min_size=1, max_size=30), width=widths)
def test_coefficients_sum_to_one_and_beat_every_single_average(stored: list[EMASnapshot], width: float) -> None:
    """Repeated and almost equal ones among them."""
    wanted = EMASnapshot(images_seen=1_000_000, sigma_rel=width)
    coefficients, error = reconstruct_average(stored, wanted)
    assert math.fsum(coefficients) == pytest.approx(1, abs=1e-9)
    assert error <= min(reconstruct_average([snapshot], wanted).error for snapshot in stored) + 1e-6


@given(stored=st.lists(snapshots, min_size=1, max_size=10, unique_by=lambda s: s.images_seen), width=widths)
def test_error_is_no_more_than_by_dividing_through_the_sum(stored: list[EMASnapshot], width: float) -> None:
    """As in Karras et al. 2024, algorithm 3."""
    profiles = [*stored, EMASnapshot(images_seen=1_000_000, sigma_rel=width)]
    t = np.array([p.images_seen / 1_000_000 for p in profiles])
    gamma = np.array([gamma_of(p.sigma_rel) for p in profiles])
    products = inner_product(t[:, None], gamma[:, None], t, gamma)
    x = np.linalg.lstsq(products[:-1, :-1], products[:-1, -1])[0]
    difference = np.append(x / x.sum(), -1)
    theirs = math.sqrt(max(difference @ products @ difference / products[-1, -1], 0))
    assert reconstruct_average(stored, profiles[-1]).error <= theirs * (1 + 1e-6) + 1e-6


def test_error_falls_with_the_number_of_stored_averages() -> None:
    def error(count: int) -> float:
        moments = [FINAL * (index + 1) // count for index in range(count)]
        stored = [EMASnapshot(images_seen=seen, sigma_rel=width) for seen in moments for width in STORED_WIDTHS]
        return reconstruct_average(stored, EMASnapshot(images_seen=FINAL, sigma_rel=0.075)).error

    errors = [error(count) for count in (1, 4, 16, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 100


def test_unit_of_time_does_not_matter() -> None:
    def coefficients(unit: int) -> tuple[float, ...]:
        stored = [EMASnapshot(images_seen=k * unit, sigma_rel=width) for k in range(1, 9) for width in STORED_WIDTHS]
        return reconstruct_average(stored, EMASnapshot(images_seen=8 * unit, sigma_rel=0.07)).coefficients

    assert coefficients(1) == pytest.approx(coefficients(10**9), abs=1e-12)


def test_averages_later_than_the_wanted_one_do_not_count() -> None:
    stored = [EMASnapshot(images_seen=k, sigma_rel=0.1) for k in (3000, 1000, 2000)]
    wanted = EMASnapshot(images_seen=2000, sigma_rel=0.08)
    coefficients, error = reconstruct_average(stored, wanted)
    assert coefficients[0] == 0
    assert (coefficients[1:], error) == reconstruct_average(stored[1:], wanted)


def test_weights_are_loaded_one_by_one_and_only_where_they_count() -> None:
    log: list[str] = []

    def parts() -> Iterator[Any]:
        for coefficient in (0.25, 0.0, 0.75):
            log.append(f"next {coefficient}")
            yield coefficient, lambda c=coefficient: log.append(f"load {c}") or {"w": torch.full((2,), 4 * c)}

    assert combine_weights(parts())["w"].tolist() == [0.25 * 1 + 0.75 * 3] * 2
    assert log == ["next 0.25", "load 0.25", "next 0.0", "next 0.75", "load 0.75"]


def test_large_opposite_coefficients_cancel_without_loss() -> None:
    """In float32 the small difference would be gone."""
    weight = torch.tensor([1 / 3])
    made = combine_weights([(1e8, lambda: {"w": weight}), (1 - 1e8, lambda: {"w": weight.clone()})])
    assert made["w"].dtype == torch.float32
    torch.testing.assert_close(made["w"], weight)


def test_nothing_stored_is_refused() -> None:
    with pytest.raises(
        ValueError, match="no averages were stored, expected at least one; store some of kind power_fun"
    ):
        reconstruct_average([], EMASnapshot(images_seen=1000, sigma_rel=0.1))


def test_nothing_stored_early_enough_is_refused() -> None:
    stored = [EMASnapshot(images_seen=seen, sigma_rel=0.1) for seen in (3000, 2000)]
    with pytest.raises(ValueError, match="all 2 averages were stored after 1,000 images, the first at 2,000; ask for"):
        reconstruct_average(stored, EMASnapshot(images_seen=1000, sigma_rel=0.1))


@pytest.mark.parametrize("bad", [{"images_seen": 0}, {"sigma_rel": 0.0}, {"sigma_rel": 0.289}], ids=str)
def test_snapshot_that_cannot_be_is_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        EMASnapshot.model_validate({"images_seen": 1000, "sigma_rel": 0.1} | bad)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match=r"average 1: w: found \(2,\), expected \(3,\)"):
        combine_weights([(0.5, lambda: {"w": torch.zeros(3)}), (0.5, lambda: {"w": torch.zeros(2)})])


def test_combination_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to combine: found no coefficient other than 0"):
        combine_weights([(0.0, dict)])
