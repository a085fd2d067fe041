"""Random weights under the published names give what torchvision's vision transformer gives; nothing else loads."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from torchvision.models import VisionTransformer as TorchvisionTransformer

from evaluation.dinov2 import DEVIATION, MEAN, DINOv2, build_vision_transformer, resized
from evaluation.errors import EvaluationError
from evaluation.extractors import load_extractor
from evaluation.feature_set import FeatureSet, feature_statistics
from evaluation.scores import score

State = dict[str, Tensor]
UNUSED = Path("unused")
WIDTH, DEPTH = 128, 2
IMAGES = np.random.default_rng(0).integers(0, 256, size=(3, 20, 20, 3), dtype=np.uint8)


def published_shapes(width: int, depth: int, side: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in dinov2_vits14_pretrain.pth, which has width 384, depth 12 and 37x37 positions."""
    yield from {"cls_token": (1, 1, width), "pos_embed": (1, 1 + side**2, width), "mask_token": (1, width)}.items()
    yield from {"patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,)}.items()
    for block in range(depth):
        linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (4 * width, width)}
        for name, shape in {**linears, "mlp.fc2": (width, 4 * width)}.items():
            yield f"blocks.{block}.{name}.weight", shape
            yield f"blocks.{block}.{name}.bias", shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            yield f"blocks.{block}.{name}", (width,)
    yield from {"norm.weight": (width,), "norm.bias": (width,)}.items()


def state_of(width: int = WIDTH, depth: int = DEPTH, side: int = 37) -> State:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * (0.1 if len(shape) > 1 else 0.5)
        for name, shape in published_shapes(width, depth, side)
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dinov2") / "random.pth"
    torch.save(state_of(), path)
    return path


def torchvisions(state: State) -> TorchvisionTransformer:
    """The same network in torchvision's: it has no scales of layers, so they go into the matrix before them."""
    theirs = TorchvisionTransformer(
        image_size=224,
        patch_size=14,
        num_layers=DEPTH,
        num_heads=WIDTH // 64,
        hidden_dim=WIDTH,
        mlp_dim=4 * WIDTH,
        num_classes=1,
    )
    renamed = {
        "class_token": state["cls_token"],
        "encoder.pos_embedding": state["pos_embed"],
        **{f"conv_proj.{part}": state[f"patch_embed.proj.{part}"] for part in ("weight", "bias")},
        **{f"encoder.ln.{part}": state[f"norm.{part}"] for part in ("weight", "bias")},
        "heads.head.weight": torch.zeros(1, WIDTH),
        "heads.head.bias": torch.zeros(1),
    }
    for block in range(DEPTH):
        ours = {name.split(".", 2)[2]: value for name, value in state.items() if name.startswith(f"blocks.{block}.")}
        scales = ours["ls1.gamma"], ours["ls2.gamma"]
        for part in ("weight", "bias"):
            first, second = (scale[:, None] if part == "weight" else scale for scale in scales)
            layer = f"encoder.layers.encoder_layer_{block}"
            renamed |= {
                f"{layer}.ln_1.{part}": ours[f"norm1.{part}"],
                f"{layer}.ln_2.{part}": ours[f"norm2.{part}"],
                f"{layer}.self_attention.in_proj_{part}": ours[f"attn.qkv.{part}"],
                f"{layer}.self_attention.out_proj.{part}": first * ours[f"attn.proj.{part}"],
                f"{layer}.mlp.0.{part}": ours[f"mlp.fc1.{part}"],
                f"{layer}.mlp.3.{part}": second * ours[f"mlp.fc2.{part}"],
            }
    theirs.load_state_dict(renamed)
    theirs.heads = torch.nn.Identity()
    return theirs.eval()


def test_features_are_those_of_torchvisions_transformer() -> None:
    state = state_of(side=16)
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalised = (images / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    with torch.no_grad():
        expected = torchvisions(state)(normalised)
        (found,) = build_vision_transformer(state, UNUSED)(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.std(dim=0).mean() > 1e-3  # features that no image changes would prove nothing


def cubic(distance: Tensor) -> Tensor:
    """Keys's kernel with a = -3/4, as torch interpolates by."""
    x, a = distance.abs(), -0.75
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0))


def test_positions_of_a_larger_square_are_sampled_where_the_published_code_samples_them() -> None:
    """Sample i lies at (i + 1/2) 37 / 16.1 - 1/2 of the 37 along each axis; what is beyond the edge is the edge."""
    state = state_of()
    found = build_vision_transformer(state, UNUSED).pos_embed
    positions = (torch.arange(16.0).double() + 0.5) * 37 / 16.1 - 0.5
    weights = torch.zeros(16, 37).double()
    for tap in range(-2, 40):
        weights[:, min(max(tap, 0), 36)] += cubic(positions - tap)
    square = state["pos_embed"][0, 1:].double().reshape(37, 37, WIDTH)
    expected = torch.einsum("ir,jc,rcd->ijd", weights, weights, square).reshape(256, WIDTH)
    torch.testing.assert_close(found[0, 1:].double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:, 0], state["pos_embed"][:, 0])


def test_embedding_of_the_right_size_is_taken_as_it_is() -> None:
    state = state_of(side=16)
    assert torch.equal(build_vision_transformer(state, UNUSED).pos_embed, state["pos_embed"])


