"""Flips, scalings, rotations and shifts of training images, of which the network is told. Karras et al. 2022, F.2.

After StyleGAN2-ADA (Karras et al. 2020, appendix B). All geometry of an image is one affine map, applied in one warp:
the image is reflected at its borders, doubled by the wavelet sym6, sampled bilinearly, and halved by the same wavelet,
which keeps what the map would alias out of the image. An image that no geometry falls on stays as it is, bit for bit.
Theirs reflects only as far as its batch needs; ours always by the whole image, so that an image's result depends on
itself alone and nothing waits for the device.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .record import Record

Kind = Literal["x_flip", "y_flip", "scale", "rotate", "stretch", "translate"]

AUGMENT_NUMBERS = 15
"""Uniform numbers that an image asks for, whatever its kinds of augmentation: more of them change no other's draws."""
AUGMENT_LABELS = 9
"""Numbers that tell how an image was augmented."""

_LOG2_STD = 0.2  # of the factors of scale and stretch
_SHIFT_STD = 0.125  # in units of the image's width and height
_TURNED_STRETCHES = 0.5  # share of stretches along a random direction; the others are along x

# Low-pass filter of the orthogonal wavelet sym6, Daubechies' least asymmetric one with six vanishing moments.
_SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
_REACH = 3  # pixels beyond its borders that the halved image's filter looks at


class Augmentation(Record):
    """Random geometry of training images, told to the network. Karras et al. 2022, appendix F.2."""

    probability: float = Field(0.12, ge=0, le=1)
    """Chance that a kind falls on an image, each by itself; a flip then happens to half of them. 0: images stay as they
    are. Theirs: 0.12 on CIFAR-10, 0.15 on FFHQ and AFHQv2."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    """What can happen to an image, whatever their order here: mirroring (x_flip left and right, y_flip up and down),
    isotropic and anisotropic scaling (scale, stretch), rotation by any angle, translation by fractions of a pixel."""
    x_flip_always: bool = True
    """x_flip falls on every image, so that half are mirrored, unless probability is 0; as theirs."""

    def augment(self, x0: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Images, and labels that say what was done to them.

        x0: [B, C, H, W]; numbers: uniform in (0, 1), float64 [B, AUGMENT_NUMBERS] -> [B, C, H, W], [B, AUGMENT_LABELS].
        The labels are 0 where nothing was done, else: x_flip 1; y_flip 1; scale log2(s) / 0.2; rotate cos(angle) - 1
        and sin(angle), counter-clockwise; stretch log2(s) / 0.2 times cosine and sine of its direction, likewise;
        translate right and down, in units of W / 8 and H / 8.
        """
        if numbers.shape != (len(x0), AUGMENT_NUMBERS):
            raise ValueError(
                f"numbers have shape {tuple(numbers.shape)}, but {len(x0)} images need ({len(x0)}, {AUGMENT_NUMBERS}); "
                f"draw {AUGMENT_NUMBERS} uniform numbers for each image"
            )
        if not (self.probability and self.kinds):
            return x0, x0.new_zeros(len(x0), AUGMENT_LABELS)
        u = numbers.double().unbind(1)
        x_flips = self._falls("x_flip", u[0], always=self.x_flip_always) & (u[1] < 0.5)
        y_flips = self._falls("y_flip", u[2]) & (u[3] < 0.5)
        scales = self._falls("scale", u[4]) * _normal(u[5])
        angles = self._falls("rotate", u[6]) * _angle(u[7])
        stretches = self._falls("stretch", u[8]) * _normal(u[9])
        directions = (u[10] < _TURNED_STRETCHES) * _angle(u[11])
        translates = self._falls("translate", u[12])
        right, down = translates * _normal(u[13]), translates * _normal(u[14])

        x = torch.where(_per_image(x_flips), x0.flip(3), x0)
        x = torch.where(_per_image(y_flips), x.flip(2), x)
        if set(self.kinds) - {"x_flip", "y_flip"}:
            shrinking, flattening = -_LOG2_STD * scales, -_LOG2_STD * stretches
            stretch = _rotation(-directions) @ _scaling(flattening, -flattening) @ _rotation(directions)
            linear = _scaling(shrinking, shrinking) @ _rotation(angles) @ stretch
            shift = torch.stack((right * _SHIFT_STD * x.shape[3], down * _SHIFT_STD * x.shape[2]), dim=1)
            moved = (scales != 0) | (angles != 0) | (stretches != 0) | translates
            x = torch.where(_per_image(moved), warp(x, linear, shift), x)
        labels = [x_flips.double(), y_flips.double(), scales, angles.cos() - 1, angles.sin()]
        labels += [stretches * directions.cos(), stretches * directions.sin(), right, down]
        return x, torch.stack(labels, dim=1).to(x.dtype)

    def _falls(self, kind: Kind, u: Tensor, always: bool = False) -> Tensor:
        """Whether this kind falls on each image. -> bool [B]."""
        if kind not in self.kinds:
            return torch.zeros_like(u, dtype=torch.bool)
        return u < (1.0 if always else self.probability)


