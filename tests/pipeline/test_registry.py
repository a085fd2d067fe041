"""Versions and aliases, in a real SQLite registry, also when the process is killed anywhere in between."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model import DDIM, NO_GUIDANCE, DDPMUNet, ModelSpec, TrainedModel, VPLinear, generate
from pipeline.errors import ConfigError, TrackingError
from pipeline.models.stored_model import load_stored
from pipeline.nights.night_plot import draw_nights, night_points
from pipeline.nights.nightly import Night, as_it_is
from pipeline.registration.gate import Gate, Standing
from pipeline.registration.model_package import ModelPackage
from pipeline.registration.registry import Registered, add_scores, move_champion, moves, register, standing
from pipeline.registration.versions import rollback, show_history
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load
from pipeline.terminal import Terminal
from pipeline.tracking.tracked_run import TrackedRun

SPEC = ModelSpec(
    image_size=8,
    channels=1,
    network=DDPMUNet(base_channels=32, channel_multipliers=(1,), blocks_per_level=1, attention_sizes=()),
    path=VPLinear(),
)
SAMPLER = DDIM(steps=2)
GATE = Gate()
RUNS = Path(__file__).parents[2] / "pipeline/runs"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A registered model of the test's own, in the store that all share."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(7)
    return SPEC.build()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, network: torch.nn.Module) -> ModelPackage:
    folder = tmp_path_factory.mktemp("package")
    save_file(network.state_dict(), folder / "weights.safetensors")
    described = {
        "format": 3,
        "spec": SPEC.model_dump(mode="json"),
        "sampler": SAMPLER.model_dump(mode="json"),
        "guidance": NO_GUIDANCE.model_dump(mode="json"),
        "precision": "fp32",
    }
    (folder / "model.json").write_text(json.dumps(described))
    (folder / "config.yaml").write_text("name: digits\n")
    return ModelPackage(
        run_key="first",
        weights=folder / "weights.safetensors",
        description=folder / "model.json",
        config=folder / "config.yaml",
        protocol={"images": 360, "extractor": {"kind": "classifier"}},
        protocol_digest="p" * 64,
        scores={
            "fid_classifier": 27.0,
            "fid_classifier_se": 0.5,
            "inception_score_classifier_mean": 9.5,
            "fid_768": None,
        },
        primary_score="fid_classifier",
        data_digest="d" * 64,
        trained_images=1_000_000,
    )


def night(package: ModelPackage, key: str, fid: float | None, **changes: Any) -> ModelPackage:
    return replace(package, run_key=key, scores=package.scores | {"fid_classifier": fid}, **changes)


def aliases(run: TrackedRun, name: str) -> dict[str, int]:
    return {alias: int(version) for alias, version in run.client.get_registered_model(name).aliases.items()}


def test_the_first_version_is_candidate_and_champion(run: TrackedRun, package: ModelPackage, name: str) -> None:
    registered = register(run, package, name, GATE)
    assert registered == Registered(name, 1, True, "version 1 is the first champion")
    assert registered.uri == f"models:/{name}/1"
    assert aliases(run, name) == {"candidate": 1, "champion": 1}


def test_champion_moves_to_the_better_candidate_to_the_newest(
    run: TrackedRun, package: ModelPackage, name: str
) -> None:
    for key, fid in (("a", 27.0), ("b", 20.0), ("c", 21.0)):
        last = register(run, night(package, key, fid), name, GATE)
    assert aliases(run, name) == {"candidate": 3, "champion": 2, "previous": 1}
    assert last == Registered(
        name,
        3,
        False,
        "version 2 stays champion: fid_classifier 21 ± 0.5 of version 3 against 20 ± 0.5: higher by 1, where more than "
        "1.41 is asked (2 combined standard errors)",
    )
    tags = run.client.get_model_version(name, "2").tags
    assert tags["verdict"] == "version 2 is champion: fid_classifier 20 ± 0.5 against 27 ± 0.5 of version 1"
    answers = {each["rule"]: each["passed"] for each in json.loads(tags["decision"])["answers"]}
    assert answers == {"finite": True, "protocol": True, "better": True, "inception_score": True}


def test_a_version_says_what_it_is(run: TrackedRun, package: ModelPackage, name: str) -> None:
    register(run, package, name, GATE)
    version = run.client.get_model_version(name, "1")
    assert version.run_id == run.run_id
    assert version.tags["protocol_digest"] == package.protocol_digest
    assert version.tags["data_digest"] == package.data_digest
    assert (version.tags["primary_score"], version.tags["primary_score_value"]) == ("fid_classifier", "27.0")
    assert "| **fid_classifier** | 27 |" in version.description
    assert "| fid_768 | not available |" in version.description
    assert "`pppppppppppp`: images 360; extractor.kind classifier." in version.description
    assert "8 x 8 grey images, trained on 1,000,000" in version.description
    assert f'load_model("models:/{name}@champion")' in run.client.get_registered_model(name).description


def test_the_scores_are_on_the_model_and_the_model_on_its_run(
    run: TrackedRun, package: ModelPackage, name: str
) -> None:
    register(run, package, name, GATE)
    [logged] = run.client.search_logged_models([run.experiment_id], f"name = '{name}' AND metrics.fid_classifier < 28")
    assert {metric.key: metric.value for metric in logged.metrics} == {
        "fid_classifier": 27.0,
        "fid_classifier_se": 0.5,
        "inception_score_classifier_mean": 9.5,
    }
    [output] = run.client.get_run(run.run_id).outputs.model_outputs
    assert output.model_id == logged.model_id
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": name, "version": 1}]


def test_a_score_that_is_not_finite_is_registered_and_never_wins(
    run: TrackedRun, package: ModelPackage, name: str
) -> None:
    for key, fid in (("a", math.nan), ("b", None)):
        assert not register(run, night(package, key, fid), name, GATE).is_champion
    assert aliases(run, name) == {"candidate": 2}
    assert register(run, night(package, "c", 90.0), name, GATE).is_champion


def test_a_version_of_another_protocol_is_compared_once_the_champion_was_scored_under_it(
    run: TrackedRun, package: ModelPackage, name: str
) -> None:
    register(run, night(package, "a", 27.0), name, GATE)
    other = "q" * 64
    unlike = register(run, night(package, "b", 1.0, protocol_digest=other), name, GATE)
    assert unlike.verdict == ("version 1 stays champion: version 1 was not scored under the protocol of version 2")
    again = Standing(
        "fid_classifier", {"fid_classifier": 30.0, "fid_classifier_se": 0.5}, version=1, protocol_digest=other
    )
    add_scores(run.client, name, again)
    assert standing(run.client, name, 1, other) == again
    assert register(run, night(package, "c", 20.0, protocol_digest=other), name, GATE).verdict == (
        "version 3 is champion: fid_classifier 20 ± 0.5 against 30 ± 0.5 of version 1"
    )


def test_a_version_of_another_network_is_scored_as_it_is(run: TrackedRun, package: ModelPackage, name: str) -> None:
    register(run, package, name, GATE)
    config = load(RUNS / "digits.yaml", ["sample.images=40"], Config)
    assert config.spec != SPEC
    scored = as_it_is(config, name, 1, run.uri)
    assert scored.spec == SPEC
    assert (scored.train.images, scored.train.warm_start) == (0, f"models:/{name}/1")
    assert (scored.name, scored.sample, scored.evaluate) == ("digits-champion", config.sample, config.evaluate)
    told = ["conditioning={kind: class_label, classes: 10}", "sample.guidance={kind: classifier_free}"]
    with pytest.raises(ConfigError, match=f"models:/{name}/1: does not go with this configuration: .*classifier_free"):
        as_it_is(load(RUNS / "digits.yaml", told, Config), name, 1, run.uri)


def test_registering_again_finds_the_version(run: TrackedRun, package: ModelPackage, name: str) -> None:
    assert register(run, package, name, GATE) == register(run, package, name, GATE)
    assert_registered_once(run, name)


def test_registering_again_leaves_what_a_person_rolled_back(run: TrackedRun, package: ModelPackage, name: str) -> None:
    register(run, night(package, "a", 27.0), name, GATE)
    register(run, night(package, "b", 20.0), name, GATE)
    run.client.set_registered_model_alias(name, "champion", "1")
    assert not register(run, night(package, "b", 20.0), name, GATE).is_champion
    assert aliases(run, name) == {"candidate": 2, "champion": 1, "previous": 1}


@pytest.mark.parametrize(("fid", "meanwhile"), [(20.0, 10.0), (10.0, 20.0)])
@pytest.mark.parametrize("moment", ["champion", "previous", "announcement"])
def test_of_two_that_are_promoted_at_the_same_time_the_better_one_is_champion(
    run: TrackedRun,
    package: ModelPackage,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    fid: float,
    meanwhile: float,
) -> None:
    """The other is registered, from first to last, just before a call by which this one would become champion."""
    from mlflow import MlflowClient

    register(run, night(package, "a", 27.0), name, GATE)
    call = "set_model_version_tag" if moment == "announcement" else "set_registered_model_alias"
    real, others = getattr(MlflowClient, call), list[Registered]()

    def interrupted(client: Any, name: str, *what: str) -> None:
        if not others and (moment in what or moment == "announcement"):
            others.append(Registered(name, 0, False, ""))
            others[0] = register(run, night(package, "c", meanwhile), name, GATE)
        real(client, name, *what)

    monkeypatch.setattr(MlflowClient, call, interrupted)
    this = register(run, night(package, "b", fid), name, GATE)
    (other,) = others
    best = this.version if fid < meanwhile else other.version
    assert aliases(run, name)["candidate"] == 3
    assert aliases(run, name)["champion"] == best
    assert this.is_champion == (fid < meanwhile)


def test_a_tag_of_a_persons_own_is_no_change_of_the_champion(run: TrackedRun, package: ModelPackage, name: str) -> None:
    register(run, package, name, GATE)
    run.client.set_model_version_tag(name, "1", "champion.of", "hearts")
    assert [move["version"] for move in moves(run.client, name).values()] == [1]


def test_a_version_whose_logged_model_was_deleted_has_no_scores_to_compare_with(
    run: TrackedRun, package: ModelPackage, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register(run, night(package, "a", 27.0), name, GATE)
    run.client.delete_logged_model(str(run.client.get_model_version(name, "1").source).removeprefix("models:/"))
    assert "was not scored under the protocol" in register(run, night(package, "b", 10.0), name, GATE).verdict
    show_history(name, run.uri, Terminal())
    assert re.search(r"^ +1 .* none ", capsys.readouterr().out, re.MULTILINE)


def test_a_champion_that_was_deleted_makes_room_for_the_next(run: TrackedRun, package: ModelPackage, name: str) -> None:
    register(run, night(package, "a", 10.0), name, GATE)
    run.client.delete_model_version(name, "1")
    assert register(run, night(package, "b", 27.0), name, GATE).verdict == "version 2 is the first champion"
    assert aliases(run, name) == {"candidate": 2, "champion": 2}


def test_a_rollback_where_nothing_else_was_champion_is_refused(
    run: TrackedRun, package: ModelPackage, name: str
) -> None:
    register(run, package, name, GATE)
    for _ in range(2):
        with pytest.raises(ConfigError, match="no version was champion before this one"):
            rollback(name, "why not", run.uri, Terminal())
        run.client.set_registered_model_alias(name, "previous", "1")  # as a kill in the middle of a move leaves it


def test_a_name_of_several_words_will_do(run: TrackedRun, package: ModelPackage, network: torch.nn.Module) -> None:
    name = "Zwölf Zahlen & mehr"
    assert register(run, package, name, GATE).is_champion
    stored = load_stored(f"models:/{name}@champion", [], run.uri, "cpu")
    images = generate(stored.model, stored.sampler, torch.tensor([5]))
    assert torch.equal(images, generate(TrainedModel(SPEC, network), SAMPLER, torch.tensor([5])))


@pytest.mark.parametrize("name", ["a/b", "a:b", "a@b", "it's", "..", "v1.5", "100 %"])
def test_a_name_that_would_be_misread_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="model_name"):
        load(RUNS / "digits.yaml", [f'register.model_name="{name}"'], Config)


def test_a_night_goes_on_with_the_champion_it_began_with_unless_that_is_gone(
    run: TrackedRun, package: ModelPackage, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(run, night(package, "a", 27.0), name, GATE)
    given = [f"output={tmp_path}", f"tracking.uri={run.uri}", f"register.model_name={name}"]
    tonight = Night(load(RUNS / "digits.yaml", given, Config), Terminal())
    assert tonight.begun().champion == 1
    register(run, night(package, "b", 20.0), name, GATE)
    assert tonight.begun().champion == 1
    run.client.delete_model_version(name, "1")
    assert tonight.begun().champion == 2
    assert "version 1, the champion it began with, is gone" in capsys.readouterr().out


def test_the_plot_of_nights_follows_the_registry(
    run: TrackedRun, package: ModelPackage, name: str, tmp_path: Path
) -> None:
    other = "q" * 64
    for key, fid in (("a", 27.0), ("b", 29.0), ("c", 20.0)):
        register(run, night(package, key, fid), name, GATE)
    move_champion(run.client, name, 1, "by hand")
    again = {"fid_classifier": 40.0, "fid_classifier_se": 0.5}
    add_scores(run.client, name, Standing("fid_classifier", again, version=1, protocol_digest=other))
    register(run, night(package, "d", 50.0, protocol_digest=other), name, GATE)
    register(run, night(package, "e", None, protocol_digest=other), name, GATE)
    points, score = night_points(run.client, name)
    assert score == "fid_classifier"
    assert [(point.version, point.score, point.promoted, point.champion_score) for point in points] == [
        (1, 27.0, True, 27.0),
        (2, 29.0, False, 27.0),
        (3, 20.0, True, 27.0),  # it was taken back before the next night
        (4, 50.0, False, 40.0),
        (5, None, False, 40.0),
    ]
    assert [point.error for point in points] == [0.5] * 5
    assert [point.protocol[0] for point in points] == ["p", "p", "p", "q", "q"]
    assert draw_nights(run.client, name, tmp_path / "nights.png") == tmp_path / "nights.png"
    assert (tmp_path / "nights.png").read_bytes().startswith(b"\x89PNG")


def test_a_champion_that_was_deleted_has_no_line_in_the_plot(run: TrackedRun, package: ModelPackage, name: str) -> None:
    for key, fid in (("a", 27.0), ("b", 20.0), ("c", 22.0), ("d", 10.0)):
        register(run, night(package, key, fid), name, GATE)
    run.client.delete_model_version(name, "2")
    points, _ = night_points(run.client, name)
    assert [(point.version, point.champion_score) for point in points] == [(1, None), (3, None), (4, 10.0)]


def test_where_no_version_has_a_score_there_is_no_plot(
    run: TrackedRun, package: ModelPackage, name: str, tmp_path: Path
) -> None:
    register(run, night(package, "a", None), name, GATE)
    assert draw_nights(run.client, name, tmp_path / "nights.png") is None


class Killed(BaseException):
    """As abrupt as a signal: nothing below catches it."""


@pytest.mark.parametrize(
    "step",
    [
        "create_registered_model",
        "create_logged_model",
        "log_model_artifacts",
        "log_batch",
        "log_outputs",
        "finalize_logged_model",
        "create_model_version",
        "set_registered_model_alias",
        "set_model_version_tag",
    ],
)
def test_a_kill_after_any_step_is_made_good_by_the_same_call(
    run: TrackedRun, package: ModelPackage, name: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, step, then_killed(getattr(MlflowClient, step)))
        with pytest.raises(Killed):
            register(run, package, name, GATE)
    assert register(run, package, name, GATE).is_champion
    assert_registered_once(run, name)


def then_killed(call: Callable[..., Any]) -> Callable[..., Any]:
    def killed(*arguments: Any, **named: Any) -> None:
        call(*arguments, **named)
        raise Killed

    return killed


def assert_registered_once(run: TrackedRun, name: str) -> None:
    [version] = run.client.search_model_versions(f"name = '{name}'")
    [logged] = run.client.search_logged_models([run.experiment_id], f"name = '{name}'")
    assert version.source == f"models:/{logged.model_id}"
    assert logged.status == "READY"
    assert aliases(run, name) == {"candidate": 1, "champion": 1}
    assert len(run.client.get_metric_history(run.run_id, "fid_classifier")) == 1


def test_a_name_that_mlflow_refuses_is_reported(run: TrackedRun, package: ModelPackage) -> None:
    with pytest.raises(TrackingError, match=r"cannot register a/b: .*[Ii]nvalid"):
        register(run, package, "a/b", GATE)


def test_registering_leaves_the_default_store_of_the_process_alone(
    run: TrackedRun, package: ModelPackage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere-else:5000")
    register(run, package, name, GATE)
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://somewhere-else:5000"


def test_the_champion_loads_outside_the_repository_without_pickle(
    run: TrackedRun, package: ModelPackage, name: str, network: torch.nn.Module, tmp_path: Path
) -> None:
    register(run, package, name, GATE)
    (tmp_path / "model.py").write_text("mine = True\n")  # the user's own module
    (tmp_path / "use.py").write_text(f"""
import sys

class NoRepository:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pipeline", "evaluation"):
            raise ImportError(f"{{name}} was asked for")

sys.meta_path.insert(0, NoRepository())
import model
import mlflow
images = mlflow.pyfunc.load_model("models:/{name}@champion").predict({{"seed": [5, 6]}})
assert model.mine and not hasattr(model, "ModelSpec")
images.tofile("images.bin")
""")
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": run.uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    environment.pop("PYTHONPATH", None)
    subprocess.run([sys.executable, "use.py"], check=True, cwd=tmp_path, env=environment, capture_output=True)
    expected = generate(TrainedModel(SPEC, network), SAMPLER, torch.tensor([5, 6]))
    assert (tmp_path / "images.bin").read_bytes() == expected.numpy().tobytes()
