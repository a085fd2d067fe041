"""The networks DDPM++ and NCSN++ in the form that EDM trains. Song et al. 2021, appendix H; Karras et al. 2022, table 1
and appendix F.

With its defaults on 32x32x3 images it has 55,732,739 parameters, and 1,152 more where it is told of augmentation;
NCSN++ has 56,395,523 and 2,304. What is theirs and easily missed: label and augmentation join the sinusoids of the time
before the first dense layer, labels as one-hot vectors of length sqrt(classes); every sum of a block and its input is
divided by sqrt(2); resolutions change within residual blocks, before the first convolution; on the way up only the last
block of a level has attention; the last convolution of each block, the projection of attention and the output start
1e-5 as large as the rest.
"""

import math
from functools import partial
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .continuous_paths import VESDE, EDMPath
from .gaussian_path import GaussianPath
from .precision import without_autocast
from .unet import UNetConfig, group_count

_ALMOST_ZERO = 1e-5  # gain of the layers that start with almost no effect
_ATTENTION_GAIN = math.sqrt(0.2)  # gain of queries, keys and values
_HALVED = math.sqrt(0.5)  # keeps the variance of a sum of two
_FOURIER_SCALE = 16.0  # standard deviation of the random frequencies, in turns per unit of time

Taps = tuple[int, ...]


class NCSNpp(UNetConfig):
    """U-Net of residual blocks that resample, DDPM++ or NCSN++. Song et al. 2021; Karras et al. 2022, appendix F."""

    kind: Literal["ncsnpp"] = "ncsnpp"
    architecture: Literal["ddpmpp", "ncsnpp"] = "ddpmpp"
    """ddpmpp: sinusoids of the time, resampling by 2x2 means. ncsnpp: random Fourier features of the time, made for
    paths that tell the network log(sigma) / 4; resampling by [1, 3, 3, 1]; the shrunken image joins each level on the
    way down."""
    channel_multipliers: tuple[Annotated[int, Field(ge=1)], ...] = Field((2, 2, 2), min_length=1)
    """Channels of each level in units of base_channels; between levels the resolution halves."""
    blocks_per_level: int = Field(4, ge=1, le=100)
    """Residual blocks of each level on the way down; one more on the way up."""
    dropout: float = Field(0.13, ge=0, lt=1)
    """Share of activations that residual blocks drop in training."""
    augment_labels: int = Field(0, ge=0)
    """Numbers that say how an image was augmented, an input beside the time; 9 with `Augmentation`; 0: none."""

    def check_path(self, path: GaussianPath) -> None:
        """ValueError where random Fourier features would tell neighbouring times nothing of one another."""
        if self.architecture == "ncsnpp" and not isinstance(path, VESDE | EDMPath):
            raise ValueError(
                "architecture ncsnpp sees the time by frequencies made for log(sigma) / 4, which the paths edm and "
                "ve_sde tell; use one of these, or architecture ddpmpp"
            )

    def build(self, image_size: int, channels: int, out_channels: int, classes: int) -> "SongUNet":
        """A freshly initialised network for square images of `image_size` pixels; `classes` 0: without labels."""
        self.check_image_size(image_size)
        return SongUNet(self, image_size, channels, out_channels, classes)


class SongUNet(nn.Module):
    """(x_t [B, C, H, W], t [B], label int64 [B] or None, augmentation [B, n] or None) -> [B, out_channels, H, W]."""

    def __init__(self, config: NCSNpp, image_size: int, channels: int, out_channels: int, classes: int) -> None:
        super().__init__()
        base, widths, plus = config.base_channels, config.widths, config.architecture == "ncsnpp"
        taps = (1, 3, 3, 1) if plus else (1, 1)
        block = partial(ResidualBlock, embedding_channels=4 * base, dropout=config.dropout)
        self.condition = Condition(base, plus, classes, config.augment_labels)
        self.head = _conv(channels, base)

        self.down, self.shrunken_images = nn.ModuleList(), nn.ModuleList()
        skips, width, size, image_width = [base], base, image_size, channels
        for level, out in enumerate(widths):
            if level > 0:
                self.down.append(block(width, width, resample=Downsample(taps)))
                skips.append(width)
                size //= 2
                if plus:
                    self.shrunken_images.append(ShrunkenImage(image_width, width, taps))
                    image_width = width
            for _ in range(config.blocks_per_level):
                self.down.append(block(width, out, attention=size in config.attention_sizes))
                skips.append(width := out)

        self.middle = nn.ModuleList([block(width, width, attention=True), block(width, width)])

        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for index in range(config.blocks_per_level + 1):
                attention = index == config.blocks_per_level and size in config.attention_sizes
                self.up.append(block(width + skips.pop(), out, attention=attention))
                width = out
            if level > 0:
                self.up.append(block(width, width, resample=Upsample(taps)))
                size *= 2

        self.norm = _norm(width)
        self.tail = _conv(width, out_channels, gain=_ALMOST_ZERO)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, augmentation: Tensor | None = None) -> Tensor:
        """t: the path's time; label: 0 to classes - 1, or `classes` for none; augmentation None: none."""
        embedding = self.condition(t, label, augmentation)
        h, image = self.head(x), x
        skips, shrunken_images = [h], list(self.shrunken_images)
        for block in self.down:
            h = block(h, embedding)
            if shrunken_images and isinstance(block.resample, Downsample):
                image = h = _HALVED * (h + shrunken_images.pop(0)(image))
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for block in self.up:
            if not isinstance(block.resample, Upsample):
                h = torch.cat((h, skips.pop()), dim=1)
            h = block(h, embedding)
        return cast(Tensor, self.tail(F.silu(self.norm(h))))


