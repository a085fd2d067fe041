"""The average is the one that its formula says, its length is counted in images, and it loads into the network."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model import EMA, EMAConfig


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
    assert EMAConfig(ramp=None).decay(images_seen=0, batch_images=128) == pytest.approx(0.9999, abs=1e-10)


@given(half_life=st.floats(1, 1e7), batches=st.integers(1, 1000))
def test_after_the_half_life_the_old_weights_share_is_one_half(half_life: float, batches: int) -> None:
    """However many batches it takes."""
    decay = EMAConfig(half_life_images=half_life, ramp=None).decay(0, batch_images=half_life / batches)  # type: ignore[arg-type]
    assert decay**batches == pytest.approx(0.5)


def test_ramp_limits_the_half_life_to_a_share_of_the_images_seen() -> None:
    config = EMAConfig(half_life_images=1000, ramp=0.1)
    assert config.decay(images_seen=0, batch_images=50) == 0.0
    assert config.decay(images_seen=500, batch_images=50) == pytest.approx(0.5)  # half-life 50
    assert config.decay(images_seen=5_000, batch_images=250) == pytest.approx(math.sqrt(0.5))  # half-life 500
    assert config.decay(images_seen=20_000, batch_images=500) == pytest.approx(math.sqrt(0.5))  # half-life 1,000: full


@given(seen=st.integers(0, 10**9), more=st.integers(0, 10**6), batch=st.integers(1, 4096))
def test_decay_lies_below_one_and_never_falls(seen: int, more: int, batch: int) -> None:
    config = EMAConfig()
    assert 0 <= config.decay(seen, batch) <= config.decay(seen + more, batch) < 1


@pytest.mark.parametrize("bad", [{"half_life_images": 0}, {"ramp": 0}, {"ramp": -1}, {"rate": 0.9999}], ids=str)
def test_number_out_of_its_range_is_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        EMAConfig.model_validate(bad)
