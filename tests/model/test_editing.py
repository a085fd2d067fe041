"""Interpolation, inversion and image to image: where they must end, and what they refuse."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model import (
    DDIM,
    RK45,
    Ancestral,
    ClassifierFreeGuidance,
    DDPMUNet,
    DPMSolverPP,
    EDMPath,
    Heun,
    ModelSpec,
    PredictorCorrector,
    RectifiedFlow,
    Stream,
    TrainedModel,
    VPCosine,
    VPLinear,
    generate,
    image_to_image,
    interpolate_images,
    interpolate_seeds,
    invert,
    invertible,
    normal,
    reconstruct,
    slerp,
    strength_time,
    to_unit_range,
)
from model.editing import _no_noise

from .analytic import SAMPLERS, WavyDenoiser
from .small_networks import LEVELS, awake

SPEC = ModelSpec(image_size=8, channels=1, network=DDPMUNet(**LEVELS), path=VPLinear())
CLASSES = SPEC.model_copy(update={"classes": 3})
IMAGES = (torch.arange(3 * 64) * 37 % 256).to(torch.uint8).view(3, 8, 8, 1)
SEEDS = torch.tensor([5, 2**40, 7])
SHARE = torch.linspace(0, 1, 5, dtype=torch.float64)


class EpsNetwork(nn.Module):
    """A smooth denoiser in a network's clothes, which is told t itself."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return WavyDenoiser(VPLinear())(x_t, t.double()).eps


WAVY = TrainedModel(SPEC, EpsNetwork())


@pytest.fixture(scope="module")
def of_classes() -> TrainedModel:
    torch.manual_seed(3)
    return TrainedModel(CLASSES, awake(CLASSES.build()))


def close(one: Tensor, other: Tensor) -> bool:
    """But for the grey level that rounding may tip."""
    return bool((one.int() - other.int()).abs().max() <= 1)


# slerp


def test_slerp_of_a_right_angle_is_the_quarter_circle() -> None:
    first, second = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    angle = SHARE * math.pi / 2
    expected = torch.stack((angle.cos(), angle.sin()), dim=1)
    torch.testing.assert_close(slerp(first, second, SHARE), expected, rtol=0, atol=1e-15)


def test_slerp_ends_exactly_and_keeps_the_length_of_noise() -> None:
    """A straight line, the known mistake, falls to 1 / sqrt(2) of it half way."""
    first, second = normal(0, Stream.INITIAL_NOISE, torch.tensor([1, 2]), (1, 64, 64))
    between = slerp(first, second, SHARE)
    assert torch.equal(between[0], first)
    assert torch.equal(between[-1], second)
    lengths = between.flatten(1).norm(dim=1) / 64
    assert ((lengths - 1).abs() < 0.03).all()
    assert ((first + second) / 2).norm() / 64 < 0.75


@pytest.mark.parametrize("tilt", [0.0, 1e-12, 1e-7, 1e-4])
def test_slerp_of_vectors_along_one_line_is_straight(tilt: float) -> None:
    """Parallel to the last digit or nearly, and of unlike lengths."""
    first, second = torch.tensor([1.0, 0.0]).double(), 3 * torch.tensor([1.0, tilt]).double()
    expected = first + SHARE[:, None] * (second - first)
    torch.testing.assert_close(slerp(first, second, SHARE), expected, rtol=0, atol=1e-8)


