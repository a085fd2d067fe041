"""`python -m pipeline generate`: what one can do with a trained model, one picture at a time."""

import time

from model import RK45, Sampler, invertible

from ..errors import ConfigError
from ..figures import count, duration
from ..terminal import Terminal
from .drawing import STRIP_FRAMES, images_counted
from .generate_kinds import DRAW, Drawing
from .request import MAX_EVALUATIONS, MAX_IMAGES, MAX_PICTURE_PIXELS, Request
from .stored_model import StoredModel

_MOST_STRIPS = 32
_LEAST_PIXELS = 72  # side of a small image in a picture, about


def run_generate(request: Request, stored: StoredModel, terminal: Terminal) -> None:
    """Draws what is asked for, writes the picture, and says what was done. ConfigError beyond the limits."""
    sampler, instead = _sampler_for(request, stored)
    number = _images_of(request)
    _check_classes(request, stored)
    _check_cost(request, stored, sampler, number)
    began_s = time.perf_counter()
    with (
        terminal.progress(number, "images") as progress,
        images_counted(stored.model.network, _refuse_too_many) as evaluations,
    ):
        try:
            answer = DRAW[request.kind](Drawing(request, stored, sampler, progress.update))
        except FloatingPointError as error:
            raise ConfigError(
                f"{error}; try sampler.clip=x0_and_eps, or another sampler, or looser tolerances of an adaptive one"
            ) from None
        spent = evaluations() / answer.images
    images = count(answer.images, "image" if answer.images == 1 else "images")
    terminal.line(f"{stored.name}: {images} by {answer.sampler}{instead}")
    seconds = duration(time.perf_counter() - began_s)
    terminal.line(f"{spent:,.0f} network evaluations each, {seconds} on {stored.device.type}{answer.note}")
    terminal.line(str(request.into))


def _sampler_for(request: Request, stored: StoredModel) -> tuple[Sampler, str]:
    """The model's own sampler; to go back to the noise, RK45 where that cannot, and nobody has asked for another."""
    backwards = request.kind == "reconstruct" or (request.kind == "interpolate" and request.images)
    if not backwards:
        return stored.sampler, ""
    try:
        return invertible(stored.sampler), ""
    except ValueError as error:
        if stored.sampler_asked:
            raise ConfigError(f"sampler: {error}") from None
        return RK45(clip="none"), f", as {stored.sampler.kind} does not lead back to the noise"


def _images_of(request: Request) -> int:
    """Images that are drawn."""
    if request.kind == "interpolate":
        return request.frames
    if request.kind == "reconstruct":
        return len(request.images)
    if request.kind == "strip" and len(request.seeds) > _MOST_STRIPS:
        raise ConfigError(
            f"--strip: {len(request.seeds)} seeds, expected at most {_MOST_STRIPS}; a row is drawn of each"
        )
    number = len(request.seeds) * (max(1, len(request.classes)) if request.kind == "seeds" else 1)
    if number > MAX_IMAGES:
        raise ConfigError(
            f"{len(request.seeds)} seeds of {len(request.classes)} classes are {number:,} images, expected at most "
            f"{MAX_IMAGES:,}; ask in several requests"
        )
    return number


def _check_classes(request: Request, stored: StoredModel) -> None:
    known = stored.model.spec.classes or stored.guidance.classes
    if request.classes and not known:
        raise ConfigError("--classes: this model knows no classes; leave it out")
    if request.classes and max(request.classes) >= known:
        raise ConfigError(f"--classes: found {max(request.classes)}, expected 0 to {known - 1}")
    if known and request.images and not request.classes:
        raise ConfigError(f"--{request.kind}: this model is told the class of an image; give it by --classes")
    several = {"seeds": MAX_IMAGES, "reconstruct": len(request.images)}.get(request.kind, 1)
    if len(request.classes) > 1 and len(request.classes) != several and request.kind != "seeds":
        raise ConfigError(
            f"--classes: {len(request.classes)} of them, expected one"
            f"{' for all, or one for each image' if request.kind == 'reconstruct' else ''}"
        )


def _check_cost(request: Request, stored: StoredModel, sampler: Sampler, number: int) -> None:
    spec, drawn = stored.model.spec, stored.inpaint if request.kind == "inpaint" else sampler
    try:
        drawn.check(spec.path)
    except ValueError as error:
        raise ConfigError(f"{request.kind}: {error}") from None
    each = (drawn.evaluations(spec.path) or 0) * stored.guidance.evaluations
    if each * number > MAX_EVALUATIONS:
        raise ConfigError(
            f"{number:,} images of {each:,} network evaluations each are {each * number:,}, expected at most "
            f"{MAX_EVALUATIONS:,}; ask for fewer images or steps"
        )
    columns = STRIP_FRAMES if request.kind == "strip" else 3
    if number * columns * max(spec.image_size, _LEAST_PIXELS) ** 2 > MAX_PICTURE_PIXELS:
        raise ConfigError(
            f"a picture of {number:,} images of {spec.image_size} pixels would be larger than {MAX_PICTURE_PIXELS:,} "
            "pixels; ask for fewer"
        )


def _refuse_too_many(evaluations: int) -> None:
    """An adaptive sampler does not say beforehand how often it will ask."""
    if evaluations > MAX_EVALUATIONS:
        raise ConfigError(
            f"stopped after {MAX_EVALUATIONS:,} network evaluations; ask for fewer images, or loosen the tolerances of "
            "the sampler"
        )
