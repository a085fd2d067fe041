"""The registered model as its user meets it: in a folder of its own, without this repository."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import requests
import torch
from PIL import Image
from safetensors.torch import save_file

from model import DDIM, NO_GUIDANCE, RK45, ClassifierFreeGuidance, DDPMUNet, ModelSpec, TrainedModel, VPLinear, generate
from pipeline.registration.model_package import ModelPackage, write_model

from .waiting import wait_until

SPEC = ModelSpec(
    image_size=8,
    channels=1,
    network=DDPMUNet(base_channels=32, channel_multipliers=(1,), blocks_per_level=1, attention_sizes=()),
    path=VPLinear(),
)
CLASSES = SPEC.model_copy(update={"classes": 3})
SAMPLER = DDIM(steps=3)
GUIDANCE = ClassifierFreeGuidance(scale=2)

# Said by MLflow's own modules while they are imported, about their own type hints.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(7)
    return SPEC.build()


@pytest.fixture(scope="module")
def network_of_classes() -> torch.nn.Module:
    torch.manual_seed(7)
    network = CLASSES.build()
    for parameter in network.parameters():  # a fresh network hardly looks at its label
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, network: torch.nn.Module) -> Path:
    """The folder that is uploaded for a model version."""
    return save(tmp_path_factory.mktemp("package"), SPEC, network)


@pytest.fixture(scope="module")
def served_with_classes(tmp_path_factory: pytest.TempPathFactory, network_of_classes: torch.nn.Module) -> Any:
    import mlflow

    return mlflow.pyfunc.load_model(str(save(tmp_path_factory.mktemp("classes"), CLASSES, network_of_classes)))


def save(folder: Path, spec: ModelSpec, network: torch.nn.Module) -> Path:
    save_file(network.state_dict(), folder / "weights.safetensors")
    described = {
        "format": 3,
        "spec": spec.model_dump(mode="json"),
        "sampler": SAMPLER.model_dump(mode="json"),
        "guidance": (GUIDANCE if spec.classes else NO_GUIDANCE).model_dump(mode="json"),
        "precision": "fp32",
    }
    (folder / "model.json").write_text(json.dumps(described))
    (folder / "config.yaml").write_text("name: digits\n")
    (folder / "grid.png").write_bytes(b"png")
    (folder / "page.html").write_text("<p>a run</p>")
    package = ModelPackage(
        run_key="key",
        weights=folder / "weights.safetensors",
        description=folder / "model.json",
        config=folder / "config.yaml",
        protocol={"images": 360},
        protocol_digest="p" * 64,
        scores={"fid": 3.0},
        primary_score="fid",
        data_digest="d" * 64,
        trained_images=1000,
        pictures=(folder / "grid.png",),
        report=folder / "page.html",
    )
    write_model(folder / "model", package, run_id="r" * 32, model_id="m-1")
    return folder / "model"


@pytest.fixture(scope="module")
def served(saved: Path) -> Any:
    import mlflow

    return mlflow.pyfunc.load_model(str(saved))


@pytest.fixture
def load_package() -> Iterator[Callable[[Path], ModuleType]]:
    from pipeline.registration import served_model

    before = set(sys.modules)
    yield served_model.load_package
    for name in set(sys.modules) - before:
        if name.startswith("_diffusion_model_"):
            del sys.modules[name]


def test_it_makes_the_images_that_the_pipeline_makes(served: Any, network: torch.nn.Module) -> None:
    images = served.predict({"seed": [3, 1_000_000_007]})
    assert images.dtype == numpy.uint8
    assert images.shape == (2, 8, 8, 1)
    assert torch.equal(
        torch.from_numpy(images), generate(TrainedModel(SPEC, network), SAMPLER, torch.tensor([3, 1_000_000_007]))
    )


def test_a_model_of_classes_draws_the_asked_ones_guided_or_each_in_turn(
    served_with_classes: Any, network_of_classes: torch.nn.Module
) -> None:
    seeds = torch.tensor([3, 4, 5])

    def expected(label: list[int]) -> torch.Tensor:
        return generate(TrainedModel(CLASSES, network_of_classes), SAMPLER, seeds, torch.tensor(label), GUIDANCE)

    asked = served_with_classes.predict({"seed": [3, 4, 5], "label": [2, 2, 0]})
    assert torch.equal(torch.from_numpy(asked), expected([2, 2, 0]))
    in_turn = served_with_classes.predict({"seed": [3, 4, 5]})
    assert torch.equal(torch.from_numpy(in_turn), expected([0, 1, 2]))
    assert not numpy.array_equal(asked, in_turn)


def test_steps_and_guidance_are_asked_for(served_with_classes: Any, network_of_classes: torch.nn.Module) -> None:
    question = {"seed": [3, 4], "label": [2, 0]}
    asked = served_with_classes.predict(question, params={"steps": 5, "guidance_scale": 0.5})
    model, labels = TrainedModel(CLASSES, network_of_classes), torch.tensor([2, 0])
    expected = generate(model, DDIM(steps=5), torch.tensor([3, 4]), labels, ClassifierFreeGuidance(scale=0.5))
    assert torch.equal(torch.from_numpy(asked), expected)
    assert not numpy.array_equal(asked, served_with_classes.predict(question))


def test_png_files_come_in_base64(served: Any) -> None:
    files = served.predict({"seed": [3, 4]}, params={"format": "png"})
    with Image.open(io.BytesIO(base64.b64decode(files[1]))) as image:
        assert image.format == "PNG"
        assert numpy.array_equal(numpy.asarray(image), served.predict({"seed": [4]})[0, :, :, 0])


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"steps": 10**9}, "steps: found 1000000000, expected 1 to 1000"),
        ({"steps": -3}, "steps: found -3, expected 1 to 1000"),
        ({"steps": "many"}, "Failed to validate type and shape for 'steps'"),
        ({"guidance_scale": 2.0}, "guidance_scale: this model is not guided; leave it out"),
        ({"guidance_scale": -7.0}, "guidance_scale: found -7, expected 0 to 100"),
        ({"guidance_scale": float("nan")}, "guidance_scale: found nan, expected 0 to 100"),
        ({"format": "gif"}, "format: found 'gif', expected array or png"),
    ],
)
def test_absurd_parameters_are_refused(served: Any, params: dict[str, Any], says: str) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=says):
        served.predict({"seed": [1]}, params=params)


@pytest.mark.parametrize(
    ("sampler", "steps", "says"),
    [
        (RK45(), 5, "steps: this model's sampler rk45 chooses its own"),
        (DDIM(steps=3), 1000, "steps: "),
    ],
)
def test_steps_that_the_sampler_cannot_take_are_refused(
    served: Any, sampler: Any, steps: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    model = served.unwrap_python_model()
    package = sys.modules[model._spec.__module__.partition(".")[0]]
    monkeypatch.setattr(model, "_sampler", getattr(package, type(sampler).__name__)(**sampler.model_dump()))
    monkeypatch.setattr(model, "_spec", model._spec.model_copy(update={"path": package.VPLinear(T=100)}))
    with pytest.raises(MlflowException, match=says):
        served.predict({"seed": [1]}, params={"steps": steps})


@pytest.mark.slow
def test_it_answers_over_http(saved: Path, served: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["mlflow", "models", "serve", "-m", str(saved), "--env-manager", "local", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(f"{url}/ping"), 300)
        body = {"inputs": {"seed": [3, 4]}, "params": {"steps": 2, "format": "png"}}
        answer = requests.post(f"{url}/invocations", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        with Image.open(io.BytesIO(base64.b64decode(answer.json()["predictions"][0]))) as image:
            expected = served.predict({"seed": [3]}, params={"steps": 2})
            assert numpy.array_equal(numpy.asarray(image), expected[0, :, :, 0])
        body["params"] = {"steps": 10**9}
        absurd = requests.post(f"{url}/invocations", json=body, timeout=60)
        assert absurd.status_code == 400
        assert "steps: found 1000000000, expected 1 to 1000" in absurd.text
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == 200
    except requests.RequestException:
        return False


def test_labels_that_there_are_not_are_refused(served: Any, served_with_classes: Any) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="label: found 3 to 3, expected 0 to 2"):
        served_with_classes.predict({"seed": [1], "label": [3]})
    with pytest.raises(MlflowException, match="label: this model knows no classes; leave it out"):
        served.predict({"seed": [1], "label": [0]})


def test_more_seeds_than_one_chunk_come_back_in_order(served: Any) -> None:
    images = served.predict({"seed": list(range(70))})
    assert images.shape == (70, 8, 8, 1)
    assert numpy.array_equal(images[64:], served.predict({"seed": list(range(64, 70))}))


def test_a_table_a_mapping_and_rows_ask_for_the_same(served: Any) -> None:
    import pandas  # type: ignore[import-untyped]  # its stubs are not installed

    asked = [pandas.DataFrame({"seed": [1, 2]}), {"seed": [1, 2]}, [{"seed": 1}, {"seed": 2}]]
    first, *others = [served.predict(question) for question in asked]
    assert all(numpy.array_equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ({"sed": [1]}, r"missing inputs \['seed'\]"),
        ({"seed": [1.5]}, "Can not safely convert float64 to int64"),
        ({"seed": [1, -2]}, r"seed: found -2 to 1, expected 0 to 2\^63 - 1"),
        ({"seed": list(range(4097))}, "4097 rows, expected 1 to 4096"),
        ({"seed": []}, "0 rows, expected 1 to 4096|safely convert"),
    ],
)
def test_a_wrong_request_is_told_why(served: Any, question: dict[str, Any], says: str) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=says):
        served.predict(question)


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ({"sed": [1]}, r"no column 'seed', found \['sed'\]"),
        ({"seed": [1.5]}, "seed: found float64, expected integers"),
        ({"seed": [2**64]}, "seed: found object, expected integers"),
        ({"seed": [2**63]}, r"expected 0 to 2\^63 - 1"),
    ],
)
def test_a_wrong_request_is_told_why_without_mlflows_schema(served: Any, question: dict[str, Any], says: str) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=says):
        served.unwrap_python_model().predict(None, question)


def test_a_column_that_is_there_twice_is_refused(served: Any) -> None:
    import pandas
    from mlflow.exceptions import MlflowException

    question = pandas.DataFrame([[1, 2]], columns=["seed", "seed"])
    with pytest.raises(MlflowException, match="column 'seed' is there twice; give it once"):
        served.unwrap_python_model().predict(None, question)


def test_loading_leaves_the_callers_random_numbers_alone(saved: Path) -> None:
    import mlflow

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    mlflow.pyfunc.load_model(str(saved))
    assert torch.equal(torch.rand(3), expected)


def test_the_code_that_runs_is_the_models_own_copy(served: Any, saved: Path) -> None:
    code = sys.modules[served.unwrap_python_model()._spec.__module__].__file__
    assert Path(str(code)).is_relative_to(saved)


def test_two_versions_of_the_code_live_in_one_process(
    load_package: Callable[[Path], ModuleType], tmp_path: Path
) -> None:
    for name, text in (("old", "ANSWER = 1\n"), ("new", "ANSWER = 2\n"), ("same", "ANSWER = 1\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("from .part import ANSWER\n")
        (tmp_path / name / "part.py").write_text(text)
    old, new, same = (load_package(tmp_path / name) for name in ("old", "new", "same"))
    assert (old.ANSWER, new.ANSWER) == (1, 2)
    assert same is old


def test_a_copy_that_fails_to_import_leaves_nothing_behind(
    load_package: Callable[[Path], ModuleType], tmp_path: Path
) -> None:
    (tmp_path / "__init__.py").write_text("import a_module_that_nobody_has\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
            load_package(tmp_path)


def test_the_version_holds_code_weights_and_evidence_and_no_pickle(saved: Path) -> None:
    files = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert {
        "served_model.py",
        "config.yaml",
        "scores.json",
        "pictures/grid.png",
        "input_example.json",
        "card.md",
        "code.json",
        "environment.txt",
        "report.html",
    } <= files
    assert {f"artifacts/{name}" for name in ("weights.safetensors", "model.json", "model/spec.py")} <= files
    assert {Path(name).suffix for name in files} <= {
        ".py",
        ".json",
        ".yaml",
        ".txt",
        ".png",
        ".safetensors",
        ".md",
        ".html",
        ".diff",
        "",
    }
    assert json.loads((saved / "scores.json").read_text())["scores"] == {"fid": 3.0}


def test_the_requirements_are_few_and_pinned(saved: Path) -> None:
    names = [line.partition("==")[0] for line in (saved / "requirements.txt").read_text().splitlines()]
    assert names == ["mlflow", "numpy", "pillow", "pydantic", "safetensors", "torch"]
