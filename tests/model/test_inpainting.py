"""RePaint: known pixels stay to the bit, and what fills the hole has the distribution that the others leave it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model import (
    ClassifierFreeGuidance,
    DDPMUNet,
    EDMPath,
    GaussianPath,
    IdentityCodec,
    ModelSpec,
    RectifiedFlow,
    RePaint,
    Stream,
    TrainedModel,
    VPCosine,
    VPLinear,
    inpaint,
    normal,
)
from model.inpainting import Noises
from model.sampler import NoiseSource
from model.targets import V

from .analytic import PATHS, Counting, GaussianDenoiser, WavyDenoiser, name_of, neighbours, seeded
from .small_networks import LEVELS, awake

MASK = torch.tensor([[False, True, True], [False, False, True]])
KNOWN = torch.tensor([[0.1, -0.3, 0.2], [0.4, 0.4, 0.0]], dtype=torch.float64).view(1, 1, 2, 3)
SPEC = ModelSpec(image_size=8, channels=1, network=DDPMUNet(**LEVELS), path=VPCosine())
QUICK = RePaint(steps=6, jump_length=2, resamplings=2)


def seeded_noises(seeds: Tensor, shape: tuple[int, ...]) -> Noises:
    def noises(stream: Stream) -> NoiseSource:
        return lambda draw: normal(0, stream, seeds, shape, draw).double()

    return noises


def fill(sampler: RePaint, denoiser: Any, known: Tensor, mask: Tensor, seeds: Tensor) -> Tensor:
    path, shape = denoiser.path, tuple(known.shape[1:])
    x, _ = seeded(seeds, shape, path.prior_std(sampler.start(path)))
    *_, last = sampler.filled(denoiser, path, x, known.expand(len(seeds), *shape), mask, seeded_noises(seeds, shape))
    return last.x


def conditional(denoiser: GaussianDenoiser) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the hole's pixels given the others."""
    hole, rest, known = MASK.flatten(), ~MASK.flatten(), KNOWN.flatten()
    mean, C = denoiser.mean.flatten(), denoiser.covariance
    gain = C[hole][:, rest] @ torch.linalg.inv(C[rest][:, rest])
    return mean[hole] + gain @ (known[rest] - mean[rest]), C[hole][:, hole] - gain @ C[rest][:, hole]


def off_by(sampler: RePaint, path: GaussianPath) -> tuple[float, float]:
    """How far the filled pixels' mean and covariance are from the conditional ones, where these are 0 and 1."""
    denoiser = neighbours(path)
    drawn = fill(sampler, denoiser, KNOWN, MASK, torch.arange(2000)).flatten(1)[:, MASK.flatten()]
    mean, covariance = conditional(denoiser)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (drawn - mean).T, upper=False)
    of_covariance = white @ white.T / len(drawn) - torch.eye(len(mean), dtype=torch.float64)
    return float(white.mean(1).abs().max()), float(of_covariance.abs().max())


MANY: dict[str, Any] = {"steps": 100, "clip": "none", "grid": "uniform"}


@pytest.mark.parametrize("path", [EDMPath(), RectifiedFlow()], ids=name_of)
def test_the_hole_is_filled_as_the_other_pixels_have_it(path: GaussianPath) -> None:
    """Conditional mean and covariance of a Gaussian. RePaint is exact only in the limit: 0.1 is four standard errors of
    the mean; 100 steps make the covariance a tenth too small.
    """
    mean, covariance = off_by(RePaint(**MANY, jump_length=10, resamplings=10), path)
    assert mean < 0.1
    assert covariance < 0.25


@pytest.mark.parametrize("path", [EDMPath(), RectifiedFlow()], ids=name_of)
def test_without_going_back_the_hole_ignores_its_surroundings(path: GaussianPath) -> None:
    """The known mistake that RePaint mends: known pixels put in, and no time to come to terms with them."""
    mean, covariance = off_by(RePaint(**MANY, resamplings=1), path)
    assert mean > 0.3
    assert covariance > 0.35


def test_where_nothing_is_known_it_is_ancestral_sampling() -> None:
    from model import Ancestral

    path, mask = VPLinear(), torch.ones_like(MASK)
    x, noise = seeded(torch.arange(3), (1, 2, 3))
    *_, expected = Ancestral(steps=20, variance="fixed_small").trajectory(WavyDenoiser(path), path, x, noise)
    filled = fill(RePaint(steps=20, resamplings=1), WavyDenoiser(path), KNOWN, mask, torch.arange(3))
    assert torch.equal(filled, expected.x)


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_known_pixels_stay_to_the_bit_on_every_path(path: GaussianPath) -> None:
    filled = fill(QUICK, WavyDenoiser(path), KNOWN, MASK, torch.arange(3))
    assert torch.equal(filled[:, :, ~MASK], KNOWN[:, :, ~MASK].expand(3, -1, -1))
    assert filled.isfinite().all()


