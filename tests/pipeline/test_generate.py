"""`python -m pipeline generate`, as a person gives it: pictures from a run's folder and from the registry."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from model import (
    DDIM,
    NO_GUIDANCE,
    RK45,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DDPMUNet,
    Eps,
    Execution,
    ModelSpec,
    NoisyClassifier,
    RePaint,
    Simple,
    TrainedModel,
    VPCosine,
    denoising_loss,
    generate,
    image_to_image,
    inpaint,
    interpolate_seeds,
    reconstruct,
)
from pipeline.__main__ import main
from pipeline.errors import ConfigError
from pipeline.models.model_files import _files_in
from pipeline.models.stored_model import load_stored
from pipeline.registration.gate import Gate
from pipeline.registration.model_package import ModelPackage
from pipeline.registration.registry import register
from pipeline.tracking.tracked_run import TrackedRun, open_run

NETWORK = DDPMUNet(base_channels=16, channel_multipliers=(1, 2), blocks_per_level=1, attention_sizes=(), dropout=0.0)
SPEC = ModelSpec(image_size=8, channels=1, network=NETWORK, path=VPCosine())
CLASSES = SPEC.model_copy(update={"classes": 3})
CLASSIFIER = NoisyClassifier(classes=3, base_channels=8, channel_multipliers=(1, 2))
SAMPLER = DDIM(steps=5, eta=1.0, grid="uniform")
QUICK = ["inpaint.steps=6", "inpaint.jump_length=2", "inpaint.resamplings=2"]


def network_of(spec: ModelSpec) -> torch.nn.Module:
    torch.manual_seed(5)
    network = spec.build()
    for parameter in network.parameters():  # a fresh network ends in zeros, and hardly looks at its label
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3 * parameter[0].numel() ** -0.5)
    return network.eval()


def save_run(folder: Path, spec: ModelSpec, guidance: Any = NO_GUIDANCE, **changes: Any) -> Path:
    """A run's folder as the pipeline leaves it: model.json, and the weights in the stage that made them."""
    run, stage = folder / "digits-run", folder / "stages" / "train-1234"
    run.mkdir()
    stage.mkdir(parents=True)
    save_file(network_of(spec).state_dict(), stage / "model.safetensors")
    classifier = None
    if isinstance(guidance, ClassifierGuidance):
        torch.manual_seed(6)
        save_file(CLASSIFIER.build(8, 1).state_dict(), stage / "classifier.safetensors")
        classifier = "../stages/train-1234/classifier.safetensors"
    write(run, described(spec, guidance) | {"classifier": classifier} | changes)
    return run


def described(spec: ModelSpec, guidance: Any = NO_GUIDANCE) -> dict[str, Any]:
    return {
        "format": 3,
        "spec": spec.model_dump(mode="json"),
        "sampler": SAMPLER.model_dump(mode="json"),
        "guidance": guidance.model_dump(mode="json"),
        "labels_withheld": spec.classes > 0,
        "weights": "../stages/train-1234/model.safetensors",
    }


def write(run: Path, description: Any) -> None:
    (run / "model.json").write_text(json.dumps(description))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_run(tmp_path_factory.mktemp("plain"), SPEC))


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_run(tmp_path_factory.mktemp("classes"), CLASSES, ClassifierFreeGuidance(scale=2)))


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return TrainedModel(SPEC, network_of(SPEC))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def digit() -> Path:
    """An 8x8 picture in the working directory."""
    return saved("digit.png", digits(1)[0])


def digits(count: int) -> NDArray[np.uint8]:
    """Handwritten ones, uint8 [N, 8, 8, 1]."""
    grey = (load_digits().images[:count, :, :, None] * 15.9375).round()
    return np.asarray(grey, dtype=np.uint8)


def saved(name: str, image: NDArray[np.uint8]) -> Path:
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(name)
    return Path(name)


def hole(rows: slice = slice(2, 5)) -> Path:
    mask = np.zeros((8, 8, 1), dtype=np.uint8)
    mask[rows] = 255
    return saved("hole.png", mask)


