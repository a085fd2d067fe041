"""Bits/dim of images under a small network: as the mathematics says, an image at a time, in whatever batches."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from evaluation import Likelihood, ODELikelihood, VariationalBound, check_likelihoods
from model import (
    DDPMUNet,
    Eps,
    LearnedRange,
    ModelSpec,
    Record,
    RectifiedFlow,
    TrainedModel,
    VPCosine,
    bits_per_dim,
    bits_per_dim_of_density,
    bound_noise,
    dequantised,
    ode_log_likelihood,
    probe_signs,
    to_unit_range,
    variational_bound,
)
from model.clipping import clipped
from model.targets import EDM

NETWORK = DDPMUNet(base_channels=8, channel_multipliers=(1,), blocks_per_level=1, attention_sizes=(), dropout=0.1)
CHAIN = ModelSpec(image_size=8, channels=1, network=NETWORK, path=VPCosine(T=6), variance=LearnedRange())
FLOW = ModelSpec(image_size=8, channels=1, network=NETWORK, path=RectifiedFlow(), target=EDM(), classes=3)
NUMBERS = torch.arange(5)
MEASURES: list[tuple[Any, ModelSpec]] = [
    (VariationalBound(images=5), CHAIN),
    (VariationalBound(images=5, variance="learned"), CHAIN),
    (ODELikelihood(images=5, probes=3, rtol=0.01, atol=0.01), FLOW),
]
each_measure = pytest.mark.parametrize(("measure", "spec"), MEASURES, ids=["fixed", "learned", "ode"])


def model_of(spec: ModelSpec) -> TrainedModel:
    torch.manual_seed(0)
    network = spec.build()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return TrainedModel(spec, network.requires_grad_(False))


def images(count: int = 5) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8))


def labels(spec: ModelSpec) -> Tensor | None:
    return NUMBERS % spec.classes if spec.classes else None


@each_measure
def test_results_are_of_each_image_alone_and_of_its_number(measure: Any, spec: ModelSpec) -> None:
    model, label = model_of(spec), labels(spec)
    whole = measure.measure(model, images(), NUMBERS, label)
    assert set(whole) == set(measure.results)
    assert whole["bits"].dtype == np.float64
    for name in measure.results:
        assert len(whole[name]) == 5
        assert np.isfinite(whole[name]).all()
    for part in (slice(0, 2), slice(2, 5)):
        of_part = measure.measure(model, images()[part], NUMBERS[part], None if label is None else label[part])
        for name in measure.results:
            np.testing.assert_allclose(of_part[name], whole[name][part], rtol=1e-4, atol=1e-6)
    other = measure.measure(model, images(), NUMBERS + 100, label)
    assert (other["bits"] != whole["bits"]).all()


def test_the_bound_is_that_of_the_clipped_denoiser_in_bits_per_dim() -> None:
    model = model_of(CHAIN)
    found = VariationalBound(images=5, variance="learned").measure(model, images(), NUMBERS, None)
    x0 = to_unit_range(images())
    with torch.no_grad():
        bound = variational_bound(
            clipped(model.denoiser(), CHAIN.path, "x0"), CHAIN.path, x0, bound_noise(0, NUMBERS, (1, 8, 8)), "learned"
        )
    np.testing.assert_allclose(found["bits"], (bound.total / (64 * math.log(2))).numpy())
    np.testing.assert_allclose(found["prior"] + found["terms"].sum(1), found["bits"], rtol=1e-5)
    np.testing.assert_allclose(found["squared_error"], bound.squared_error.T.numpy(), rtol=1e-5)


def test_the_ode_is_asked_about_dequantised_images_and_their_classes() -> None:
    model = model_of(FLOW)
    found = ODELikelihood(images=5, probes=3, rtol=0.01, atol=0.01).measure(model, images(), NUMBERS, NUMBERS % 3)
    x, probes = dequantised(to_unit_range(images()), 0, NUMBERS), probe_signs(0, NUMBERS, (1, 8, 8), 3)
    direct = ode_log_likelihood(model.denoiser(NUMBERS % 3), FLOW.path, x, probes, 0.01, 0.01)
    np.testing.assert_allclose(found["bits"], bits_per_dim_of_density(direct.estimate, 64).numpy())
    np.testing.assert_allclose(found["probe_error"], bits_per_dim(direct.standard_error, 64).numpy())
    others = ODELikelihood(images=5, probes=3, rtol=0.01, atol=0.01).measure(
        model, images(), NUMBERS, (NUMBERS + 1) % 3
    )
    assert (others["bits"] != found["bits"]).all()


def test_scores_are_means_with_their_standard_errors() -> None:
    bits = np.array([3.0, 4.0, 5.0, 8.0])
    error = np.std(bits, ddof=1) / 2
    assert VariationalBound(images=4).scores({"bits": bits}) == pytest.approx(
        {"bits_per_dim_bound": 5.0, "bits_per_dim_bound_standard_error": error}
    )
    scores = ODELikelihood(images=4).scores({"bits": bits, "probe_error": np.array([0.3, 0.4, 0.0, 0.0])})
    assert scores == pytest.approx(
        {
            "bits_per_dim_ode": 5.0,
            "bits_per_dim_ode_standard_error": error,
            "bits_per_dim_ode_standard_error_of_probes": 0.125,
        }
    )


def test_curves_are_means_from_the_image_and_from_the_noise() -> None:
    results = {
        "prior": np.array([0.1, 0.3]),
        "terms": np.array([[2.0, 1.0, 0.5], [4.0, 1.0, 0.1]], np.float32),
        "squared_error": np.array([[0.0, 0.01, 0.5], [0.0, 0.03, 1.5]], np.float32),
    }
    terms, rate, distortion = VariationalBound(images=2).curves(results)  # type: ignore[arg-type]  # float32, as all results are
    np.testing.assert_allclose(terms, [3, 1, 0.3], rtol=1e-6)
    np.testing.assert_allclose(rate, [0.2, 0.5, 1.5], rtol=1e-6)
    np.testing.assert_allclose(distortion, 127.5 * np.sqrt([1, 0.02, 0]), rtol=1e-6)


def test_a_run_file_says_which_by_their_kind() -> None:
    read = TypeAdapter(tuple[Likelihood, ...]).validate_python
    assert read([{"kind": "variational_bound", "images": 9, "split": "train", "variance": "learned"}]) == (
        VariationalBound(images=9, split="train", variance="learned"),
    )
    assert read([{"kind": "ode", "images": 9, "probes": 2}]) == (ODELikelihood(images=9, probes=2),)
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        read([{"kind": "ode", "images": 9, "probes": 1}])


class _Another(Record):
    kind: str = "autoencoder"


REFUSED: list[tuple[list[Any], ModelSpec, str]] = [
    (
        [VariationalBound(images=2)],
        FLOW,
        "variational_bound adds up the steps of a chain, which path rectified_flow lacks; use ode",
    ),
    (
        [VariationalBound(images=2, variance="learned")],
        ModelSpec(image_size=8, channels=1, network=NETWORK, path=VPCosine(), target=Eps()),
        "variance learned, but the model has none; use fixed_small or fixed_large",
    ),
    (
        [VariationalBound(images=2), VariationalBound(images=2, variance="learned")],
        CHAIN,
        "variational_bound stands twice, and its score has one name; leave one out",
    ),
    (
        [ODELikelihood(images=2)],
        CHAIN.model_copy(update={"codec": _Another()}),
        "bits/dim are of pixels, and this model's noise is on what codec autoencoder makes of them",
    ),
]


@pytest.mark.parametrize(
    ("likelihoods", "spec", "message"), REFUSED, ids=["no chain", "not learned", "twice", "latents"]
)
def test_what_a_model_does_not_have_is_refused(likelihoods: Any, spec: ModelSpec, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_likelihoods(likelihoods, spec)


def test_what_it_has_is_accepted() -> None:
    check_likelihoods([VariationalBound(images=2, variance="learned"), ODELikelihood(images=2)], CHAIN)
    check_likelihoods([ODELikelihood(images=2)], FLOW)
    check_likelihoods([], FLOW)