def test_steps_are_undone_where_the_paper_undoes_them() -> None:
    """Figure 9's pattern for 6 steps in jumps of 2, each taken 3 times; the data, point 6, come once and last."""
    assert list(RePaint(steps=6, jump_length=2, resamplings=3).visits()) == [
        *(0, 1, 2, 3, 1, 2, 3, 1, 2, 3),
        *(4, 5, 3, 4, 5, 3, 4, 5, 6),
    ]
    assert list(RePaint(steps=3, resamplings=1).visits()) == [0, 1, 2, 3]


@pytest.mark.parametrize("steps", [5, 6, 11])
@pytest.mark.parametrize("jump_length", [1, 2, 4])
@pytest.mark.parametrize("resamplings", [1, 2, 3])
def test_network_is_called_as_often_as_declared(steps: int, jump_length: int, resamplings: int) -> None:
    sampler = RePaint(steps=steps, jump_length=jump_length, resamplings=resamplings)
    counting = Counting(WavyDenoiser(VPLinear()))
    counting.path = VPLinear()  # type: ignore[attr-defined]  # what `fill` asks it for
    fill(sampler, counting, KNOWN, MASK, torch.arange(2))
    assert len(counting.times) == sampler.evaluations(VPLinear())


def test_no_draw_of_noise_is_used_twice() -> None:
    asked: list[tuple[Stream, int]] = []

    def noises(stream: Stream) -> NoiseSource:
        def draw(number: int) -> Tensor:
            asked.append((stream, number))
            return torch.zeros_like(KNOWN)

        return draw

    path = VPLinear()
    list(QUICK.filled(WavyDenoiser(path), path, torch.zeros_like(KNOWN), KNOWN, MASK, noises))
    assert len(set(asked)) == len(asked)
    assert {stream for stream, _ in asked} == {Stream.STEP_NOISE, Stream.KNOWN_NOISE, Stream.RENOISING}


def test_undoing_steps_keeps_the_paths_marginals() -> None:
    """x_t noised on to a noisier time is x_t of that time: its variance and what is left of the image."""
    from model.inpainting import _noisier

    for path in PATHS:
        points = RePaint(steps=10, resamplings=1).points(path)
        (now, after), z = (points[7], points[3]), torch.zeros(1, dtype=torch.float64)
        assert _noisier(now, after, z + now.alpha, z).item() == pytest.approx(after.alpha, abs=1e-12)
        std = _noisier(now, after, z, z + 1).item()
        assert (after.alpha / now.alpha * now.sigma) ** 2 + std**2 == pytest.approx(after.sigma**2, rel=1e-9)


@pytest.fixture(scope="module")
def trained() -> Callable[[ModelSpec], TrainedModel]:
    def build(spec: ModelSpec) -> TrainedModel:
        torch.manual_seed(3)
        return TrainedModel(spec, awake(spec.build()))

    return build


IMAGES = (torch.arange(3 * 64) * 37 % 256).to(torch.uint8).view(3, 8, 8, 1)
HOLE = torch.zeros(8, 8, dtype=torch.bool)
HOLE[2:5, 1:7] = True
SEEDS = torch.tensor([5, 2**40, 7])


@pytest.mark.parametrize("guidance_scale", [None, 0.0, 3.0])
def test_known_grey_levels_stay_exact_with_any_guidance(
    trained: Callable[[ModelSpec], TrainedModel], guidance_scale: float | None
) -> None:
    spec, options = SPEC, dict[str, Any]()
    if guidance_scale is not None:
        spec = SPEC.model_copy(update={"classes": 3})
        options = {"label": torch.tensor([0, 1, 2]), "guidance": ClassifierFreeGuidance(scale=guidance_scale)}
    filled = inpaint(trained(spec), QUICK, IMAGES, HOLE, SEEDS, **options)
    assert torch.equal(filled[:, ~HOLE], IMAGES[:, ~HOLE])
    assert not torch.equal(filled[:, HOLE], IMAGES[:, HOLE])


