"""`mlflow server` on PostgreSQL, its artifacts through it: many processes at once, tasks of Ray, and an outage."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray

from pipeline.tracking.mlflow_store import connect
from pipeline.tracking.tracked_run import TrackedRun, open_run

from .commands import new_folder, run
from .servers import free_port, mlflow_server, mlflow_server_by_its_command, postgres, postgres_programs
from .waiting import wait_until

PROGRAMS = postgres_programs()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAMS is None, reason="needs PostgreSQL: apt-get install postgresql"),
]
AT_ONCE = 6
RUN_FILE = """\
version: 1
name: night
data: {source: {kind: digits}, image_size: 8, channels: 1, heldout_fraction: 0.2}
network: {kind: ddpm_unet, base_channels: 16, channel_multipliers: [1, 2], blocks_per_level: 1, attention_sizes: [4]}
path: {kind: vp_cosine}
train: {images: 48_000, batch_size: 64, num_workers: 1, log_images: 320, checkpoint_images: 4_800}
sample: {images: 200, chunk_images: 20, sampler: {kind: ddim, steps: 10, grid: uniform}}
evaluate: {extractor: {kind: classifier, images: 8_000, width: 4, features: 16}}
register: {model_name: night, gate: {most_copies: 1}}
cluster: {address: auto}
"""

REGISTER = """\
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from model import DDIM, NO_GUIDANCE, DDPMUNet, ModelSpec, VPLinear
from pipeline.registration.gate import Gate
from pipeline.registration.model_package import ModelPackage
from pipeline.registration.registry import register
from pipeline.tracking.tracked_run import open_run