def test_slerp_between_nearly_opposite_vectors_goes_round() -> None:
    first, second = torch.tensor([1.0, 0.0]).double(), torch.tensor([-1.0, 1e-3]).double()
    middle = slerp(first, second, SHARE)[2]
    torch.testing.assert_close(middle, torch.tensor([0.0, 1.0]).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("second", [[-2.0, 0.0], [0.0, 0.0]], ids=["opposite", "zero"])
def test_slerp_to_the_opposite_or_to_nothing_is_refused(second: list[float]) -> None:
    with pytest.raises(ValueError, match="no single arc leads from a vector to its opposite, nor from zero"):
        slerp(torch.tensor([1.0, 0.0]), torch.tensor(second), SHARE)


# Interpolation


@pytest.mark.parametrize("member", SAMPLERS, ids=lambda member: member.model_fields["kind"].default)
def test_ends_of_an_interpolation_are_the_images_of_the_two_seeds(member: Any) -> None:
    """Also of samplers that add noise, since each step's noise is interpolated, too."""
    sampler = member() if member is RK45 else member(steps=9)
    frames = interpolate_seeds(WAVY, sampler, 3, 11, SHARE)
    assert frames.shape == (5, 8, 8, 1)
    ends = generate(WAVY, sampler, torch.tensor([3, 11]))
    assert close(frames[[0, -1]], ends)
    assert not close(frames[[1]], ends[:1])


def test_noise_of_one_end_for_all_would_miss_the_other() -> None:
    """The known mistake: only the initial noise interpolated, each step's that of the first seed."""
    sampler, ends = Ancestral(steps=9), torch.tensor([3, 11])
    path, x = SPEC.path, WAVY.noise(ends, 999.0)
    step_noise = WAVY.step_noise(ends[[0, 0]], 0)
    *_, last = sampler.trajectory(WAVY.denoiser(), path, x, lambda _: step_noise)
    assert not close(WAVY.pictures(last.x)[1:], generate(WAVY, sampler, ends[1:]))


def test_between_two_seeds_the_frames_change_little_by_little() -> None:
    frames = interpolate_seeds(WAVY, DDIM(steps=9), 3, 11, torch.linspace(0, 1, 65, dtype=torch.float64)).float()
    steps = (frames[1:] - frames[:-1]).square().mean((1, 2, 3)).sqrt()
    assert steps.max() < 0.2 * (frames[-1] - frames[0]).square().mean().sqrt()


def test_seeds_of_two_classes_want_one_label(of_classes: TrainedModel) -> None:
    with pytest.raises(ValueError, match="seeds 3 and 4 are of classes 0 and 1, and nothing is between two classes"):
        interpolate_seeds(of_classes, DDIM(steps=3), 3, 4, SHARE)
    same = interpolate_seeds(of_classes, DDIM(steps=3), 3, 6, SHARE)
    assert close(same[[0, -1]], generate(of_classes, DDIM(steps=3), torch.tensor([3, 6])))
    told = interpolate_seeds(of_classes, DDIM(steps=3), 3, 4, SHARE, label=2)
    expected = generate(of_classes, DDIM(steps=3), torch.tensor([3, 4]), torch.tensor([2, 2]))
    assert close(told[[0, -1]], expected)


def test_ends_of_an_interpolation_of_images_are_their_reconstructions() -> None:
    sampler = RK45(rtol=1e-5, atol=1e-5)
    frames = interpolate_images(WAVY, sampler, IMAGES[0], IMAGES[1], SHARE)
    assert close(frames[[0, -1]], reconstruct(WAVY, sampler, IMAGES[:2]))


def test_interpolated_images_of_a_class_follow_it(of_classes: TrainedModel) -> None:
    frames = interpolate_images(of_classes, DDIM(steps=3), IMAGES[0], IMAGES[1], SHARE, 2)
    assert close(frames[[0, -1]], reconstruct(of_classes, DDIM(steps=3), IMAGES[:2], torch.tensor([2, 2])))


# Inversion


@pytest.mark.parametrize(("sampler", "within"), [(RK45(rtol=1e-5, atol=1e-5), 2), (DDIM(steps=500, grid="uniform"), 8)])
def test_inverted_images_come_back(sampler: Any, within: int) -> None:
    """To so many grey levels, also outside of what the model would draw."""
    back = reconstruct(WAVY, sampler, IMAGES)
    assert (back.int() - IMAGES.int()).abs().max() <= within


def test_ddim_comes_back_closer_the_more_steps_it_takes() -> None:
    off = [
        (reconstruct(WAVY, DDIM(steps=steps, grid="uniform"), IMAGES).float() - IMAGES).square().mean()
        for steps in (10, 30, 100)
    ]
    assert off[0] > 2 * off[1] > 4 * off[2]


def test_drawn_images_are_inverted_to_the_noise_they_came_from() -> None:
    """The other round trip, in real numbers: grey levels would cut off what lies outside [-1, 1]."""
    smooth, noise = RK45(clip="none", rtol=1e-6, atol=1e-6), WAVY.noise(SEEDS, 999.0).double()
    *_, drawn = smooth.trajectory(WAVY.denoiser(), SPEC.path, noise, lambda _: noise)
    *_, found = smooth.inversion(WAVY.denoiser(), SPEC.path, drawn.x)
    torch.testing.assert_close(found.x, noise, rtol=0, atol=0.05)  # the last step, to the data, has no inverse


def test_clipping_is_off_on_the_way_back_and_forth() -> None:
    assert invertible(RK45(clip="x0_and_eps")) == RK45(clip="none")
    assert invertible(DDIM(steps=7)) == DDIM(steps=7, clip="none")


@pytest.mark.parametrize("sampler", [Heun(), Ancestral(), DPMSolverPP(), PredictorCorrector()], ids=lambda s: s.kind)
def test_samplers_without_a_way_back_are_refused(sampler: Any) -> None:
    with pytest.raises(ValueError, match=f"{sampler.kind} cannot be walked backwards; use rk45, or ddim with eta 0"):
        reconstruct(WAVY, sampler, IMAGES)


def test_noise_that_an_image_does_not_tell_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ddim with eta 0\.5 adds noise, which an image does not tell; set eta to 0"):
        invert(WAVY, DDIM(eta=0.5), IMAGES)


class LabelledEpsNetwork(nn.Module):
    """The same, but for each label a little more of the noise."""

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return (1 + label.view(-1, 1, 1, 1) / 20) * WavyDenoiser(VPLinear())(x_t, t.double()).eps


def test_guided_images_come_back_by_the_same_guidance_and_label_alone() -> None:
    label, guidance = torch.tensor([0, 1, 2]), ClassifierFreeGuidance(scale=2)
    model, sampler = TrainedModel(CLASSES, LabelledEpsNetwork()), RK45(rtol=1e-5, atol=1e-5)
    back = reconstruct(model, sampler, IMAGES, label, guidance)
    assert (back.int() - IMAGES.int()).abs().max() <= 2
    noise = invert(model, sampler, IMAGES, label, guidance)
    for other in (model.denoiser(label.flip(0), guidance), model.denoiser(label)):
        *_, last = sampler.trajectory(other, SPEC.path, noise, lambda _: noise)
        assert (model.pictures(last.x).int() - IMAGES.int()).abs().max() > 20


# Image to image


def test_at_full_strength_on_a_path_that_scales_nothing_away_the_image_hardly_matters() -> None:
    spec = SPEC.model_copy(update={"path": VPCosine()})
    model = TrainedModel(spec, EpsNetwork())
    changed = image_to_image(model, DDIM(steps=20, grid="uniform"), IMAGES, 1.0, SEEDS)
    assert close(changed, generate(model, DDIM(steps=20, grid="uniform"), SEEDS))


def test_the_weaker_the_closer_to_the_image() -> None:
    off = [
        (image_to_image(WAVY, DDIM(steps=100), IMAGES, strength, SEEDS).float() - IMAGES).square().mean()
        for strength in (0.02, 0.2, 0.5)
    ]
    assert off == sorted(off)
    assert off[0] < 25**2 < off[2]


@pytest.mark.parametrize("sampler", [Ancestral(steps=20), RK45(), PredictorCorrector(steps=20)], ids=lambda s: s.kind)
def test_an_image_depends_on_its_seed_and_its_inputs_alone(sampler: Any) -> None:
    together = image_to_image(WAVY, sampler, IMAGES, 0.5, SEEDS)
    alone = [image_to_image(WAVY, sampler, IMAGES[[i]], 0.5, SEEDS[[i]]) for i in range(3)]
    assert close(together, torch.cat(alone))
    assert not close(together[:1], image_to_image(WAVY, sampler, IMAGES[:1], 0.5, SEEDS[1:2]))


def test_half_noised_images_are_x_t_of_their_time() -> None:
    """One look of the network: from x_t of the image with the seed's own noise, at the time of the strength."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Looking(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            seen.append((x_t, t))
            return torch.zeros_like(x_t)

    image_to_image(TrainedModel(SPEC, Looking()), DDIM(steps=10), IMAGES, 0.4, SEEDS)
    x_t, t = seen[0]
    alpha, sigma = SPEC.path.at(399.0)
    noise = normal(0, Stream.INITIAL_NOISE, SEEDS, (1, 8, 8))
    assert t.tolist() == [399.0] * 3
    torch.testing.assert_close(x_t, alpha * to_unit_range(IMAGES) + sigma * noise, rtol=0, atol=1e-6)


def test_strength_is_a_share_of_the_path_up_to_the_samplers_start() -> None:
    assert strength_time(WAVY, DDIM(steps=10), 0.25) == 249
    assert strength_time(WAVY, DDIM(steps=10), 1.0) == 999
    assert strength_time(WAVY, DDIM(steps=10, grid="leading"), 1.0) == 900
    assert strength_time(WAVY, DDIM(steps=10), 1e-4) == 0
    flow = TrainedModel(SPEC.model_copy(update={"path": RectifiedFlow()}), EpsNetwork())
    assert strength_time(flow, Heun(grid="uniform"), 0.5) == 0.5
    edm = TrainedModel(SPEC.model_copy(update={"path": EDMPath()}), EpsNetwork())
    assert strength_time(edm, Heun(), 0.5) == pytest.approx(math.sqrt(0.002 * 80))


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, math.nan])
def test_other_strengths_are_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength .* is not in \(0, 1\]"):
        image_to_image(WAVY, DDIM(), IMAGES, strength, SEEDS)


def test_images_that_are_not_the_models_are_refused() -> None:
    for images in (IMAGES.float(), IMAGES[:, :7], IMAGES[0], IMAGES.expand(3, 8, 8, 3)):
        for use in (
            lambda images: invert(WAVY, RK45(), images),
            lambda images: image_to_image(WAVY, DDIM(), images, 0.5, SEEDS),
        ):
            with pytest.raises(ValueError, match=r"images: found .*, expected torch.uint8 of \[N, 8, 8, 1\]"):
                use(images)


def test_a_model_of_classes_wants_to_be_told_the_class_of_an_image(of_classes: TrainedModel) -> None:
    with pytest.raises(ValueError, match="told the class of an image, 0 to 2; give a label for each image"):
        invert(of_classes, RK45(), IMAGES)
    with pytest.raises(ValueError, match="told the class of an image, 0 to 2; give a label for each image"):
        image_to_image(of_classes, DDIM(), IMAGES, 0.5, SEEDS)


def test_a_grid_that_the_path_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="no grid of 1001"):
        image_to_image(WAVY, DDIM(steps=1001), IMAGES, 0.5, SEEDS)
    with pytest.raises(ValueError, match="no grid of 1001"):
        interpolate_seeds(WAVY, DDIM(steps=1001), 0, 1, SHARE)


def test_noise_on_a_way_without_noise_is_an_error() -> None:
    with pytest.raises(AssertionError, match="an invertible sampler asked for noise at step 3"):
        _no_noise(3)