def draw(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What is printed by a request that is granted."""
    code = main(["generate", *map(str, arguments)])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    code = main(["generate", *map(str, arguments)])
    error = " ".join(capsys.readouterr().err.split())
    assert code == 2, error
    assert "Traceback" not in error
    return error.removeprefix("error: ")


def cells(path: str, columns: int, rows: int = 1, headed: bool = True) -> NDArray[np.uint8]:
    """The images of a picture, each 8x8 and shrunk back to its own pixels. uint8 [rows, columns, 8, 8, 3]."""
    with Image.open(path) as picture:
        sheet = np.asarray(picture.convert("RGB"))[30 if headed else 0 :]
    height, width = sheet.shape[:2]
    gap = next(gap for gap in range(2, 99) if (width - gap) % columns == 0 and fits(width, columns, gap))
    factor = ((width - gap) // columns - gap) // 8
    found = np.zeros((rows, columns, 8, 8, 3), dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = gap + row * (8 * factor + gap), gap + column * (8 * factor + gap)
            found[row, column] = sheet[top : top + 8 * factor : factor, left : left + 8 * factor : factor]
    assert height == gap + rows * (8 * factor + gap)
    return found


def fits(width: int, columns: int, gap: int) -> bool:
    factor, rest = divmod((width - gap) // columns - gap, 8)
    return rest == 0 and factor > 0 and gap == max(2, factor * 8 // 16)


def same(shown: NDArray[np.uint8], expected: Any) -> bool:
    """But for the grey level that rounding may tip; grey is shown in three colours."""
    return bool((np.abs(shown.astype(int) - np.asarray(expected).astype(int)) <= 1).all())


# What can be drawn


def test_a_grid_holds_the_image_of_each_seed(
    capsys: pytest.CaptureFixture[str], run_folder: str, model: TrainedModel
) -> None:
    said = draw(capsys, run_folder, "--seeds", "3,7-9")
    assert same(cells("generated.png", 4, headed=False)[0], generate(model, SAMPLER, torch.tensor([3, 7, 8, 9])))
    lines = [line.strip() for line in said.splitlines()]
    assert lines[0] == "digits-run: 4 images by ddim"
    assert re.fullmatch(r"5 network evaluations each, [\d.]+ s on c\w+", lines[1])
    assert lines[2:] == ["generated.png"]


def test_without_a_wish_it_is_twenty_five_seeds(capsys: pytest.CaptureFixture[str], run_folder: str) -> None:
    assert "25 images" in draw(capsys, run_folder)
    assert cells("generated.png", 5, 5, headed=False).shape[:2] == (5, 5)


def test_overrides_are_another_sampler_and_guidance(capsys: pytest.CaptureFixture[str], of_classes: str) -> None:
    overrides = ["sampler.kind=heun", "sampler.steps=3", "guidance.scale=0.5"]
    said = draw(capsys, of_classes, *overrides, "--seeds", "0-2", "--classes", "1")
    assert "heun" in said
    assert "10 network evaluations each" in said  # 2 * 3 - 1, each with and without the label
    from model import Heun

    expected = generate(
        TrainedModel(CLASSES, network_of(CLASSES)),
        Heun(steps=3),
        torch.arange(3),
        torch.ones(3, dtype=torch.int64),
        ClassifierFreeGuidance(scale=0.5),
    )
    assert same(cells("generated.png", 3, headed=False)[0], expected)


def test_several_classes_are_a_row_each_of_the_same_seeds(capsys: pytest.CaptureFixture[str], of_classes: str) -> None:
    assert "6 images" in draw(capsys, of_classes, "--seeds", "4,5", "--classes", "0-2")
    with Image.open("generated.png") as picture:
        width, height = picture.size
    assert width > 2 * 72 + 60  # names of classes on the left
    assert height > 3 * 72


def test_guidance_by_a_classifier_loads_the_classifier(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "guided"
    folder.mkdir()
    run = save_run(folder, SPEC, ClassifierGuidance(classifier=CLASSIFIER))
    assert "2 images" in draw(capsys, run, "--seeds", "0,1", "--classes", "2")
    (folder / "stages/train-1234/classifier.safetensors").unlink()
    message = refused(capsys, run, "--overwrite")
    assert "classifier.safetensors: the classifier that" in message
    write(run, described(SPEC, ClassifierGuidance(classifier=CLASSIFIER)))
    assert "no classifier; this model was trained without" in refused(capsys, run, "--overwrite")


def test_a_strip_goes_from_noise_to_the_image(
    capsys: pytest.CaptureFixture[str], run_folder: str, model: TrainedModel
) -> None:
    draw(capsys, run_folder, "--strip", "--seeds", "2,3")
    shown = cells("denoising.png", 6, 2)
    assert same(shown[:, -1], generate(model, SAMPLER, torch.tensor([2, 3])))
    assert same(shown[:, 0], model.pictures(model.noise(torch.tensor([2, 3]), 999.0)))


def test_ends_of_an_interpolation_are_the_two_seeds(
    capsys: pytest.CaptureFixture[str], run_folder: str, model: TrainedModel
) -> None:
    draw(capsys, run_folder, "--interpolate", "3", "11", "--frames", "5")
    shown = cells("interpolation.png", 5)[0]
    assert same(shown[[0, -1]], generate(model, SAMPLER, torch.tensor([3, 11])))
    assert same(shown, interpolate_seeds(model, SAMPLER, 3, 11, torch.linspace(0, 1, 5, dtype=torch.float64)))


def test_images_are_interpolated_between_their_inversions(
    capsys: pytest.CaptureFixture[str], run_folder: str, model: TrainedModel
) -> None:
    one, other = digits(2)
    said = draw(capsys, run_folder, "--interpolate", saved("a.png", one), saved("b.png", other), "--frames", "3")
    assert "rk45, as ddim does not lead back to the noise" in said
    shown = cells("interpolation.png", 5)[0]
    assert same(shown[[0, -1]], np.stack([one, other]))
    assert same(shown[[1, 3]], reconstruct(model, RK45(), torch.tensor(digits(2))))


def test_many_frames_are_a_grid(capsys: pytest.CaptureFixture[str], run_folder: str) -> None:
    assert "23 images" in draw(capsys, run_folder, "--interpolate", "0", "1", "--frames", "23")
    assert cells("interpolation.png", 10, 3, headed=False).shape[:2] == (3, 10)


def test_reconstructions_stand_beside_the_originals(
    capsys: pytest.CaptureFixture[str], run_folder: str, model: TrainedModel
) -> None:
    files = [saved(f"{number}.png", image) for number, image in enumerate(digits(10))]
    said = draw(capsys, run_folder, "sampler={kind: ddim, steps: 20}", "--reconstruct", *files)
    shown = cells("reconstruction.png", 4, 5)
    order = [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]
    assert same(shown[:, ::2].reshape(10, 8, 8, 3), digits(10)[order])
    expected = reconstruct(model, DDIM(steps=20), torch.tensor(digits(10)))
    assert same(shown[:, 1::2].reshape(10, 8, 8, 3), np.asarray(expected)[order])
    off = ((expected.float() - torch.tensor(digits(10))) / 127.5).square().mean()
    assert f"mean squared error {off:.2g} in [-1, 1]" in said


def test_a_sampler_that_was_asked_for_and_has_no_way_back_is_refused(
    capsys: pytest.CaptureFixture[str], run_folder: str, digit: Path
) -> None:
    message = refused(capsys, run_folder, "sampler.kind=heun", "--reconstruct", digit)
    assert message == "sampler: heun cannot be walked backwards; use rk45, or ddim with eta 0"


def test_inpainting_leaves_the_known_pixels_exact(
    capsys: pytest.CaptureFixture[str], run_folder: str, model: TrainedModel, digit: Path
) -> None:
    said = draw(capsys, run_folder, *QUICK, "--inpaint", digit, "--mask", hole(), "--seeds", "4,9")
    assert "2 images by RePaint" in said
    shown, known = cells("inpainted.png", 4)[0], np.ones((8, 8), dtype=bool)
    known[2:5] = False
    assert (shown[:, known] == digits(1)[0][known]).all()
    assert same(shown[0], digits(1)[0])
    assert (shown[1][~known] == (217, 130, 43)).all()
    mask = torch.tensor(~known)
    settings = RePaint(steps=6, jump_length=2, resamplings=2)
    expected = inpaint(model, settings, torch.tensor(digits(1)).expand(2, 8, 8, 1), mask, torch.tensor([4, 9]))
    assert same(shown[2:], expected)


def test_image_to_image_starts_from_the_strength(
    capsys: pytest.CaptureFixture[str], run_folder: str, model: TrainedModel, digit: Path
) -> None:
    said = draw(capsys, run_folder, "--image", digit, "--strength", "0.6", "--seeds", "0-9")
    assert "3 network evaluations each" in said
    assert "strength 0.6" in said
    shown = cells("image-to-image.png", 9, 2)
    images = torch.tensor(digits(1)).expand(10, 8, 8, 1)
    expected = np.asarray(image_to_image(model, SAMPLER, images, 0.6, torch.arange(10)))
    assert same(shown[:, 0], digits(1))
    assert same(shown[:, 1:].reshape(16, 8, 8, 3)[:10], expected)


@pytest.mark.parametrize("size", [(31, 17), (200, 300), (1, 1)], ids=str)
def test_images_of_any_size_and_colour_are_cut_to_a_square_and_resized(
    capsys: pytest.CaptureFixture[str], run_folder: str, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    draw(capsys, run_folder, "--image", "photo.jpg", "--strength", "0.3", "--seeds", "1")
    from pipeline.data.image_files import load_file

    assert same(cells("image-to-image.png", 2)[0, 0], load_file(Path("photo.jpg"), 8, 1, "center_crop"))


def test_a_model_draws_in_the_arithmetic_that_it_was_scored_in(tmp_path: Path) -> None:
    run = save_run(tmp_path, SPEC, precision="bf16")
    network: Any = load_stored(str(run), [], None, "cpu").model.network
    assert network.execution == Execution(precision="bf16")


# Models from the registry


@pytest.fixture(scope="module")
def version(uri: str, tmp_path_factory: pytest.TempPathFactory, model: TrainedModel) -> tuple[str, str]:
    """A registered model's name, and the store that it is in."""
    folder = tmp_path_factory.mktemp("version")
    run: TrackedRun = open_run(uri, "digits", "night", folder / "run", {}, {})
    description = described(SPEC)
    del description["weights"]  # it lies beside the description there
    write(folder, description)
    save_file(model.network.state_dict(), folder / "model.safetensors")
    (folder / "config.yaml").write_text("name: digits\n")
    package = ModelPackage(
        run_key="first",
        weights=folder / "model.safetensors",
        description=folder / "model.json",
        config=folder / "config.yaml",
        protocol={"images": 360},
        protocol_digest="p" * 64,
        scores={"fid": 3.0},
        primary_score="fid",
        data_digest="d" * 64,
        trained_images=1,
    )
    register(run, package, "drawn", Gate())
    return "drawn", uri


@pytest.mark.parametrize("place", ["@champion", "/1"])
def test_a_registered_version_draws_what_its_run_draws(
    capsys: pytest.CaptureFixture[str], version: tuple[str, str], model: TrainedModel, place: str
) -> None:
    name, uri = version
    said = draw(capsys, f"models:/{name}{place}", "sampler.steps=4", "--tracking-uri", uri, "--seeds", "0-2")
    assert f"models:/{name}{place}: 3 images by ddim" in said
    expected = generate(model, SAMPLER.model_copy(update={"steps": 4}), torch.arange(3))
    assert same(cells("generated.png", 3, headed=False)[0], expected)


def test_a_version_that_is_not_there_is_reported(capsys: pytest.CaptureFixture[str], version: tuple[str, str]) -> None:
    name, uri = version
    for place in ("@nobody", "/7"):
        assert main(["generate", f"models:/{name}{place}", "--tracking-uri", uri]) == 1
        assert f"cannot download models:/{name}{place}: " in " ".join(capsys.readouterr().err.split())


OUTSIDE = "flavors: {python_function: {artifacts: {description: {path: ../a.json}, weights: {path: a.safetensors}}}}"


@pytest.mark.parametrize(
    "listed",
    [None, "flavors: {sklearn: {}}", "flavors: {python_function: {artifacts: null}}", "a: [", "[" * 5_000, OUTSIDE],
)
def test_a_version_of_another_kind_is_refused(tmp_path: Path, listed: str | None) -> None:
    if listed is not None:
        (tmp_path / "MLmodel").write_text(listed)
    with pytest.raises(ConfigError, match="models:/x/1: no model of this pipeline, which would list its description"):
        _files_in(tmp_path, "models:/x/1")


def test_a_name_without_alias_or_version_is_refused(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    message = refused(capsys, "models:/drawn", "--tracking-uri", uri)
    assert message.startswith("models:/drawn: expected models:/NAME@ALIAS, such as models:/ddpm-digits@champion")


def test_a_store_that_is_not_there_is_not_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    message = refused(capsys, "models:/drawn@champion")
    assert re.search(r"there is no MLflow store .*outputs/mlflow.db; give its address by --tracking-uri", message)
    assert not list(tmp_path.iterdir())


# Models that cannot be used


def test_a_folder_that_is_no_runs_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert f"{tmp_path}: has no model.json; give the folder of a trained run" in refused(capsys, tmp_path)
    assert "nowhere: no such folder; give the folder of a trained run" in refused(capsys, "nowhere")


@pytest.mark.parametrize("found", [0, 4, None, "3"])
def test_another_format_is_refused_with_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, found: Any
) -> None:
    run = save_run(tmp_path, SPEC, format=found)
    message = refused(capsys, run)
    assert (
        f"model.json: format {found}, this version reads 1, 2, 3; run the pipeline again with this version" in message
    )


@pytest.mark.parametrize("text", ["", "[3]", '{"format": 3'])
def test_a_damaged_description_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
    run = save_run(tmp_path, SPEC)
    (run / "model.json").write_text(text)
    assert "model.json: not a model's description" in refused(capsys, run)


def test_weights_that_are_gone_damaged_or_of_another_model_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = save_run(tmp_path, SPEC)
    weights = tmp_path / "stages/train-1234/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:1000])
    assert "model.safetensors: not a whole safetensors file" in refused(capsys, run)
    weights.unlink()
    assert "model.safetensors: the weights that" in refused(capsys, run)
    save_file(network_of(CLASSES).state_dict(), weights)
    message = refused(capsys, run)
    assert re.search(r"model.safetensors: \S+ is \[\d+, \d+\], where the network .* has none; these are the", message)


def test_mistakes_in_overrides_are_explained_as_in_a_run_file(
    capsys: pytest.CaptureFixture[str], run_folder: str
) -> None:
    message = refused(capsys, run_folder, "sampler.stepz=3", "sampler.eta=2", "guidance.kind=classifierfree")
    assert "3 mistakes" in message
    assert "sampler.stepz: unknown key; did you mean steps?" in message
    assert "sampler.eta: found 2, expected" in message
    assert "did you mean classifier_free?" in message


def test_what_was_trained_cannot_be_overridden(capsys: pytest.CaptureFixture[str], run_folder: str) -> None:
    message = refused(capsys, run_folder, "spec.classes=3")
    assert message.startswith("spec.classes=3: 'spec' is none of sampler, guidance, inpaint; everything else is as")


def test_parts_that_do_not_fit_the_model_are_refused(
    capsys: pytest.CaptureFixture[str], run_folder: str, digit: Path
) -> None:
    assert "sampler: a path of T = 1000 steps has no grid of 2000" in refused(capsys, run_folder, "sampler.steps=2000")
    message = refused(capsys, run_folder, "guidance.kind=classifier_free")
    assert message == "guidance: classifier_free follows the class of an image, and this model is told of none"
    message = refused(capsys, run_folder, "inpaint.steps=2000", "--inpaint", digit, "--mask", hole())
    assert message.startswith("inpaint: a path of T = 1000 steps has no grid of 2000")
    for section in ("inpaint", "sampler"):
        kind = ["sampler.kind=ancestral"] if section == "sampler" else []
        message = refused(capsys, run_folder, *kind, f"{section}.variance=learned")
        assert message == f"{section}.variance: learned, but this model has none; use fixed_small or fixed_large"


def test_guidance_away_from_what_was_never_trained_is_refused(
    capsys: pytest.CaptureFixture[str], of_classes: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(of_classes, run)
    description = json.loads((run / "model.json").read_text())
    weights = (Path(of_classes) / description["weights"]).resolve()
    write(run, description | {"labels_withheld": False, "weights": str(weights)})
    message = refused(capsys, str(run), "guidance.kind=classifier_free")
    assert "this model was trained with conditioning.dropout 0; use none, or train it again" in message


def test_a_gpu_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], run_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused(capsys, run_folder, "--device", "cuda") == "--device cuda: torch finds no GPU here; use cpu, or auto"


# Requests that are not granted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0-1024"], "--seeds: 1,025 of them, expected at most 1,024; ask in several requests"),
        (["--seeds", "0-9999999999999"], "--seeds: 10,000,000,000,000 of them, expected at most"),
        (["--seeds", str(2**63)], "--seeds: found 9223372036854775808, expected numbers that rise, below 2^63"),
        (["--seeds", "5-3"], "--seeds: found 5-3, expected numbers that rise"),
        (["--seeds=-1"], "--seeds: found '-1', expected whole numbers such as 0-24 or 3,7,9"),
        (["--seeds", "1,,2"], "--seeds: found '1,,2', expected whole numbers"),
        (["--seeds", "9" * 5000], "--seeds: found '999"),
        (["--frames", "3"], "--frames goes with --interpolate; give both, or neither"),
        (["--strength", "0.5"], "--strength goes with --image; give both, or neither"),
        (["--mask", "hole.png"], "--mask goes with --inpaint; give both, or neither"),
        (["--interpolate", "0", "1", "--seeds", "0"], "--seeds: --interpolate draws no noise of its own"),
        (["--interpolate", "0", "1", "--frames", "1"], "--frames 1: expected 2 to 256"),
        (["--interpolate", "0", "1", "--frames", "257"], "--frames 257: expected 2 to 256"),
        (["--interpolate", "0", "digit.png"], "--interpolate 0 digit.png: one is a seed and one a file"),
        (["--interpolate", "0", str(2**63)], "--interpolate: found 9223372036854775808, expected"),
        (["--image", "digit.png", "--strength", "0"], "--strength 0: expected more than 0 and at most 1"),
        (["--image", "digit.png", "--strength", "1.5"], "--strength 1.5: expected more than 0 and at most 1"),
        (["--image", "digit.png", "--strength", "nan"], "--strength nan: expected more than 0 and at most 1"),
        (["--image", "none.png"], "none.png: no such file; give a PNG or JPEG"),
        (["--image", "text.png"], "text.png: not a readable image"),
        (["--inpaint", "digit.png"], "--inpaint needs --mask, a picture of the image's size"),
        (["--reconstruct", *["digit.png"] * 65], "--reconstruct: 65 images, expected at most 64"),
        (["--strip", "--seeds", "0-32"], "--strip: 33 seeds, expected at most 32"),
        (["--classes", "1"], "--classes: this model knows no classes; leave it out"),
        (["--into", "picture.jpg"], "--into picture.jpg: the picture is a PNG"),
        (["--into", "nowhere/picture.png"], "--into nowhere/picture.png: no such folder nowhere"),
        (["--into", "digit.png"], "digit.png exists; give --into another name, or --overwrite"),
        (
            ["sampler={kind: predictor_corrector, corrector_steps: 9}", "--seeds", "0-999"],
            "1,000 images of 5,000 network evaluations each are 5,000,000, expected at most 2,000,000",
        ),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_request_beyond_its_limits_is_refused(
    capsys: pytest.CaptureFixture[str],
    run_folder: str,
    digit: Path,
    arguments: list[str],
    message: str,
) -> None:
    Path("text.png").write_text("no picture")
    found = refused(capsys, run_folder, *arguments)
    assert found.startswith(message)
    assert set(Path().iterdir()) == {digit, Path("text.png")}


def test_labels_of_a_model_of_classes(capsys: pytest.CaptureFixture[str], of_classes: str, digit: Path) -> None:
    assert refused(capsys, of_classes, "--classes", "3") == "--classes: found 3, expected 0 to 2"
    message = refused(capsys, of_classes, "--image", digit)
    assert message == "--image: this model is told the class of an image; give it by --classes"
    message = refused(capsys, of_classes, "--strip", "--classes", "0,1")
    assert message == "--classes: 2 of them, expected one"
    message = refused(capsys, of_classes, "--reconstruct", digit, digit, digit, "--classes", "0,1")
    assert message == "--classes: 2 of them, expected one for all, or one for each image"
    message = refused(capsys, of_classes, "--interpolate", "0", "1")
    assert message.startswith("--interpolate: seeds 0 and 1 are of classes 0 and 1, and nothing is between two classes")
    message = refused(capsys, of_classes, "--seeds", "0-599", "--classes", "0-2")
    assert message.startswith("600 seeds of 3 classes are 1,800 images, expected at most 1,024")
    assert "2 images" in draw(capsys, of_classes, "--reconstruct", digit, digit, "--classes", "0,1")
    assert "3 images" in draw(capsys, of_classes, "--interpolate", "0", "1", "--classes", "1", "--frames", "3")


def test_pictures_that_would_unpack_to_too_much_are_refused_unread(
    capsys: pytest.CaptureFixture[str], run_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side in (8_000, 10_000, 20_000):  # of the last PIL itself says that it is a bomb
        Image.new("1", (side, side)).save("bomb.png")
        message = refused(capsys, run_folder, "--image", "bomb.png")
        assert re.fullmatch(r"bomb.png: .* pixels, expected at most 50,000,000; make it smaller", message)
    monkeypatch.setattr("pipeline.models.request.MAX_FILE_BYTES", 100)
    message = refused(capsys, run_folder, "--image", "bomb.png")
    assert re.fullmatch(r"bomb.png: [\d,]+ bytes, expected at most 100; make it smaller", message)


def test_a_cut_off_image_is_refused(capsys: pytest.CaptureFixture[str], run_folder: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 1), dtype=np.uint8)
    file = saved("cut.png", pixels)
    file.write_bytes(file.read_bytes()[:1000])
    assert refused(capsys, run_folder, "--image", file).startswith("cut.png: not a readable image")


def test_masks_that_say_nothing_or_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], run_folder: str, digit: Path
) -> None:
    message = refused(capsys, run_folder, "--inpaint", digit, "--mask", hole(slice(0, 0)))
    assert message == "--mask hole.png: no pixel is white, so there is nothing to fill"
    saved("wide.png", np.zeros((8, 20, 1), dtype=np.uint8))
    message = refused(capsys, run_folder, "--inpaint", digit, "--mask", "wide.png")
    assert message == "--mask wide.png: 20x8 pixels, expected those of the image, 8x8, or of the model, 8x8"