uri, folder, key = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
network = DDPMUNet(base_channels=8, channel_multipliers=(1,), blocks_per_level=1, attention_sizes=())
spec = ModelSpec(image_size=8, channels=1, network=network, path=VPLinear())
save_file(spec.build().state_dict(), folder / "weights.safetensors")
parts = {"spec": spec, "sampler": DDIM(steps=2), "guidance": NO_GUIDANCE}
described = {name: part.model_dump(mode="json") for name, part in parts.items()}
(folder / "model.json").write_text(json.dumps({"format": 3, "precision": "fp32", **described}))
(folder / "config.yaml").write_text("name: digits\\n")
package = ModelPackage(
    run_key=key,
    weights=folder / "weights.safetensors",
    description=folder / "model.json",
    config=folder / "config.yaml",
    protocol={"images": 360},
    protocol_digest="p" * 64,
    scores={"fid": float(key), "fid_se": 0.1},
    primary_score="fid",
    data_digest="d" * 64,
    trained_images=1000,
)
print("ready", flush=True)
sys.stdin.readline()
run = open_run(uri, "at once", key, folder / "run", {"key": key}, {})
run.log_metrics({"loss": 1.0}, 1000, package.trained_ms)
run.log_files([folder / "config.yaml"])
print(register(run, package, "many", Gate()).verdict)
run.finish("FINISHED")
"""


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    assert PROGRAMS is not None
    with postgres(PROGRAMS) as uri:
        yield uri


def test_many_processes_at_once_each_register_one_version_and_the_best_is_champion(
    database: str, tmp_path: Path
) -> None:
    """Every one is better than the next by far more than chance, whatever the order in which they come."""
    scores = [str(10 * (number + 1)) for number in range(AT_ONCE)]
    (tmp_path / "register.py").write_text(REGISTER)
    with ExitStack() as stack:
        uri = stack.enter_context(mlflow_server_by_its_command(tmp_path, free_port(), database))
        processes = {}
        for score in scores:
            (folder := tmp_path / score).mkdir()
            command = [sys.executable, str(tmp_path / "register.py"), uri, str(folder), score]
            processes[score] = stack.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
        for process in processes.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        told = {}
        for score, process in processes.items():
            told[score], problem = process.communicate(timeout=200)
            assert process.returncode == 0, problem
        client = connect(uri)
        versions = {version.tags["run_key"]: version for version in client.search_model_versions("name = 'many'")}
        assert sorted(versions) == sorted(scores)
        assert len({version.version for version in versions.values()}) == AT_ONCE
        aliases = client.get_registered_model("many").aliases
        assert int(aliases["champion"]) == int(versions["10"].version), told
        experiment = client.get_experiment_by_name("at once")
        assert experiment is not None
        assert len(client.search_runs([experiment.experiment_id])) == AT_ONCE
        models = client.search_logged_models([experiment.experiment_id])
        assert sorted(f"models:/{each.model_id}" for each in models) == sorted(str(v.source) for v in versions.values())
        assert {str(each.status) for each in models} == {"READY"}
        stored = client.download_artifacts(versions["10"].run_id, "config.yaml", str(tmp_path))
        assert Path(stored).read_text() == "name: digits\n"


@pytest.mark.usefixtures("head")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tasks_of_ray_that_open_the_page_of_one_run_at_once_make_one(database: str, tmp_path: Path) -> None:
    with mlflow_server(tmp_path, free_port(), database) as uri:
        ray.init("auto", log_to_driver=False)
        try:

            @ray.remote(num_cpus=0.5, runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}})
            def opened(number: int) -> str:
                run = open_run(uri, "tasks", "one", tmp_path / "run", {}, {})
                run.log_metrics({"loss": float(number)}, number, number)
                return run.run_id

            (run_id,) = set(ray.get([opened.remote(number) for number in range(4)], timeout=200))
        finally:
            ray.shutdown()
        client = connect(uri)
        experiment = client.get_experiment_by_name("tasks")
        assert experiment is not None
        assert [run.info.run_id for run in client.search_runs([experiment.experiment_id])] == [run_id]
        assert sorted(point.value for point in client.get_metric_history(run_id, "loss")) == [0, 1, 2, 3]


@pytest.mark.usefixtures("head")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_server_that_is_gone_for_a_part_of_the_night_has_everything_once_at_its_end(
    database: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder, port = new_folder(tmp_path_factory, "outage", RUN_FILE), free_port()
    uri, outputs, nights = f"http://127.0.0.1:{port}", folder / "outputs", list[subprocess.CompletedProcess[str]]()

    def curve() -> list[str]:
        return [line for file in outputs.glob("stages/train-*/metrics.jsonl") for line in file.read_text().splitlines()]

    night = threading.Thread(target=lambda: nights.append(run("nightly", folder, f"tracking.uri={uri}")))
    with mlflow_server(folder, port, database):
        night.start()
        wait_until(lambda: len(curve()) > 5 or bool(nights), within_s=300)
        assert not nights, nights
        shown = page(uri)
        wait_until(lambda: bool(history(shown)), within_s=60)
    lost_at = len(curve())
    wait_until(lambda: len(curve()) > lost_at + 20, within_s=300)  # the training does not notice
    assert night.is_alive(), nights
    with mlflow_server(folder, port, database):
        night.join(500)
        (done,) = nights
        assert done.returncode == 0, done.stdout + done.stderr
        written = [int(json.loads(line)["images"]) for line in curve() if "loss" in json.loads(line)]
        assert history(shown) == written == list(range(320, 48_001, 320))
        (version,) = shown.client.search_model_versions("name = 'night'")
        assert version.run_id == page(uri).run_id == shown.run_id
        names = {file.path for file in shown.client.list_artifacts(shown.run_id)}
        assert {"report.html", "config.yaml", "protocol.json", "pictures"} <= names


def page(uri: str) -> TrackedRun:
    """The only run that there is in the experiment."""
    client = connect(uri)
    experiment = client.get_experiment_by_name("diffusion")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return TrackedRun(uri, experiment.experiment_id, run.info.run_id)


def history(run: TrackedRun) -> list[int]:
    """Images seen at the points of the loss."""
    return [point.step for point in run.client.get_metric_history(run.run_id, "loss")]
