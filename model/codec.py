"""The seam between images and what the path acts on: nothing for diffusion on pixels, an autoencoder for latents.

All noise, all times and the network live on the latents; images are encoded once when they are trained on, and decoded
once when they have been drawn. A trained autoencoder is one record more: `latent_shape` says what it makes of an image,
`build` gives the module whose weights the pipeline then loads, scaling included, and its `digest` covers these weights.
"""

import hashlib
from typing import ClassVar, Literal

from torch import Tensor, nn

from .record import Record

Shape = tuple[int, int, int]
"""(C, H, W)."""


class CodecModule(nn.Module):
    """Encodes and decodes; what it has learned is in its state dict."""

    def encode(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] -> latents. [B, C, H, W] -> [B, *latent_shape]."""
        raise NotImplementedError  # each codec states its own

    def decode(self, z: Tensor) -> Tensor:
        """Latents -> images, which may lie a little outside [-1, 1]."""
        raise NotImplementedError  # each codec states its own


class IdentityCodec(Record):
    """The image itself: diffusion on pixels."""

    bounded: ClassVar[bool] = True
    """Whether latents lie in [-1, 1], as samplers that clip suppose."""
    kind: Literal["identity"] = "identity"

    def latent_shape(self, image: Shape) -> Shape:
        """Shape of the latents of images of this shape. ValueError where they cannot be encoded."""
        return image

    def build(self) -> CodecModule:
        """The module that does the work, its weights not yet loaded."""
        return _Identity()

    @property
    def digest(self) -> str:
        """sha256 of all that decides what encoding and decoding do."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class _Identity(CodecModule):
    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


Codec = IdentityCodec
"""What a `ModelSpec` may have for one; a union once there are two."""
