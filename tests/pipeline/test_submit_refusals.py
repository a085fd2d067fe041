"""What `submit` refuses before anything is sent, and which commands are the same work."""

import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main
from pipeline.clusters.jobs import Jobs, connect
from pipeline.clusters.shared_paths import check_paths, named_paths
from pipeline.clusters.shipment import LIMIT_BYTES, PACKAGES, CodeTree
from pipeline.clusters.submit import Work
from pipeline.errors import ClusterError, ConfigError
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import dump, load
from pipeline.sweeps.combinations import combine

from .conftest import Served
from .trainings import TINY

SETTINGS: dict[str, Any] = TINY | {
    "train": {"images": 64, "batch_size": 32},
    "sample": {"images": 8, "sampler": {"kind": "ddim", "steps": 5}},
}
FOLDER = {"source": {"kind": "image_folder", "path": "~/pictures"}, "image_size": 8, "channels": 1}
TARS = {"source": {"kind": "shards", "urls": ["s3://bucket/{000..009}.tar", "/data/1.tar"]}} | {
    "image_size": 8,
    "channels": 1,
}


def config(**sections: Any) -> Config:
    return Config.model_validate(SETTINGS | sections)


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run file in a folder of its own; whatever address the command finds is the test's."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(config()))
    return path


def test_the_same_work_has_one_name_whoever_does_it() -> None:
    name = Work("run", [config()]).name("code")
    assert name.startswith("tiny-run-")
    more_workers = config(train=SETTINGS["train"] | {"num_workers": 2}, cluster={"timeout_s": 5})
    assert Work("run", [more_workers]).name("code") == name
    assert Work("run", [more_workers]).settings() != Work("run", [config()]).settings()
    others = (
        Work("nightly", [config()]).name("code"),
        Work("run", [config()]).name("other code"),
        Work("run", [config(output="/elsewhere")]).name("code"),
        Work("run", [config(train=SETTINGS["train"] | {"seed": 1})]).name("code"),
    )
    assert len({name, *others}) == 5


def test_what_succeeded_is_done_again_where_images_may_have_come() -> None:
    assert Work("run", [config()]).once
    assert not Work("nightly", [config()]).once
    assert not Work("run", [config(data=FOLDER)]).once


