"""What a person asks a model for on the command line, and how much of it is granted."""

import argparse
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from ..data.image_files import FORMATS, Pixels, load_file
from ..errors import ConfigError, DataError

MAX_IMAGES = 1_024
MAX_FRAMES = 256
MAX_FILES = 64
MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 50_000_000
"""Of one image that is read; a small file can unpack to a large one."""
MAX_EVALUATIONS = 2_000_000
"""Of the network, all images together."""
MAX_PICTURE_PIXELS = 100_000_000
"""Of the picture that is written."""

MODEL_HELP = "a run's folder, models:/NAME@ALIAS or models:/NAME/VERSION"

Kind = Literal["seeds", "strip", "interpolate", "reconstruct", "inpaint", "image"]

_NAMES: dict[Kind, str] = {
    "seeds": "generated.png",
    "strip": "denoising.png",
    "interpolate": "interpolation.png",
    "reconstruct": "reconstruction.png",
    "inpaint": "inpainted.png",
    "image": "image-to-image.png",
}
_SEEDS: dict[Kind, str] = {"seeds": "0-24", "strip": "0-3", "inpaint": "0-3", "image": "0-3"}
"""Where none are given; the others draw no noise."""
_MOST_SEEDS = 2**63


@dataclass(frozen=True)
class Request:
    """What is asked for. All limits hold that can be checked without the model."""

    kind: Kind
    seeds: Sequence[int]
    classes: Sequence[int]
    """Empty: as the seeds have it, or of no class."""
    frames: int
    images: Sequence[Path]
    """That are read: the ends of an interpolation, or what is reconstructed, inpainted or changed."""
    mask: Path | None
    strength: float
    into: Path


def add_options(command: argparse.ArgumentParser) -> None:
    """What `python -m pipeline generate` understands."""
    command.usage = "python -m pipeline generate MODEL [key=value ...] [what to draw] [--into FILE.png]"
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="right after MODEL: another sampler or guidance than the model's ('keys' explains sample.sampler and "
        "sample.guidance), or inpaint.steps, .jump_length, .resamplings of RePaint; e.g. sampler.kind=ddim "
        "sampler.steps=20 guidance.scale=3",
    )
    draw = command.add_argument_group("what to draw (by default a grid of seeds 0-24)")
    draw.add_argument("--seeds", metavar="0-24|3,7,9", help="one image for each; the same seed, the same image")
    draw.add_argument(
        "--classes", metavar="0-9|3", help="of which class, for a model that knows classes; several: a row for each"
    )
    kinds = draw.add_mutually_exclusive_group()
    kinds.add_argument("--strip", action="store_true", help="each image on its way from noise, left to right")
    kinds.add_argument("--interpolate", nargs=2, metavar=("A", "B"), help="from A to B: two seeds or two image files")
    kinds.add_argument("--reconstruct", nargs="+", type=Path, metavar="IMAGE", help="to noise and back: what is kept")
    kinds.add_argument("--inpaint", type=Path, metavar="IMAGE", help="fill the hole that --mask says")
    kinds.add_argument("--image", type=Path, metavar="IMAGE", help="noise it by --strength, and denoise it again")
    draw.add_argument("--frames", type=int, metavar="N", help="of --interpolate, both ends included; default 9")
    draw.add_argument("--mask", type=Path, metavar="PNG", help="of --inpaint: white is the hole, black is kept")
    draw.add_argument(
        "--strength",
        type=float,
        metavar="S",
        help="of --image: share of the path, in (0, 1]; larger changes more; default 0.5",
    )
    command.add_argument(
        "--into", type=Path, metavar="FILE.png", help="where the picture goes; default: here, named after what is drawn"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the picture where there is one")
    command.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one"
    )
    add_tracking_uri(command)


def add_tracking_uri(command: argparse.ArgumentParser) -> None:
    """The option that says where models:/... are."""
    command.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store of models:/...; default: MLFLOW_TRACKING_URI, else outputs/mlflow.db",
    )


def request_of(options: argparse.Namespace) -> Request:
    """The options as a request. ConfigError for the first that cannot be granted."""
    kind = _kind_of(options)
    _refuse_strays(options, kind)
    ends = options.interpolate or []
    of_seeds = [end for end in ends if re.fullmatch(r"\d+", end)]
    if len(of_seeds) == 1:
        raise ConfigError(f"--interpolate {' '.join(ends)}: one is a seed and one a file; give two of a kind")
    files = [Path(end) for end in ends] if not of_seeds else []
    files += options.reconstruct or [each for each in (options.inpaint, options.image) if each]
    if len(files) > MAX_FILES:
        raise ConfigError(f"--{kind}: {len(files)} images, expected at most {MAX_FILES}; ask in several requests")
    text = ",".join(of_seeds) or options.seeds or _SEEDS.get(kind, "")
    for file in files + ([options.mask] if options.mask else []):
        _check_file(file)
    return Request(
        kind=kind,
        seeds=_numbers("--interpolate" if of_seeds else "--seeds", text, _MOST_SEEDS) if text else (),
        classes=_numbers("--classes", options.classes, _MOST_SEEDS) if options.classes is not None else (),
        frames=_frames(options.frames),
        images=files,
        mask=options.mask,
        strength=_strength(options.strength),
        into=_into(options, kind),
    )