def warp(x: Tensor, linear: Tensor, shift: Tensor) -> Tensor:
    """The image whose pixel at p is that of x at linear (p - shift), without aliasing.

    p = (x, y) in pixels from the image's centre, y down. x: [B, C, H, W]; linear: [B, 2, 2]; shift: [B, 2].
    """
    height, width = x.shape[2:]
    x = F.pad(x, (width - 1, width - 1, height - 1, height - 1), mode="reflect")
    x = _resample(F.conv_transpose2d, x)
    # Doubling puts pixel i at 2i: the point p, from the centre, at 2p - 1/2 in doubled pixels.
    offset = linear @ (0.5 - 2 * shift)[:, :, None] - 0.5
    to_height, to_width = 2 * (height + 2 * _REACH), 2 * (width + 2 * _REACH)
    theta = torch.cat((linear[:, :, :1] * to_width, linear[:, :, 1:] * to_height, 2 * offset), dim=2)
    theta = torch.stack((theta[:, 0] / x.shape[3], theta[:, 1] / x.shape[2]), dim=1)  # sides run from -1 to 1
    grid = F.affine_grid(theta.to(x.dtype), [*x.shape[:2], to_height, to_width], align_corners=False)
    x = _resample(F.conv2d, F.grid_sample(x, grid, align_corners=False))
    return x[:, :, _REACH:-_REACH, _REACH:-_REACH]


def _resample(convolution: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Doubles (conv_transpose2d) or halves (conv2d) width and height by the wavelet; halving undoes doubling."""
    taps = _sym6(x.dtype, x.device)
    for kernel, stride, margin in ((taps[None, :], (1, 2), (0, 5)), (taps[:, None], (2, 1), (5, 0))):
        x = convolution(x, kernel.repeat(x.shape[1], 1, 1, 1), stride=stride, padding=margin, groups=x.shape[1])
    return x


@cache
def _sym6(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The filter's 12 taps, copied once: each copy would wait for the device."""
    with torch.inference_mode(False):
        return torch.tensor(_SYM6, dtype=dtype, device=device)


def _per_image(choice: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return choice[:, None, None, None]


def _normal(u: Tensor) -> Tensor:
    """The standard normal number below which a share u of them lies."""
    normal: Tensor = torch.special.ndtri(u)
    return normal


def _angle(u: Tensor) -> Tensor:
    """From -pi to pi."""
    return (2 * u - 1) * math.pi


def _rotation(angle: Tensor) -> Tensor:
    """[B] -> [B, 2, 2]."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos, -sin, sin, cos), dim=1).view(-1, 2, 2)


def _scaling(log2_x: Tensor, log2_y: Tensor) -> Tensor:
    """[B] -> [B, 2, 2]."""
    return torch.diag_embed(torch.stack((log2_x, log2_y), dim=1).exp2())