class Condition(nn.Module):
    """Time, label and augmentation through two dense layers. -> [B, 4 * base], after its swish.

    ddpmpp: sines before cosines of `base` / 2 angles, frequencies from 1 down to 1 / 10,000. ncsnpp: of `base` angles,
    frequencies drawn at random; they are no constants but weights that are never trained.
    """

    frequencies: Tensor

    def __init__(self, base: int, fourier: bool, classes: int, augment_labels: int) -> None:
        super().__init__()
        features = 2 * base if fourier else base
        if fourier:
            self.frequencies = nn.Parameter(2 * math.pi * _FOURIER_SCALE * torch.randn(base), requires_grad=False)
        else:
            exponents = torch.linspace(0, 1, base // 2, dtype=torch.float64)
            self.register_buffer("frequencies", (10_000.0**-exponents).float(), persistent=False)
        self.classes = classes
        self.label = _dense(classes, features) if classes else None
        self.augmentation = _dense(augment_labels, features, bias=False) if augment_labels else None
        self.dense1 = _dense(features, 4 * base)
        self.dense2 = _dense(4 * base, 4 * base)

    def forward(self, t: Tensor, label: Tensor | None, augmentation: Tensor | None) -> Tensor:
        """All in float32, also under autocast: in bfloat16, step 998 would be step 1000."""
        with without_autocast(t.device):
            return self._embedding(t, label, augmentation)

    def _embedding(self, t: Tensor, label: Tensor | None, augmentation: Tensor | None) -> Tensor:
        angles = t.float()[:, None] * self.frequencies
        embedding = torch.cat((angles.sin(), angles.cos()), dim=1)
        if self.label is not None:
            embedding = embedding + self.label(self._one_hot(label).to(embedding.dtype))
        elif label is not None:
            raise ValueError("the network was built without classes and takes no label; pass None, or set classes")
        if self.augmentation is not None:
            if augmentation is not None:
                embedding = embedding + self.augmentation(augmentation.to(embedding.dtype))
        elif augmentation is not None:
            raise ValueError(
                "the network was built without augment_labels and takes no augmentation; pass None, or set "
                f"augment_labels to {augmentation.shape[1]}"
            )
        return F.silu(self.dense2(F.silu(self.dense1(embedding))))

    def _one_hot(self, label: Tensor | None) -> Tensor:
        """sqrt(classes) at the label, all zeros for the null class. -> [B, classes]."""
        if label is None:
            null = self.classes
            raise ValueError(f"the network has {null} classes and was given no label; pass int64 [B], {null} for none")
        return math.sqrt(self.classes) * F.one_hot(label, self.classes + 1)[:, : self.classes]


class ResidualBlock(nn.Module):
    """Norm, swish, resampling, convolution; plus embedding; norm, swish, dropout, convolution; plus the input.

    Attention behind it where asked.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        embedding_channels: int,
        dropout: float,
        attention: bool = False,
        resample: "Downsample | Upsample | None" = None,
    ) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.resample = nn.Identity() if resample is None else resample
        self.conv1 = _conv(channels, out)
        self.embedding = _dense(embedding_channels, out)
        self.norm2 = _norm(out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv(out, out, gain=_ALMOST_ZERO)
        self.shortcut = nn.Identity() if channels == out and resample is None else _conv(channels, out, kernel=1)
        self.attention = AttentionBlock(out) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: [B, C, H, W]; embedding: [B, embedding_channels], after its swish -> [B, out, H', W']."""
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        h = h + self.embedding(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return cast(Tensor, self.attention(_HALVED * (self.shortcut(self.resample(x)) + h)))


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, one head, scaled by C^-1/2, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.query_key_value = _conv(channels, 3 * channels, kernel=1, gain=_ATTENTION_GAIN)
        self.project = _conv(channels, channels, kernel=1, gain=_ALMOST_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query_key_value(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return _HALVED * (x + cast(Tensor, self.project(mixed.reshape(x.shape))))


class _Filter(nn.Module):
    """A separable low-pass filter, the same for all channels; its taps sum to one."""

    taps: Tensor

    def __init__(self, taps: Taps) -> None:
        super().__init__()
        line = torch.tensor(taps, dtype=torch.float32) / sum(taps)
        self.register_buffer("taps", torch.outer(line, line)[None, None], persistent=False)
        self.padding = (len(taps) - 1) // 2  # keeps half, or twice, of an even size

    def of(self, x: Tensor) -> Tensor:
        """One filter for each channel of x."""
        return self.taps.repeat(x.shape[1], 1, 1, 1)


class Downsample(_Filter):
    """Halves height and width; zeros beyond the border."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.of(x), stride=2, padding=self.padding, groups=x.shape[1])


class Upsample(_Filter):
    """Doubles height and width; zeros beyond the border."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, 4 * self.of(x), stride=2, padding=self.padding, groups=x.shape[1])


class ShrunkenImage(_Filter):
    """The image, or what was made of it at the level above, convolved and then halved."""

    def __init__(self, channels: int, out: int, taps: Taps) -> None:
        super().__init__(taps)
        self.conv = _conv(channels, out, padding=1 + self.padding)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return F.conv2d(h, self.of(h), stride=2, groups=h.shape[1])


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(group_count(channels), channels, eps=1e-6)


def _conv(channels: int, out: int, kernel: int = 3, padding: int | None = None, gain: float = 1.0) -> nn.Conv2d:
    layer = nn.Conv2d(channels, out, kernel, padding=kernel // 2 if padding is None else padding)
    _initialise(layer, gain)
    return layer


def _dense(features: int, out: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(features, out, bias)
    _initialise(layer, 1.0)
    return layer


def _initialise(layer: nn.Conv2d | nn.Linear, gain: float) -> None:
    """Uniform with variance gain^2 / mean of fan-in and fan-out; bias 0."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
