"""From weights and seeds to images."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from .codec import CodecModule, IdentityCodec
from .denoiser import Denoiser, NetworkDenoiser
from .guidance import NO_GUIDANCE, Guidance
from .images import to_uint8
from .random import Stream, normal
from .sampler import State
from .samplers import Sampler
from .spec import ModelSpec


@dataclass(frozen=True)
class TrainedModel:
    """A model with its weights, all on one device and ready to be asked."""

    spec: ModelSpec
    network: nn.Module
    """What `spec.build` makes, trained."""
    classifier: nn.Module | None = None
    """The classifier of noisy images; only guidance by it needs one."""
    codec: CodecModule = field(default_factory=IdentityCodec().build)
    """What `spec.codec.build` makes, trained."""

    def denoiser(self, label: Tensor | None = None, guidance: Guidance = NO_GUIDANCE) -> Denoiser:
        """What samplers ask, of images with these labels: int64 [B], or None where neither knows classes."""
        spec = self.spec
        plain = NetworkDenoiser(self.network.eval(), spec.path, spec.target, variance=spec.variance)
        return guidance.guided(plain, label, spec.classes, self.classifier)

    def noise(self, seeds: Tensor, t: float) -> Tensor:
        """The noise from which these seeds begin at time t, the sampler's `start`. float32 [N, *latent_shape]."""
        return self.spec.path.prior_std(t) * normal(0, Stream.INITIAL_NOISE, seeds, self.spec.latent_shape)

    def step_noise(self, seeds: Tensor, step: int) -> Tensor:
        """Standard normal noise of a sampler's step. float32 [N, *latent_shape]."""
        return normal(0, Stream.STEP_NOISE, seeds, self.spec.latent_shape, step)

    def pictures(self, x: Tensor) -> Tensor:
        """Latents as images. [N, *latent_shape] -> uint8 [N, H, W, C]. FloatingPointError where they are not finite."""
        images = self.codec.decode(x)
        if not images.isfinite().all():
            raise FloatingPointError("images are not finite: NaN has no grey level")
        return to_uint8(images)


def default_label(spec: ModelSpec, guidance: Guidance, seeds: Tensor) -> Tensor | None:
    """The class of each image where none is asked for: its seed modulo their number. int64 [N] -> int64 [N].

    None where neither the network nor the guidance knows classes.
    """
    classes = spec.classes or guidance.classes
    return seeds % classes if classes else None


@torch.inference_mode()
def trajectory(
    model: TrainedModel,
    sampler: Sampler,
    seeds: Tensor,
    label: Tensor | None = None,
    guidance: Guidance = NO_GUIDANCE,
) -> Iterator[State]:
    """Time and x_t of all images: the initial noise, then after each step. Each depends on its seed and label alone.

    seeds: int64 [N] >= 0, on the network's device; label: int64 [N], by default `default_label`, which makes as many of
    each class. The states are float32 [N, *latent_shape]; the last are the images.
    """
    path = model.spec.path
    sampler.check(path)
    start = sampler.start(path)
    x = model.noise(seeds, start)
    yield State(start, x)
    label = default_label(model.spec, guidance, seeds) if label is None else label
    yield from sampler.trajectory(model.denoiser(label, guidance), path, x, partial(model.step_noise, seeds))


def generate(
    model: TrainedModel,
    sampler: Sampler,
    seeds: Tensor,
    label: Tensor | None = None,
    guidance: Guidance = NO_GUIDANCE,
) -> Tensor:
    """The images of `seeds`, as `trajectory` makes them. -> uint8 [N, H, W, C]."""
    return model.pictures(last(trajectory(model, sampler, seeds, label, guidance)))


def last(states: Iterator[State]) -> Tensor:
    """X of the last state; those before it are not kept."""
    ((_, x),) = deque(states, maxlen=1)
    return x