def _kind_of(options: argparse.Namespace) -> Kind:
    kinds: tuple[Kind, ...] = ("strip", "interpolate", "reconstruct", "inpaint", "image")
    return next((kind for kind in kinds if getattr(options, kind)), "seeds")


def _refuse_strays(options: argparse.Namespace, kind: Kind) -> None:
    """An option of another kind of request is a misunderstanding, not something to pass over."""
    for option, wanted in (("frames", "interpolate"), ("mask", "inpaint"), ("strength", "image")):
        if getattr(options, option) is not None and kind != wanted:
            raise ConfigError(f"--{option} goes with --{wanted}; give both, or neither")
    if options.seeds is not None and kind not in _SEEDS:
        raise ConfigError(f"--seeds: --{kind} draws no noise of its own; leave --seeds out")
    if kind == "inpaint" and options.mask is None:
        raise ConfigError("--inpaint needs --mask, a picture of the image's size, white where the hole is")


def _numbers(option: str, text: str, limit: int) -> tuple[int, ...]:
    """`0-24` or `3,7,9`, or both, in their order."""
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip(), re.ASCII)
        if match is None or len(part) > 50:
            raise ConfigError(f"{option}: found {text[:60]!r}, expected whole numbers such as 0-24 or 3,7,9")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= limit:
            raise ConfigError(f"{option}: found {part.strip()}, expected numbers that rise, below 2^63")
        ranges.append(range(first, last + 1))
    if (count := sum(each.stop - each.start for each in ranges)) > MAX_IMAGES:
        raise ConfigError(f"{option}: {count:,} of them, expected at most {MAX_IMAGES:,}; ask in several requests")
    return tuple(number for each in ranges for number in each)


def _frames(frames: int | None) -> int:
    if frames is not None and not 2 <= frames <= MAX_FRAMES:
        raise ConfigError(f"--frames {frames}: expected 2 to {MAX_FRAMES}, both ends included")
    return frames or 9


def _strength(strength: float | None) -> float:
    if strength is not None and not 0 < strength <= 1:
        raise ConfigError(f"--strength {strength:g}: expected more than 0 and at most 1; near 0 the image stays")
    return strength or 0.5


def _into(options: argparse.Namespace, kind: Kind) -> Path:
    """Where the picture goes: never over another file unless told, and that is found out before any work."""
    into = options.into or Path(_NAMES[kind])
    if into.suffix.lower() != ".png":
        raise ConfigError(f"--into {into}: the picture is a PNG; give a name that ends in .png")
    if not into.parent.is_dir():
        raise ConfigError(f"--into {into}: no such folder {into.parent}; make it, or choose another")
    if into.is_dir() or (into.exists() and not options.overwrite):
        raise ConfigError(f"{into} exists; give --into another name, or --overwrite")
    return Path(into)


def read_image(file: Path, image_size: int, channels: int) -> Pixels:
    """An image as the model sees images: its largest centred square, resized. uint8 [H, W, C]. ConfigError."""
    try:
        return load_file(file, image_size, channels, "center_crop")
    except DataError as error:
        raise ConfigError(str(error)) from None


def size_of(file: Path) -> tuple[int, int]:
    """Width and height, pixels, read from the beginning of the file alone. ConfigError where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is lower
            with Image.open(file, formats=FORMATS) as image:
                return image.size
    except Image.DecompressionBombError:
        raise _too_large(file, "far too many") from None
    except Exception as error:  # a damaged file can raise nearly anything inside PIL's format parsers
        raise ConfigError(
            f"{file}: not a readable image ({error or type(error).__name__}); give a PNG or JPEG"
        ) from None


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; give a PNG or JPEG")
    if (found := file.stat().st_size) > MAX_FILE_BYTES:
        raise ConfigError(f"{file}: {found:,} bytes, expected at most {MAX_FILE_BYTES:,}; make it smaller")
    width, height = size_of(file)
    if width * height > MAX_PIXELS:
        raise _too_large(file, f"{width:,}x{height:,}")


def _too_large(file: Path, found: str) -> ConfigError:
    return ConfigError(f"{file}: {found} pixels, expected at most {MAX_PIXELS:,}; make it smaller")