def test_an_image_depends_on_its_seed_and_its_inputs_alone(trained: Callable[[ModelSpec], TrainedModel]) -> None:
    model = trained(SPEC)
    masks = torch.stack((HOLE, HOLE.T, HOLE.flip(0)))
    together = inpaint(model, QUICK, IMAGES, masks, SEEDS)
    alone = [inpaint(model, QUICK, IMAGES[[i]], masks[[i]], SEEDS[[i]]) for i in (2, 0, 1)]
    off = (torch.cat([alone[1], alone[2], alone[0]]).int() - together.int()).abs()
    assert off.max() <= 1  # a level, where rounding tips
    assert not torch.equal(together[0], inpaint(model, QUICK, IMAGES[[0]], HOLE, SEEDS[[1]])[0])


def test_a_model_of_classes_wants_to_be_told_the_class(trained: Callable[[ModelSpec], TrainedModel]) -> None:
    model = trained(SPEC.model_copy(update={"classes": 3}))
    with pytest.raises(ValueError, match="told the class of an image, 0 to 2; give a label for each image"):
        inpaint(model, QUICK, IMAGES, HOLE, SEEDS)


@pytest.mark.parametrize("mask", [HOLE.float(), HOLE[:4], HOLE.expand(2, 8, 8)], ids=["float", "small", "two"])
def test_a_mask_that_does_not_fit_is_refused(trained: Callable[[ModelSpec], TrainedModel], mask: Tensor) -> None:
    with pytest.raises(ValueError, match=r"mask: found torch.* expected torch.bool \[8, 8\] or \[3, 8, 8\]"):
        inpaint(trained(SPEC), QUICK, IMAGES, mask, SEEDS)


@pytest.mark.parametrize("shape", [(3, 8, 10, 1), (3, 7, 7, 1), (3, 8, 8, 3)], ids=str)
def test_images_of_another_shape_are_refused(trained: Callable[[ModelSpec], TrainedModel], shape: Any) -> None:
    images = torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"images: found torch.uint8 .*expected torch.uint8 of \[N, 8, 8, 1\]"):
        inpaint(trained(SPEC), QUICK, images, torch.zeros(shape[1:3], dtype=torch.bool), SEEDS)


class Halving(IdentityCodec):
    def latent_shape(self, image: tuple[int, int, int]) -> tuple[int, int, int]:
        return (4 * image[0], image[1] // 2, image[2] // 2)


def test_a_hole_in_pixels_is_none_in_latents() -> None:
    spec = SPEC.model_copy(update={"codec": Halving()})
    with pytest.raises(
        ValueError, match=r"acts on latents of shape \[4, 4, 4\] and the mask is of pixels, \[1, 8, 8\]"
    ):
        inpaint(TrainedModel(spec, torch.nn.Identity()), QUICK, IMAGES, HOLE, SEEDS)


def test_jumps_longer_than_the_way_are_refused() -> None:
    with pytest.raises(ValueError, match="jump_length 10 is not below steps 10, so nothing could be undone"):
        RePaint(steps=10)
    assert RePaint(steps=10, resamplings=1).evaluations_in_all == 10


def test_more_steps_than_there_are_draws_of_noise_are_refused() -> None:
    with pytest.raises(ValueError, match=r"19,998,010 steps .* fewer than 16,777,216; lower steps or resamplings"):
        RePaint(steps=100_000, resamplings=200)


def test_a_path_without_such_a_grid_is_refused() -> None:
    path = VPLinear(T=5)
    with pytest.raises(ValueError, match="a path of T = 5 steps has no grid of 6; ask for 1 to 5 steps"):
        list(QUICK.filled(WavyDenoiser(path), path, KNOWN, KNOWN, MASK, seeded_noises(torch.arange(1), (1, 2, 3))))


def test_learned_variance_is_refused_of_a_model_without_it() -> None:
    with pytest.raises(ValueError, match="variance learned, but the model has none"):
        fill(
            RePaint(steps=6, jump_length=2, variance="learned"), WavyDenoiser(VPLinear()), KNOWN, MASK, torch.arange(1)
        )


def test_paths_that_lose_the_image_can_be_filled(trained: Callable[[ModelSpec], TrainedModel]) -> None:
    spec = SPEC.model_copy(update={"path": RectifiedFlow(), "target": V()})
    filled = inpaint(trained(spec), QUICK, IMAGES, HOLE, SEEDS)
    assert torch.equal(filled[:, ~HOLE], IMAGES[:, ~HOLE])
    assert math.isclose(RectifiedFlow().alpha(torch.tensor(1.0)), 0)