@pytest.mark.parametrize("side", [8, 20, 224, 300, 512])
def test_resizing_is_pils_to_a_grey_level(side: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(2, side, side, 3), dtype=np.uint8)
    ours = resized(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    theirs = [np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)) for image in images]
    difference = np.abs(ours - np.stack(theirs).astype(np.float32))
    assert difference.max() <= 1
    assert difference.mean() < 0.02


@pytest.mark.parametrize(("width", "depth", "size"), [(384, 12, "S"), (768, 12, "B"), (1024, 24, "L")])
def test_published_sizes_are_known_by_their_weights(width: int, depth: int, size: str) -> None:
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in published_shapes(width, depth, 16)}
    network = build_vision_transformer(state, Path(size))
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert (network.width, len(network.blocks)) == (width, depth)
    assert round(millions) == {"S": 22, "B": 86, "L": 303}[size]


def test_extractor_gives_float32_features_no_logits_and_its_identity(file: Path) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    extractor = load_extractor(DINOv2(weights=str(file), weights_sha256=digest), UNUSED)
    features = extractor(IMAGES)
    assert (features.pool.shape, features.pool.dtype, features.logits.shape) == ((3, WIDTH), np.float32, (3, 0))
    assert extractor.identity.model_dump() == {
        "kind": "dinov2",
        "layer": f"class-token-{WIDTH}",
        "digest": digest,
        "resize": "pil-bicubic-224",
    }
    np.testing.assert_allclose(extractor(IMAGES[1:2]).pool, features.pool[1:2], rtol=1e-3, atol=1e-4)


def test_grey_images_are_the_same_as_three_equal_channels(file: Path) -> None:
    extractor = load_extractor(DINOv2(weights=str(file)), UNUSED)
    grey = IMAGES[:1, :, :, :1]
    np.testing.assert_array_equal(extractor(grey).pool, extractor(grey.repeat(3, axis=3)).pool)


def test_scores_carry_its_name_and_inceptions_is_null(file: Path) -> None:
    extractor = load_extractor(DINOv2(weights=str(file)), UNUSED)
    features = extractor(IMAGES)
    found = score(extractor.identity, FeatureSet.of(features, 3), feature_statistics(features.pool))
    assert found["fd_dinov2"].value == pytest.approx(0, abs=1e-3)
    assert found["inception_score_dinov2_mean"] == (None, "this extractor gives no class probabilities")


def without(state: State, name: str) -> State:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.zeros(2)}, "cls_token"),
        (without(state_of(), "pos_embed"), "pos_embed"),
        (without(state_of(), "blocks.1.ls2.gamma"), "Missing key.*blocks.1.ls2.gamma"),
        (state_of() | {"register_tokens": torch.zeros(1, 4, WIDTH)}, "Unexpected key.*register_tokens"),
        (state_of() | {"blocks.0.mlp.w12.weight": torch.zeros(1)}, "Unexpected key.*w12"),
        (state_of() | {"pos_embed": torch.zeros(1, 1370 - 1, WIDTH)}, r"pos_embed is \[1, 1369, 128\], expected"),
        (state_of() | {"pos_embed": torch.zeros(1, 257, WIDTH + 1)}, "size mismatch for pos_embed"),
        (state_of() | {"patch_embed.proj.weight": torch.zeros(WIDTH, 3, 16, 16)}, "size mismatch for patch_embed"),
        (state_of(width=100), "100 features are not heads of 64"),
    ],
    ids=["another", "no positions", "no scale", "registers", "giant", "no square", "width", "patches", "heads"],
)
def test_weights_of_another_network_are_refused(state: State, message: str) -> None:
    with pytest.raises(EvaluationError, match=rf"a.pth: not the weights of DINOv2's ViT-S/14, B/14 or L/14.*{message}"):
        build_vision_transformer(state, Path("a.pth"))


def test_wrong_digest_is_refused_before_the_file_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"whatever")
    with pytest.raises(EvaluationError, match=f"sha256 {hashlib.sha256(b'whatever').hexdigest()}, expected 00"):
        load_extractor(DINOv2(weights=str(path), weights_sha256="0" * 64), UNUSED)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        EvaluationError, match=r"none.pth: weights cannot be read \(No such file.*set evaluate.extractor"
    ):
        load_extractor(DINOv2(weights=str(tmp_path / "none.pth")), UNUSED)


def test_a_file_must_be_named() -> None:
    with pytest.raises(ValidationError, match="weights\n  Field required"):
        DINOv2.model_validate({})


@pytest.mark.skipif("DIFFUSION_DINOV2_WEIGHTS" not in os.environ, reason="names a published weights file to try")
def test_real_weights_tell_noise_from_images() -> None:
    extractor = load_extractor(DINOv2(weights=os.environ["DIFFUSION_DINOV2_WEIGHTS"]), UNUSED)
    smooth = np.kron(IMAGES[:, :4, :4], np.ones((1, 8, 8, 1), dtype=np.uint8))
    one, mirrored, noise = (extractor(images).pool for images in (smooth, smooth[:, :, ::-1], IMAGES))
    assert np.linalg.norm(one - mirrored, axis=1).mean() < np.linalg.norm(one - noise, axis=1).mean()
