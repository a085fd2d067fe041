"""Filling a hole in an image that is known elsewhere: RePaint.

Any model will do, since only the way it is walked differs: at every time the known pixels are what the path makes of
them, and the others are the reverse chain's. Going back and forth lets the two come to terms.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from .chain_samplers import ReverseChain
from .clipping import clipped
from .denoiser import Denoiser
from .editing import encoded, label_of_images
from .gaussian_path import GaussianPath
from .generation import TrainedModel, last
from .guidance import NO_GUIDANCE, Guidance
from .random import Stream, normal
from .sampler import NoiseSource, Point, State, transition_variance
from .variance import StepVariance

_MOST_DRAWS = 2**24  # what `random.words` has room for

Noises = Callable[[Stream], NoiseSource]
"""What a draw is for -> its number -> standard normal noise shaped like x."""


class RePaint(ReverseChain):
    """The reverse chain with the known pixels put in at every step. Lugmayr et al. 2022, algorithm 1 and figure 9.

    After every jump_length steps they are undone by as much noise, in one draw, and taken anew, resamplings times in
    all. Where nothing is known, it is ancestral sampling.
    """

    order: ClassVar[int] = 1
    kind: Literal["repaint"] = "repaint"
    steps: int = Field(100, ge=1, le=100_000)
    """Number of steps from noise to image, not counting those that are taken again; 250 in the paper."""
    variance: StepVariance = "fixed_small"
    """Variance of a step: beta_tilde (the posterior's), beta, or for each pixel between them as the network has learned
    it."""
    jump_length: int = Field(10, ge=1, le=100_000)
    """Number of steps that are undone at a time; 10 in the paper."""
    resamplings: int = Field(5, ge=1, le=1_000)
    """How often these steps are taken in all; 10 in the paper, 1 undoes nothing."""

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        if self.resamplings > 1 and self.jump_length >= self.steps:
            raise ValueError(
                f"jump_length {self.jump_length} is not below steps {self.steps}, so nothing could be undone; lower "
                "it, or set resamplings to 1"
            )
        if self.evaluations_in_all >= _MOST_DRAWS:
            raise ValueError(
                f"{self.evaluations_in_all:,} steps with all that are taken again, expected fewer than "
                f"{_MOST_DRAWS:,}; lower steps or resamplings"
            )
        return self

    @property
    def evaluations_in_all(self) -> int:
        """Steps taken, each one evaluation of the network."""
        jumps = (self.steps - 1) // self.jump_length
        return self.steps + jumps * (self.resamplings - 1) * self.jump_length

    def evaluations(self, path: GaussianPath) -> int:  # noqa: ARG002  # the base class's signature
        return self.evaluations_in_all

    def visits(self) -> Iterator[int]:
        """Numbers of the grid's points in the order in which they are visited, 0 being the noisiest.

        A jump begins where jump_length divides the number of steps to the cleanest point, and there is room for it.
        """
        number, cleanest = 0, self.steps - 1
        undone = dict.fromkeys(range(cleanest, self.jump_length - 1, -self.jump_length), 0)
        yield number
        while number < self.steps:
            number += 1
            yield number
            if undone.get(number, self.resamplings) < self.resamplings - 1:
                undone[number] += 1
                number -= self.jump_length
                yield number

    def filled(
        self, denoiser: Denoiser, path: GaussianPath, x: Tensor, known: Tensor, mask: Tensor, noises: Noises
    ) -> Iterator[State]:
        """From x [B, C, H, W], noise at time `start`, to images that are `known` wherever the mask is not.

        known: [B, C, H, W]; mask: bool, broadcast to it, true where there is a hole. Yields the state after each step,
        back or forth. ValueError where `check` has one.
        """
        self.check(path)
        denoiser = clipped(denoiser, path, self.clip, self._eps_follows_x0)
        points = self.points(path)
        visits = (points[number] for number in self.visits())
        for draw, (now, after) in enumerate(pairwise(visits)):
            of = {stream: partial(noises(stream), draw) for stream in _DRAWS}
            if after.number < now.number:
                x = _noisier(now, after, x, of[Stream.RENOISING]())
            else:
                x = self._step(denoiser, now, after, x, of[Stream.STEP_NOISE])
                x = torch.where(mask, x, _on_path(after, known, of[Stream.KNOWN_NOISE]))
            yield State(after.t, x)


_DRAWS = (Stream.STEP_NOISE, Stream.KNOWN_NOISE, Stream.RENOISING)


def _on_path(point: Point, known: Tensor, z: Callable[[], Tensor]) -> Tensor:
    """x_t of the known image; at the data the image itself, to the bit."""
    return point.alpha * known + point.sigma * z() if point.sigma > 0 else known


def _noisier(now: Point, after: Point, x: Tensor, z: Tensor) -> Tensor:
    """The path's own steps from `now` to the noisier point `after`, taken as one."""
    return after.alpha / now.alpha * x + math.sqrt(max(transition_variance(after, now), 0.0)) * z


@torch.inference_mode()
def inpaint(
    model: TrainedModel,
    sampler: RePaint,
    images: Tensor,
    mask: Tensor,
    seeds: Tensor,
    label: Tensor | None = None,
    guidance: Guidance = NO_GUIDANCE,
) -> Tensor:
    """Images whose hole is filled; all other pixels stay to the bit. Each depends on its seed and its inputs alone.

    images: uint8 [N, H, W, C]; mask: bool [H, W] or [N, H, W], true in the hole; seeds: int64 [N]; label: int64 [N],
    of a model that is told classes -> uint8 [N, H, W, C]. ValueError where the mask does not fit, or where the path
    acts on anything but pixels, since a hole in the image is then none in what it acts on.
    """
    spec = model.spec
    if spec.latent_shape != spec.image_shape:
        raise ValueError(
            f"inpainting: the path acts on latents of shape {list(spec.latent_shape)} and the mask is of pixels, "
            f"{list(spec.image_shape)}; use a model of pixels"
        )
    count, height, width, _ = images.shape
    if mask.dtype != torch.bool or mask.shape not in {(height, width), (count, height, width)}:
        raise ValueError(
            f"mask: found {mask.dtype} {list(mask.shape)}, expected torch.bool {[height, width]} or "
            f"{[count, height, width]}"
        )
    known = encoded(model, images)
    label = label_of_images(model, guidance, label)
    x = model.noise(seeds, sampler.start(spec.path))

    def noises(stream: Stream) -> NoiseSource:
        return lambda draw: normal(0, stream, seeds, spec.latent_shape, draw)

    states = sampler.filled(
        model.denoiser(label, guidance), spec.path, x, known, mask.view(-1, 1, height, width), noises
    )
    return model.pictures(last(states))
