"""A model's description without its weights."""

from typing import Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from .codec import Codec, IdentityCodec, Shape
from .denoiser import coefficients
from .networks import Network
from .paths import Path
from .record import Record
from .targets import Eps, Target
from .variance import FIXED_VARIANCE, Variance


class ModelSpec(Record):
    """All that is needed, beside the weights, to build a model again."""

    image_size: int = Field(ge=1)
    """Height and width, pixels."""
    channels: int = Field(ge=1)
    """1: grey, 3: RGB."""
    network: Network
    """The network."""
    path: Path
    """How data become noise."""
    target: Target = Eps()
    """What the network predicts."""
    variance: Variance = FIXED_VARIANCE
    """Whether it also predicts the variance of each step."""
    codec: Codec = IdentityCodec()
    """What stands between images and what the path acts on."""
    classes: int = Field(0, ge=0)
    """Classes that the network is told of; 0: none."""

    @model_validator(mode="after")
    def _parts_fit_the_path(self) -> Self:
        self.target.check(self.path)
        self.variance.check(self.path)
        return self

    @property
    def image_shape(self) -> Shape:
        """(C, H, W)."""
        return (self.channels, self.image_size, self.image_size)

    @property
    def latent_shape(self) -> Shape:
        """(C, H, W) of what the path acts on."""
        return self.codec.latent_shape(self.image_shape)

    def noisy(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t. x0, eps: [B, C, H, W]; t: float64 [B]."""
        alpha, sigma = coefficients(self.path, t, x0)
        return alpha * x0 + sigma * eps

    def build(self) -> nn.Module:
        """The network, freshly initialised from torch's global generator."""
        channels, size, _ = self.latent_shape
        return self.network.build(size, channels, self.variance.outputs * channels, self.classes)
