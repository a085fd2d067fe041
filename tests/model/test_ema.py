"""The average is the one that its formula says, its length is counted in images, and it loads into the network."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from model import EMA, EMAProfile, EMAs, ExponentialEMA, PowerFunctionEMA
from model.ema import WIDEST_SIGMA_REL, check_alike, gamma_of

from .unions import name_of, with_defaults
from .wrong_ema import OnePowerLess

each_profile = pytest.mark.parametrize("profile", with_defaults(EMAProfile), ids=name_of)
widths = st.floats(1e-3, WIDEST_SIGMA_REL)


def small_network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def moved(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


def test_fused_update_equals_the_formula() -> None:
    network = small_network()
    ema, expected = EMA(network), [parameter.detach().clone() for parameter in network.parameters()]
    for decay in (0.9, 0.5, 0.999):
        moved(network)
        ema.update(network.parameters(), decay)
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, network.parameters(), strict=True)]
    for weight, value in zip(ema.weights, expected, strict=True):
        torch.testing.assert_close(weight, value.detach(), rtol=1e-6, atol=1e-6)


def test_average_is_a_copy_without_gradients() -> None:
    network = small_network()
    ema = EMA(network)
    before = [weight.clone() for weight in ema.weights]
    moved(network)
    assert all(torch.equal(weight, old) for weight, old in zip(ema.weights, before, strict=True))
    assert not any(weight.requires_grad for weight in ema.weights)


def test_average_of_a_bfloat16_network_is_float32() -> None:
    assert {weight.dtype for weight in EMA(small_network().bfloat16()).weights} == {torch.float32}


def test_decay_zero_takes_over_the_weights() -> None:
    network = small_network()
    ema = EMA(network)
    ema.update(moved(network).parameters(), 0.0)
    assert all(torch.equal(a, b) for a, b in zip(ema.weights, network.parameters(), strict=True))


def test_state_has_the_networks_parameters_and_no_buffers() -> None:
    network = small_network()
    names = list(EMA(network).state_dict())
    assert names == [name for name, _ in network.named_parameters()]
    assert not set(names) & {name for name, _ in network.named_buffers()}
    network.load_state_dict(EMA(network).state_dict(), strict=False)


def test_state_survives_a_round_trip() -> None:
    network = small_network()
    ema, other = EMA(network), EMA(moved(network))
    other.load_state_dict(ema.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ema.weights, other.weights, strict=True))
    assert all(a is not b for a, b in zip(ema.weights, other.weights, strict=True))


def test_state_without_a_weight_is_refused_by_its_name() -> None:
    ema = EMA(small_network())
    state = ema.state_dict()
    del state["2.bias"]
    with pytest.raises(KeyError, match=r"2\.bias"):
        ema.load_state_dict(state)


def test_default_half_life_is_the_papers_decay() -> None:
    assert ExponentialEMA(ramp=None).decay(images_seen=0, batch_images=128) == pytest.approx(0.9999, abs=1e-10)


@given(half_life=st.floats(1, 1e7), batches=st.integers(1, 1000))
def test_after_the_half_life_the_old_weights_share_is_one_half(half_life: float, batches: int) -> None:
    """However many batches it takes."""
    decay = ExponentialEMA(half_life_images=half_life, ramp=None).decay(0, batch_images=half_life / batches)  # type: ignore[arg-type]  # parts of an image
    assert decay**batches == pytest.approx(0.5)


def test_ramp_limits_the_half_life_to_a_share_of_the_images_seen() -> None:
    config = ExponentialEMA(half_life_images=1000, ramp=0.1)
    assert config.decay(images_seen=0, batch_images=50) == 0.0
    assert config.decay(images_seen=500, batch_images=50) == pytest.approx(0.5)  # half-life 50
    assert config.decay(images_seen=5_000, batch_images=250) == pytest.approx(math.sqrt(0.5))  # half-life 500
    assert config.decay(images_seen=20_000, batch_images=500) == pytest.approx(math.sqrt(0.5))  # half-life 1,000: full


@each_profile
@given(seen=st.integers(0, 10**9), more=st.integers(0, 10**6), batch=st.integers(1, 4096))
def test_decay_lies_below_one_and_never_falls(profile: EMAProfile, seen: int, more: int, batch: int) -> None:
    assert 0 <= profile.decay(seen, batch) <= profile.decay(seen + more, batch) < 1


@each_profile
def test_first_batch_leaves_nothing_of_the_initial_weights(profile: EMAProfile) -> None:
    assert profile.decay(images_seen=64, batch_images=64) == pytest.approx(0, abs=1e-5)


@given(sigma_rel=widths)
def test_gamma_inverts_the_relative_width(sigma_rel: float) -> None:
    """Karras et al. 2024, eq. 123."""
    gamma = gamma_of(sigma_rel)
    assert gamma > 0
    assert math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) == pytest.approx(sigma_rel, rel=1e-12)


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_gamma_of_the_papers_two_lengths(sigma_rel: float, gamma: float) -> None:
    """Karras et al. 2024, section 3.2."""
    assert gamma_of(sigma_rel) == pytest.approx(gamma, abs=5e-3)


def profile_of(profile: EMAProfile, batches: list[int]) -> Tensor:
    """The weight of each step in the average: what becomes of one-hot weights. float64 [steps]."""
    network = nn.ParameterList([torch.zeros(len(batches))])
    average, seen = EMAs(network, profile), 0
    for one_hot, batch in zip(torch.eye(len(batches)), batches, strict=True):
        seen += batch
        average.update([one_hot], seen, batch)
    return average.first.weights[0].double()


@given(sigma_rel=widths, batches=st.lists(st.integers(1, 1000), min_size=1, max_size=50))
def test_weight_of_a_step_is_the_integral_of_the_power_function_over_it(sigma_rel: float, batches: list[int]) -> None:
    """(t_k / t)^(gamma + 1) - (t_(k-1) / t)^(gamma + 1): the discrete profile is exact, whatever the batches."""
    ends = torch.tensor([0, *batches], dtype=torch.float64).cumsum(0) / sum(batches)
    expected = (ends ** (gamma_of(sigma_rel) + 1)).diff()
    weights = profile_of(PowerFunctionEMA(sigma_rel=sigma_rel), batches)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2, 0.28])
def test_relative_width_of_the_discrete_profile_is_sigma_rel(sigma_rel: float) -> None:
    steps = 1000
    weights = profile_of(PowerFunctionEMA(sigma_rel=sigma_rel), [64] * steps)
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    middle = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    mean = (weights * middle).sum()
    assert (weights * (middle - mean) ** 2).sum().sqrt() == pytest.approx(sigma_rel, rel=1e-3)


def test_one_power_less_is_seen_in_the_profile() -> None:
    right, wrong = (profile_of(kind(sigma_rel=0.1), [64] * 100) for kind in (PowerFunctionEMA, OnePowerLess))
    assert (right - wrong).abs().max() > 0.05 * right.max()


def test_each_average_follows_its_own_profile() -> None:
    network = small_network()
    profiles = [ExponentialEMA(half_life_images=100, ramp=None), PowerFunctionEMA(), PowerFunctionEMA(sigma_rel=0.05)]
    together, alone = EMAs(network, *profiles), [EMA(network) for _ in profiles]
    for seen in (32, 64, 96):
        moved(network)
        together.update(network.parameters(), seen, 32)
        for profile, average in zip(profiles, alone, strict=True):
            average.update(network.parameters(), profile.decay(seen, 32))
    assert together.first is together.averages[0]
    for average, expected in zip(together.averages, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(average.weights, expected.weights, strict=True))


def test_state_of_several_averages_survives_a_round_trip() -> None:
    network = small_network()
    profiles = (ExponentialEMA(half_life_images=100), PowerFunctionEMA())
    averages, others = EMAs(network, *profiles), EMAs(moved(network), *profiles)
    averages.update(moved(network).parameters(), 64, 32)
    others.load_state_dict(averages.state_dict())
    for name, weight in others.state_dict().items():
        assert torch.equal(weight, averages.state_dict()[name])
        assert weight is not averages.state_dict()[name]
    network.load_state_dict(others.first.state_dict(), strict=False)


def test_state_of_fewer_or_more_averages_is_refused_and_changes_nothing() -> None:
    network = small_network()
    one, two = EMAs(network, PowerFunctionEMA()), EMAs(moved(network), PowerFunctionEMA(), PowerFunctionEMA())
    before = {name: weight.clone() for name, weight in two.state_dict().items()}
    with pytest.raises(ValueError, match=r"averages: 1\.0\.bias: found nothing, expected \(4,\); give weights of one"):
        two.load_state_dict(one.state_dict())
    assert all(torch.equal(weight, before[name]) for name, weight in two.state_dict().items())
    with pytest.raises(ValueError, match=r"averages: 1\.0\.bias: found \(4,\), expected nothing"):
        one.load_state_dict(two.state_dict())


def test_weight_that_would_only_be_broadcast_is_refused() -> None:
    with pytest.raises(ValueError, match=r"here: w: found \(1,\), expected \(3,\)"):
        check_alike({"w": torch.zeros(1)}, {"w": torch.zeros(3)}, "here")


@pytest.mark.parametrize("sigma_rel", [0, -0.1, 0.289, 1])
def test_relative_width_that_no_profile_has_is_refused(sigma_rel: float) -> None:
    with pytest.raises(ValueError, match=r"sigma_rel\n.*(greater than 0|less than or equal to 0\.288)"):
        PowerFunctionEMA(sigma_rel=sigma_rel)


@pytest.mark.parametrize("bad", [{"half_life_images": 0}, {"ramp": 0}, {"ramp": -1}, {"rate": 0.9999}], ids=str)
def test_number_out_of_its_range_is_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        ExponentialEMA.model_validate(bad)
