"""The choice of networks.

Each record has `check_image_size(image_size)` and `build(image_size, channels, out_channels, classes)`. What it builds
is a module (x_t [B, C, H, W], t [B], label int64 [B] or None) -> [B, out_channels, H, W]. With `classes` 0 the label is
None; else labels are 0 to classes - 1, and `classes` itself means none, for classifier-free guidance.

To a network with `cross_attention` the label can also be what its blocks attend to, a sequence of embeddings, float
[B, L, width] of any length L, such as a text encoder's output. It must be one where `classes` is 0.
"""

from typing import Annotated

from pydantic import Field

from .adm_unet import ADMUNet
from .ddpm_unet import DDPMUNet
from .dit import DiT
from .ncsnpp import NCSNpp
from .simple_unet import SimpleUNet

Network = Annotated[DDPMUNet | ADMUNet | NCSNpp | DiT | SimpleUNet, Field(discriminator="kind")]
"""One of them, told apart by `kind`."""