def test_an_adaptive_sampler_is_stopped_at_the_limit(
    capsys: pytest.CaptureFixture[str], run_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.models.generate.MAX_EVALUATIONS", 50)
    message = refused(capsys, run_folder, "sampler.kind=rk45", "--seeds", "0-3")
    assert message.startswith("stopped after 50 network evaluations; ask for fewer images, or loosen the tolerances")


def test_a_picture_larger_than_the_limit_is_refused(
    capsys: pytest.CaptureFixture[str], run_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.models.generate.MAX_PICTURE_PIXELS", 10_000)
    message = refused(capsys, run_folder)
    assert message == "a picture of 25 images of 8 pixels would be larger than 10,000 pixels; ask for fewer"


def test_images_that_are_not_finite_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = save_run(tmp_path, SPEC)
    weights = {name: each * float("nan") for name, each in network_of(SPEC).state_dict().items()}
    save_file(weights, tmp_path / "stages/train-1234/model.safetensors")
    message = refused(capsys, run, "--seeds", "0")
    assert message.startswith("images are not finite: NaN has no grey level; try sampler.clip=x0_and_eps")


def test_a_picture_is_replaced_only_when_told(capsys: pytest.CaptureFixture[str], run_folder: str) -> None:
    draw(capsys, run_folder, "--seeds", "0", "--into", "mine.png")
    before = Path("mine.png").read_bytes()
    message = refused(capsys, run_folder, "--seeds", "1", "--into", "mine.png")
    assert message == "mine.png exists; give --into another name, or --overwrite"
    assert Path("mine.png").read_bytes() == before
    draw(capsys, run_folder, "--seeds", "1", "--into", "mine.png", "--overwrite")
    assert Path("mine.png").read_bytes() != before


def test_a_disk_that_refuses_the_picture_is_no_traceback(
    capsys: pytest.CaptureFixture[str], run_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(["generate", run_folder, "--seeds", "0"]) == 1
    assert "No space left on device; the picture was not written" in " ".join(capsys.readouterr().err.split())


def test_ray_is_not_needed(run_folder: str, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = f"""
import sys
from pipeline.__main__ import main
assert main(["generate", {run_folder!r}, "--seeds", "0"]) == 0
assert "ray" not in sys.modules and "mlflow" not in sys.modules
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={"PYTHONPATH": str(root)})


# What only a trained network can show


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a network that has seen digits for some seconds."""
    torch.manual_seed(0)
    network, images = SPEC.build(), torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
    optimizer, steps, batch = torch.optim.Adam(network.parameters()), 200, 48
    for step in range(steps):
        x0, t = images[torch.randint(len(images), (batch,))], torch.randint(1000, (batch,)).double()
        loss = denoising_loss(network, SPEC.path, Eps(), Simple(), x0, t, torch.randn_like(x0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        optimizer.step()
    assert loss < 0.35  # 1 for a network that predicts nothing
    folder = tmp_path_factory.mktemp("trained")
    run = save_run(folder, SPEC)
    save_file(network.state_dict(), folder / "stages/train-1234/model.safetensors")
    return run


def test_digits_inverted_and_sampled_by_rk45_come_back(capsys: pytest.CaptureFixture[str], trained: Path) -> None:
    """To 1e-2 of mean squared error in [-1, 1], each of them."""
    files = [saved(f"{number}.png", image) for number, image in enumerate(digits(6))]
    said = draw(capsys, trained, "sampler.kind=rk45", "--reconstruct", *files)
    match = re.search(r"mean squared error (\S+) in \[-1, 1\], (\S+) at worst", said)
    assert match is not None
    assert float(match[1]) <= float(match[2]) < 1e-2
    shown = cells("reconstruction.png", 2, 6)
    pairs = shown[:, ::2].astype(float) - shown[:, 1::2]
    assert ((pairs / 127.5) ** 2).mean((2, 3, 4)).max() < 1e-2


def test_with_another_start_the_digits_do_not_come_back(trained: Path) -> None:
    """That they come back is the noise's doing: from any other noise there are other digits."""
    stored = load_stored(str(trained), ["sampler.kind=rk45"], None, "cpu")
    others = generate(stored.model, stored.sampler, torch.arange(6))
    assert ((others.numpy().astype(float) - digits(6)) / 127.5).__pow__(2).mean() > 0.1
