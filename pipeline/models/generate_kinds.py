"""The kinds of picture that `generate` makes of a model's images, a function each."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.pictures import denoising_strip, headed_rows, image_grid
from model import (
    Sampler,
    generate,
    image_to_image,
    inpaint,
    interpolate_images,
    interpolate_seeds,
    reconstruct,
    trajectory,
)

from ..data.image_files import Pixels
from ..errors import ConfigError
from .drawing import strip
from .request import Kind, Request, read_image, size_of
from .stored_model import StoredModel

_BATCH_IMAGES, _BATCH_NUMBERS = 64, 2**20  # drawn at a time: bounds memory; numbers are pixels times channels
_ROW_FRAMES, _ROW_SEEDS, _PAIRS_HIGH = 12, 8, 8
_LONGEST_NAME = 16  # letters of a heading, for which images are enlarged
_HOLE = (217, 130, 43)  # a colour that no grey image has


@dataclass(frozen=True)
class Answer:
    """What has been drawn, and is in the picture."""

    images: int
    sampler: str
    note: str = ""


@dataclass(frozen=True)
class Drawing:
    """A request, and the loaded model that answers it."""

    request: Request
    stored: StoredModel
    sampler: Sampler
    progress: Callable[[int], None]

    def labels(self, number: int) -> Tensor | None:
        """The one class that was asked for, `number` times; None where none was."""
        if not self.request.classes:
            return None
        return torch.full((number,), self.request.classes[0], device=self.stored.device)

    def tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values, device=self.stored.device)

    def read(self) -> list[Pixels]:
        """The images of the request as the model sees them."""
        spec = self.stored.model.spec
        return [np.array(read_image(file, spec.image_size, spec.channels)) for file in self.request.images]

    def in_batches(self, draw: Callable[[Tensor], Tensor], number: int) -> Pixels:
        """All images, some at a time: `draw` gets their positions, int64. -> uint8 [N, H, W, C]."""
        size = max(1, min(_BATCH_IMAGES, _BATCH_NUMBERS // math.prod(self.stored.model.spec.image_shape)))
        parts, done = [], 0
        for some in torch.arange(number, device=self.stored.device).split(size):
            parts.append(draw(some).cpu().numpy())
            done += len(some)
            self.progress(done)
        return np.concatenate(parts)


def _draw_seeds(drawing: Drawing) -> Answer:
    request, stored = drawing.request, drawing.stored
    seeds = drawing.tensor(list(request.seeds)).repeat(max(1, len(request.classes)))
    classes = drawing.tensor(list(request.classes)).repeat_interleave(len(request.seeds)) if request.classes else None

    def draw(some: Tensor) -> Tensor:
        label = None if classes is None else classes[some]
        return generate(stored.model, drawing.sampler, seeds[some], label, stored.guidance)

    images = drawing.in_batches(draw, len(seeds))
    if len(request.classes) > 1:
        rows = images.reshape(len(request.classes), len(request.seeds), *images.shape[1:])
        names = [f"class {each}" for each in request.classes]
        headed_rows(rows, [f"seed {seed}" for seed in request.seeds], request.into, names)
    else:
        columns = len(images) if len(images) <= _ROW_SEEDS else math.ceil(math.sqrt(len(images)))
        image_grid(images, columns, request.into)
    return Answer(len(images), drawing.sampler.kind)


def _draw_strip(drawing: Drawing) -> Answer:
    request, stored = drawing.request, drawing.stored
    seeds = drawing.tensor(list(request.seeds))
    states = trajectory(stored.model, drawing.sampler, seeds, drawing.labels(len(seeds)), stored.guidance)
    frames, times = strip(stored.model, states)
    denoising_strip(frames, times, request.into)
    return Answer(len(seeds), drawing.sampler.kind)


def _draw_interpolation(drawing: Drawing) -> Answer:
    request, stored = drawing.request, drawing.stored
    share = torch.linspace(0, 1, request.frames, dtype=torch.float64, device=stored.device)
    label = request.classes[0] if request.classes else None
    originals = drawing.read()

    def draw(some: Tensor) -> Tensor:
        if originals:
            first, second = (drawing.tensor(image) for image in originals)
            return interpolate_images(stored.model, drawing.sampler, first, second, share[some], label, stored.guidance)
        start, end = request.seeds
        return interpolate_seeds(stored.model, drawing.sampler, start, end, share[some], label, stored.guidance)

    try:
        frames = drawing.in_batches(draw, request.frames)
    except ValueError as error:  # ends between which there is nothing
        raise ConfigError(f"--interpolate: {error}") from None
    ends = ["inverted"] * 2 if originals else [f"seed {seed}" for seed in request.seeds]
    headings = [ends[0], *[""] * (len(frames) - 2), ends[1]]
    if len(frames) > _ROW_FRAMES:
        image_grid(frames, _ROW_FRAMES - 2, request.into)
    elif originals:
        row = np.concatenate([originals[0][None], frames, originals[1][None]])
        names = [_shortened(file.name) for file in request.images]
        headed_rows(row[None], [names[0], *headings, names[1]], request.into)
    else:
        headed_rows(frames[None], headings, request.into)
    return Answer(len(frames), drawing.sampler.kind)


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."


def _draw_reconstruction(drawing: Drawing) -> Answer:
    request, stored = drawing.request, drawing.stored
    originals = np.stack(drawing.read())
    classes = drawing.tensor(list(request.classes)) if request.classes else None
    labels = None if classes is None else classes.expand(len(originals))

    def draw(some: Tensor) -> Tensor:
        images = drawing.tensor(originals)[some]
        return reconstruct(
            stored.model, drawing.sampler, images, labels if labels is None else labels[some], stored.guidance
        )

    images = drawing.in_batches(draw, len(originals))
    off = ((images.astype(float) - originals) / 127.5) ** 2
    worst = off.mean((1, 2, 3)).max()
    headed_rows(_in_panels(originals, images), ["original", "again"] * _panels(len(images)), request.into)
    note = f", mean squared error {off.mean():.2g} in [-1, 1]"
    return Answer(len(images), drawing.sampler.kind, note if len(images) == 1 else f"{note}, {worst:.2g} at worst")


def _panels(pairs: int) -> int:
    return -(-pairs // _PAIRS_HIGH)


def _in_panels(first: Pixels, second: Pixels) -> Pixels:
    """Pairs below one another, in as many panels as it takes; what is left over is white. -> [R, 2 panels, H, W, C]."""
    pairs, panels = np.stack([first, second], axis=1), _panels(len(first))
    rows = -(-len(pairs) // panels)
    paper = np.full((rows * panels - len(pairs), *pairs.shape[1:]), 255, dtype=np.uint8)
    shape = pairs.shape[2:]
    laid = np.concatenate([pairs, paper]).reshape(panels, rows, 2, *shape).swapaxes(0, 1)
    return np.ascontiguousarray(laid).reshape(rows, 2 * panels, *shape)


def _draw_inpainted(drawing: Drawing) -> Answer:
    request, stored = drawing.request, drawing.stored
    (original,) = drawing.read()
    hole = _hole(request, stored.model.spec.image_size)
    seeds = drawing.tensor(list(request.seeds))
    mask, image = drawing.tensor(hole), drawing.tensor(original)

    def draw(some: Tensor) -> Tensor:
        images = image.expand(len(some), *image.shape)
        labels = drawing.labels(len(some))
        return inpaint(stored.model, stored.inpaint, images, mask, seeds[some], labels, stored.guidance)

    try:
        images = _coloured(drawing.in_batches(draw, len(seeds)))
    except ValueError as error:  # no mask in latents, or no learned variance
        raise ConfigError(f"--inpaint: {error}") from None
    shown = _coloured(original[None])
    with_hole = shown.copy()
    with_hole[:, hole] = _HOLE
    _rows_of_seeds(np.concatenate([shown, with_hole]), ["image", "hole"], images, request)
    return Answer(len(images), "RePaint")


def _hole(request: Request, image_size: int) -> Any:
    """The mask cut like the image. bool [H, W], true where it is white."""
    assert request.mask is not None
    of_image, of_mask = (size_of(file) for file in (request.images[0], request.mask))
    if of_mask not in (of_image, (image_size, image_size)):
        raise ConfigError(
            f"--mask {request.mask}: {of_mask[0]}x{of_mask[1]} pixels, expected those of the image, "
            f"{of_image[0]}x{of_image[1]}, or of the model, {image_size}x{image_size}"
        )
    hole = read_image(request.mask, image_size, 1)[:, :, 0] >= 128
    if not hole.any():
        raise ConfigError(f"--mask {request.mask}: no pixel is white, so there is nothing to fill")
    return hole


def _coloured(images: Pixels) -> Pixels:
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def _draw_changed(drawing: Drawing) -> Answer:
    request, stored = drawing.request, drawing.stored
    (original,) = drawing.read()
    seeds, image = drawing.tensor(list(request.seeds)), drawing.tensor(original)

    def draw(some: Tensor) -> Tensor:
        images, labels = image.expand(len(some), *image.shape), drawing.labels(len(some))
        return image_to_image(
            stored.model, drawing.sampler, images, request.strength, seeds[some], labels, stored.guidance
        )

    images = drawing.in_batches(draw, len(seeds))
    _rows_of_seeds(original[None], ["image"], images, request)
    return Answer(len(images), drawing.sampler.kind, f", strength {request.strength:g}")


def _rows_of_seeds(before: Pixels, headings: list[str], images: Pixels, request: Request) -> None:
    """What was given, then an image for each seed, in rows that all begin with what was given."""
    row = min(len(images), _ROW_SEEDS)
    rows = []
    for start in range(0, len(images), row):
        some = images[start : start + row]
        paper = np.full((row - len(some), *some.shape[1:]), 255, dtype=np.uint8)
        rows.append(np.concatenate([before, some, paper]))
    named = [f"seed {seed}" for seed in request.seeds] if len(rows) == 1 else [""] * row
    headed_rows(np.stack(rows), headings + named, request.into)


DRAW: Mapping[Kind, Callable[[Drawing], Answer]] = {
    "seeds": _draw_seeds,
    "strip": _draw_strip,
    "interpolate": _draw_interpolation,
    "reconstruct": _draw_reconstruction,
    "inpaint": _draw_inpainted,
    "image": _draw_changed,
}