def test_inside_the_job_the_cluster_is_its_own_and_mlflow_the_one_known_here(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    here = load(run_file, ["cluster.address=10.0.0.1:6379"], Config)
    run_file.write_text(Work("run", [here]).run_file())
    there = load(run_file, [], Config)
    assert there.cluster.address == "auto"
    assert there.tracking.uri == "http://mlflow:5000"
    assert there.train == here.train


def test_a_sweep_is_sent_as_it_was_written(run_file: Path) -> None:
    overrides = ["sample.sampler.steps=5,10"]
    configs = [combination.config for combination in combine(run_file, overrides)]
    sweep = Work("sweep", configs, run_file.read_text(), overrides)
    assert sweep.run_file() == run_file.read_text()
    assert sweep.arguments() == [*overrides, "cluster.address=auto"]
    assert sweep.name("code") != Work("sweep", configs[:1]).name("code")


def test_a_sweep_whose_arguments_hold_a_secret_is_refused() -> None:
    sweep = Work("sweep", [config()], "", ["tracking.uri=http://me:pass@mlflow:5000"])
    with pytest.raises(ConfigError, match=r"tracking\.uri=http://\*\*\*@mlflow:5000: .* would show the secret"):
        sweep.arguments()


def test_every_key_that_names_a_file_is_looked_at() -> None:
    named = config(
        data=FOLDER | {"base": "/outputs/prepare-1"},
        train=SETTINGS["train"] | {"warm_start": "/models/a.safetensors"},
        evaluate={"extractor": {"kind": "dinov2", "weights": "/models/dinov2.pth"}, "reference": "/models/r.npz"},
    )
    assert dict(named_paths(named)) == {
        "data.source.path": "~/pictures",
        "data.base": "/outputs/prepare-1",
        "train.warm_start": "/models/a.safetensors",
        "evaluate.extractor.weights": "/models/dinov2.pth",
        "evaluate.reference": "/models/r.npz",
        "output": "outputs/",
    }
    remote = config(data=TARS, train=SETTINGS["train"] | {"warm_start": "models:/tiny@champion"})
    assert list(named_paths(remote)) == [("data.source.urls", "/data/1.tar"), ("output", "outputs/")]


def test_a_start_that_is_meant_to_be_registered_is_called_so_as_such_are() -> None:
    mistyped = config(data=TARS, train=SETTINGS["train"] | {"warm_start": "models:tiny@champion"})
    with pytest.raises(ConfigError, match=r"models:tiny@champion: expected models:/NAME@ALIAS"):
        check_paths(mistyped, nodes=1, here=False)


def test_on_this_machine_alone_any_path_will_do() -> None:
    check_paths(config(data=FOLDER, tracking={"uri": "sqlite:///mlflow.db"}), nodes=1, here=True)


def test_on_another_machine_paths_are_absolute() -> None:
    away = {"output": "/data/outputs", "tracking": {"uri": "sqlite:////data/mlflow.db"}}
    check_paths(config(**away), nodes=1, here=False)
    says = r"another machine; .*\n  data\.source\.path: ~/pictures is not absolute\n  tracking\.uri: mlflow\.db is not"
    with pytest.raises(ConfigError, match=says):
        check_paths(config(**away | {"data": FOLDER, "tracking": {"uri": "sqlite:///mlflow.db"}}), nodes=1, here=False)


def test_on_several_nodes_paths_are_below_what_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shared: dict[str, Any] = {"data": TARS, "output": "/data/outputs", "cluster": {"shared": ["/data"]}}
    check_paths(config(**shared, tracking={"uri": "http://mlflow:5000"}), nodes=2, here=False)
    with pytest.raises(ConfigError, match=r"the cluster has 3 nodes.*cluster\.shared names\n  tracking\.uri: null is"):
        check_paths(config(**shared), nodes=3, here=False)
    with pytest.raises(ConfigError, match=r"\n  tracking\.uri: sqlite:////data/mlflow\.db is an SQLite file; give"):
        check_paths(config(**shared, tracking={"uri": "sqlite:////data/mlflow.db"}), nodes=3, here=False)
    relative = {"output": "data/outputs", "cluster": {"shared": ["data"]}}
    with pytest.raises(ConfigError, match=r"cluster\.shared names\n  cluster\.shared: data\n  output: data/outputs"):
        check_paths(config(**relative, tracking={"uri": "http://mlflow:5000"}), nodes=2, here=False)
    out_again = shared | {"output": "/data/../home/outputs", "tracking": {"uri": "http://mlflow:5000"}}
    with pytest.raises(ConfigError, match=r"cluster\.shared names\n  output: /data/\.\./home/outputs$"):
        check_paths(config(**out_again), nodes=2, here=False)


def test_a_tree_over_the_limit_is_refused_before_the_cluster_is_asked(
    run_file: Path, tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in PACKAGES:
        (tmp_path / "tree" / package).mkdir(parents=True)
    with (tmp_path / "tree" / "pipeline" / "weights.pt").open("wb") as weights:
        weights.truncate(LIMIT_BYTES + 1)
    monkeypatch.setattr("pipeline.clusters.submit.CodeTree", lambda: CodeTree(tmp_path / "tree"))
    assert main(["submit", str(run_file), "--address", served.url]) == 2
    assert "pipeline/ holds 100.0 MiB, of which weights.pt 100.0 MiB" in capsys.readouterr().err
    assert served.requests == []


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 1
    return capsys.readouterr().err


def test_an_address_that_keeps_silent_is_given_up(
    run_file: Path, silent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    says = refused(["submit", str(run_file), "cluster.timeout_s=0.3", "--address", silent], capsys)
    assert f"{silent}: no Ray cluster answers there (silent for 0.3 s)" in says


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://nowhere.invalid:8265"])
def test_an_address_where_nothing_listens_is_refused(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    says = refused(["list", "--address", address], capsys)
    assert "no Ray cluster answers there (" in says
    assert "give the address of its dashboard by --address" in says


def test_what_is_no_dashboard_is_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", served.url)
    assert "what answers is no dashboard of Ray" in refused(["status", "job"], capsys)
    (served.folder / "api").mkdir()
    (served.folder / "api" / "version").write_text("<html>")
    assert "what answers is no dashboard of Ray" in refused(["status", "job"], capsys)


def test_the_address_of_nodes_is_not_that_of_the_dashboard(capsys: pytest.CaptureFixture[str]) -> None:
    says = refused(["logs", "job", "--address", "ray://127.0.0.1:10001"], capsys)
    assert "expected http://HOST:PORT of the cluster's dashboard, port 8265" in says


RUNNING = json.dumps({"type": "SUBMISSION", "submission_id": "job", "status": "RUNNING", "entrypoint": "sleep"})


class _Dashboard(http.server.BaseHTTPRequestHandler):
    """Of a cluster that has no node left: one job that runs for ever, and whose log cannot be had."""

    def do_GET(self) -> None:
        answers = {
            "/api/version": (200, json.dumps({"version": "4", "ray_version": "2.60.0"})),
            "/nodes?view=summary": (200, json.dumps({"data": {"summary": []}})),
            "/api/jobs/job": (200, RUNNING),
            "/api/jobs/": (500, "Traceback ...\nValueError: no room\n.\n"),
        }
        status, text = answers.get(self.path, (404, f"{self.path} does not exist."))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Dashboard) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield connect(f"127.0.0.1:{server.server_port}", timeout_s=2)
        server.shutdown()
        thread.join()


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")  # by Ray's client
def test_what_goes_wrong_at_the_cluster_is_told_with_its_address(dashboard: Jobs) -> None:
    with pytest.raises(
        ClusterError, match=r"127\.0\.0\.1:\d+: /api/jobs/nope does not exist\.; 'python -m pipeline list'"
    ):
        dashboard.follow("nope", print)
    with pytest.raises(ClusterError, match=r"HTTP 500: ValueError: no room$"):
        dashboard.submitted()
    with pytest.raises(ClusterError, match=r"the log of job broke off"):
        dashboard.follow("job", print)


def test_what_does_not_come_at_the_cluster_is_given_up(dashboard: Jobs) -> None:
    dashboard.timeout_s = 0.6
    with pytest.raises(ClusterError, match=r"no Ray cluster answers there \(no node for 0\.6 s\)"):
        dashboard.nodes()
    with pytest.raises(ClusterError, match=r"job is RUNNING still after 0\.6 s"):
        dashboard.ended("job")
