"""The seam for latent diffusion: noise, times and network live on latents, images on either side of the codec."""

from typing import ClassVar, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import DDIM, DDPMUNet, Denoising, IdentityCodec, ModelSpec, Simple, TrainedModel, VPLinear, generate
from model.codec import CodecModule, Shape
from model.generation import trajectory
from model.images import to_uint8

NETWORK = DDPMUNet(base_channels=16, channel_multipliers=(1, 2), blocks_per_level=1, attention_sizes=(), dropout=0)


class Unshuffled(IdentityCodec):
    """Four pixels become four channels, half as large: what an autoencoder would be, without weights."""

    bounded: ClassVar[bool] = False
    kind: Literal["unshuffled"] = "unshuffled"  # type: ignore[assignment]  # a choice of its own

    def latent_shape(self, image: Shape) -> Shape:
        return (4 * image[0], image[1] // 2, image[2] // 2)

    def build(self) -> CodecModule:
        return UnshuffledModule()


class UnshuffledModule(CodecModule):
    def encode(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2) / 2

    def decode(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(2 * z, 2)


SPEC = ModelSpec(image_size=8, channels=1, network=NETWORK, path=VPLinear(), codec=Unshuffled())


def test_identity_changes_nothing_and_says_so() -> None:
    codec, x = IdentityCodec().build(), torch.randn(2, 1, 4, 4)
    assert codec.encode(x) is x
    assert codec.decode(x) is x
    assert IdentityCodec().latent_shape((3, 5, 5)) == (3, 5, 5)
    assert not codec.state_dict()


def test_the_digest_tells_codecs_apart() -> None:
    assert IdentityCodec().digest == IdentityCodec().digest != Unshuffled().digest


def test_the_network_and_every_state_have_the_latents_shape_and_images_their_own() -> None:
    network = SPEC.build()
    torch.nn.init.normal_(network.tail.weight, std=0.1)  # type: ignore[union-attr, arg-type]  # else it predicts zero
    model = TrainedModel(SPEC, network, codec=SPEC.codec.build())
    states = list(trajectory(model, DDIM(steps=3, clip="none"), torch.arange(2)))
    assert {tuple(state.x.shape) for state in states} == {(2, 4, 4, 4)}
    images = generate(model, DDIM(steps=3, clip="none"), torch.arange(2))
    assert images.shape == (2, 8, 8, 1)
    assert torch.equal(images, to_uint8(F.pixel_shuffle(2 * states[-1].x, 2)))


def test_training_sees_latents() -> None:
    network, codec = SPEC.build(), SPEC.codec.build()
    x0, eps = codec.encode(torch.randn(3, 1, 8, 8)), torch.randn(3, 4, 4, 4)
    losses = Denoising(SPEC, Simple()).losses(network, x0, torch.tensor([0.0, 9.0, 999.0]).double(), eps, None, None)
    torch.testing.assert_close(losses, eps.square().mean((1, 2, 3)), rtol=1e-3, atol=1e-3)  # a fresh one predicts zero


def test_module_without_its_functions_is_no_codec() -> None:
    for call in (CodecModule().encode, CodecModule().decode):
        with pytest.raises(NotImplementedError):
            call(torch.zeros(1, 1, 8, 8))
