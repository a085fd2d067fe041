"""What else a trained model can do: between two images, back to their noise, and onwards from an image half noised."""

import math
from functools import partial

import torch
from torch import Tensor

from .chain_samplers import DDIM
from .continuous_paths import UnitTimePath
from .discrete_paths import DiscretePath
from .generation import TrainedModel, default_label, last
from .guidance import NO_GUIDANCE, Guidance
from .images import to_unit_range
from .ode_samplers import RK45
from .random import Stream, normal
from .sampler import NoiseSource
from .samplers import Sampler

_OPPOSITE = 1e-6  # of the sum of two unit vectors


def slerp(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """From first (share 0) to second (share 1) on a great circle, at even angles. Shoemake 1985, section 3.3.

    Of noise in many dimensions a straight line would pass through points that are too short to be noise. first, second:
    [*shape]; share: float64 [F] -> [F, *shape], in their dtype. The ends are exact; vectors along one line are
    interpolated straight. ValueError for opposite ones, which no single shortest arc joins, and for zero.
    """
    units = [each.double().flatten() / each.double().norm() for each in (first, second)]
    total, difference = float((units[0] + units[1]).norm()), float((units[0] - units[1]).norm())
    if not total > _OPPOSITE:  # also where one is zero, and the length is NaN
        raise ValueError("slerp: no single arc leads from a vector to its opposite, nor from zero; take another end")
    angle = 2 * math.atan2(difference, total)  # to the last digits also where it is small. Kahan 2006, section 12
    weights = [1 - share.double(), share.double()]
    if angle > 0:
        weights = [torch.where(s == 1, 1.0, (s * angle).sin() / math.sin(angle)) for s in weights]
    shape = (-1, *[1] * first.ndim)
    one, other = (weight.to(first.dtype).view(shape) for weight in weights)
    return one * first + other * second


def invertible(sampler: Sampler) -> DDIM | RK45:
    """The sampler as one that can be walked backwards: without clipping, which forgets. ValueError where there is none.

    Song, Meng & Ermon 2021 (DDIM), section 4.3; Song et al. 2021, section 4.3.
    """
    if not isinstance(sampler, DDIM | RK45):
        raise ValueError(f"{sampler.kind} cannot be walked backwards; use rk45, or ddim with eta 0")
    if isinstance(sampler, DDIM) and sampler.eta > 0:
        raise ValueError(
            f"ddim with eta {sampler.eta:g} adds noise, which an image does not tell; set eta to 0, or use rk45"
        )
    return sampler.model_copy(update={"clip": "none"})


@torch.inference_mode()
def invert(
    model: TrainedModel,
    sampler: Sampler,
    images: Tensor,
    label: Tensor | None = None,
    guidance: Guidance = NO_GUIDANCE,
) -> Tensor:
    """The noise from which the sampler, if `invertible`, makes about these images.

    images: uint8 [N, H, W, C]; label: int64 [N], of a model that is told classes -> float32 [N, *latent_shape].
    """
    denoiser = model.denoiser(label_of_images(model, guidance, label), guidance)
    return last(invertible(sampler).inversion(denoiser, model.spec.path, encoded(model, images)))


@torch.inference_mode()
def reconstruct(
    model: TrainedModel,
    sampler: Sampler,
    images: Tensor,
    label: Tensor | None = None,
    guidance: Guidance = NO_GUIDANCE,
) -> Tensor:
    """Images turned to noise by `invert`, and drawn from it again. -> uint8 [N, H, W, C]."""
    noise = invert(model, sampler, images, label, guidance)
    return _drawn(model, invertible(sampler), noise, _no_noise, label, guidance)


@torch.inference_mode()
def interpolate_seeds(
    model: TrainedModel,
    sampler: Sampler,
    first: int,
    second: int,
    share: Tensor,
    label: int | None = None,
    guidance: Guidance = NO_GUIDANCE,
) -> Tensor:
    """Images on the way from one seed's to another's. share: float64 [F], in [0, 1] -> uint8 [F, H, W, C].

    Not only the first noise but each step's is interpolated, so that with any sampler the ends are the images of the
    two seeds. label: the class of them all, by default that of both seeds. ValueError where these are of two classes,
    between which there is nothing.
    """
    spec = model.spec
    ends = torch.tensor([first, second], device=share.device)
    labels = default_label(spec, guidance, ends)
    if labels is not None:
        if label is None and labels[0] != labels[1]:
            raise ValueError(
                f"seeds {first} and {second} are of classes {int(labels[0])} and {int(labels[1])}, and nothing is "
                "between two classes; give one label for all"
            )
        labels = torch.full(share.shape, int(labels[0]) if label is None else label, device=share.device)
    sampler.check(spec.path)
    x = _between(model.noise(ends, sampler.start(spec.path)), share)
    return _drawn(model, sampler, x, lambda step: _between(model.step_noise(ends, step), share), labels, guidance)


@torch.inference_mode()
def interpolate_images(
    model: TrainedModel,
    sampler: Sampler,
    first: Tensor,
    second: Tensor,
    share: Tensor,
    label: int | None = None,
    guidance: Guidance = NO_GUIDANCE,
) -> Tensor:
    """Images on the way from one to another, each turned to noise by `invert`. The ends are their reconstructions.

    first, second: uint8 [H, W, C]; share: float64 [F], in [0, 1]; label: the class of them all -> uint8 [F, H, W, C].
    """
    labels = None if label is None else torch.full((2,), label, device=first.device)
    ends = invert(model, sampler, torch.stack((first, second)), labels, guidance)
    labels = None if label is None else torch.full(share.shape, label, device=first.device)
    return _drawn(model, invertible(sampler), _between(ends, share), _no_noise, labels, guidance)


@torch.inference_mode()
def image_to_image(
    model: TrainedModel,
    sampler: Sampler,
    images: Tensor,
    strength: float,
    seeds: Tensor,
    label: Tensor | None = None,
    guidance: Guidance = NO_GUIDANCE,
) -> Tensor:
    """Images noised as far as `strength_time` and denoised again: SDEdit. Meng et al. 2022, algorithm 1.

    images: uint8 [N, H, W, C]; seeds: int64 [N]; label: int64 [N], of a model that is told classes -> uint8
    [N, H, W, C]. Each depends on its seed and its inputs alone. ValueError where the strength is not in (0, 1].
    """
    path = model.spec.path
    label = label_of_images(model, guidance, label)
    start = strength_time(model, sampler, strength)
    alpha, sigma = path.at(start)
    x = alpha * encoded(model, images) + sigma * normal(0, Stream.INITIAL_NOISE, seeds, model.spec.latent_shape)
    return _drawn(model, sampler, x, partial(model.step_noise, seeds), label, guidance, start)


def strength_time(model: TrainedModel, sampler: Sampler, strength: float) -> float:
    """The time at this share of the path from the data, at most the sampler's start. ValueError unless in (0, 1].

    Shares are those of the grid `uniform`, so that as large a share of its steps is taken; the edm path's are even in
    log(sigma).
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength:g} is not in (0, 1]: near 0 the image stays, at 1 hardly anything does")
    path = model.spec.path
    sampler.check(path)
    share = torch.tensor(strength, dtype=torch.float64, device="cpu")
    even = isinstance(path, DiscretePath | UnitTimePath)
    t = path.t_data + share * (path.t_max - path.t_data) if even else path.training_time(share)
    return min(float(path.nearest_training_time(t)), sampler.start(path))


def encoded(model: TrainedModel, images: Tensor) -> Tensor:
    """Images as what the path acts on. uint8 [N, H, W, C] -> float32 [N, *latent_shape]. ValueError for other sizes."""
    channels, height, width = model.spec.image_shape
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (height, width, channels):
        raise ValueError(
            f"images: found {images.dtype} {list(images.shape)}, expected torch.uint8 of [N, {height}, {width}, "
            f"{channels}], the images of this model"
        )
    return model.codec.encode(to_unit_range(images))


def label_of_images(model: TrainedModel, guidance: Guidance, label: Tensor | None) -> Tensor | None:
    """The label as given. ValueError where the model needs one, which no image tells."""
    if label is None and (classes := model.spec.classes or guidance.classes):
        raise ValueError(f"this model is told the class of an image, 0 to {classes - 1}; give a label for each image")
    return label


def _between(ends: Tensor, share: Tensor) -> Tensor:
    return slerp(ends[0], ends[1], share)


def _drawn(
    model: TrainedModel,
    sampler: Sampler,
    x: Tensor,
    noise: NoiseSource,
    label: Tensor | None,
    guidance: Guidance,
    start: float | None = None,
) -> Tensor:
    states = sampler.trajectory(model.denoiser(label, guidance), model.spec.path, x, noise, start)
    return model.pictures(last(states))


def _no_noise(step: int) -> Tensor:
    raise AssertionError(f"an invertible sampler asked for noise at step {step}")
