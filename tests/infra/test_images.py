"""Dockerfile, compose file and shell scripts, each by the linter of its kind, and with a mistake that it must find."""

import copy
import os
import sys
from functools import reduce
from pathlib import Path
from subprocess import CompletedProcess, run
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
DOCKERFILE = INFRA / "Dockerfile"
COMPOSE = INFRA / "compose.yaml"
SCRIPTS = sorted({*INFRA.rglob("*.sh"), ROOT / ".ci" / "run"})


def linted(program: str, *arguments: str | Path) -> CompletedProcess[str]:
    """A program that lies beside this Python."""
    environment = {**os.environ, "NO_COLOR": "1"}
    command = [str(Path(sys.executable).with_name(program)), *map(str, arguments)]
    return run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    found = linted("hadolint", DOCKERFILE)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("FROM cuda AS pipeline", "FORM cuda AS pipeline", "unexpected"),
        ("nvidia/cuda:13.0.1-base-ubuntu24.04", "nvidia/cuda", "DL3006"),
        ("WORKDIR /opt/pipeline", "WORKDIR opt/pipeline", "DL3000"),
        ("USER 1000:1000\nWORKDIR /opt/pipeline", "USER root\nWORKDIR /opt/pipeline", "DL3002"),
        ("--no-install-recommends ca-certificates", "ca-certificates", "DL3015"),
        ("--from=packages", "--from=package", "DL3022"),
    ],
)
def test_a_mistake_in_the_dockerfile_is_found(tmp_path: Path, right: str, wrong: str, rule: str) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert right in text
    (tmp_path / "Dockerfile").write_text(text.replace(right, wrong), encoding="utf-8")
    found = linted("hadolint", tmp_path / "Dockerfile")
    assert found.returncode == 1
    assert rule in found.stdout + found.stderr


def test_images_are_not_root_and_pinned() -> None:
    lines = DOCKERFILE.read_text(encoding="utf-8").splitlines()
    stages = {line.split()[-1]: line.split()[1] for line in lines if line.startswith("FROM")}
    assert all(":" in base or base in stages for base in stages.values())
    ends = [line.split()[1] for line in lines if line.startswith("USER")]
    assert ends == ["1000:1000", "1000:1000"]  # of `mlflow` and of `pipeline`
    ignored = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
    assert {f"!{path}" for paths in copied for path in paths} <= set(ignored)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    found = linted("shellcheck", script)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [('"$dump.part"', "$dump.part", "SC2086"), ("folder=$1", "folder =$1", "SC"), ("\nfi\n", "\n", "SC")],
)
def test_a_mistake_in_a_script_is_found(tmp_path: Path, right: str, wrong: str, rule: str) -> None:
    text = (INFRA / "kubernetes" / "base" / "backup.sh").read_text(encoding="utf-8")
    assert right in text
    (tmp_path / "backup.sh").write_text(text.replace(right, wrong), encoding="utf-8")
    found = linted("shellcheck", tmp_path / "backup.sh")
    assert found.returncode == 1
    assert rule in found.stdout


def compose() -> dict[str, Any]:
    """As Docker reads it: merge keys resolved."""
    return dict(yaml.safe_load(COMPOSE.read_text(encoding="utf-8")))


def check(document: dict[str, Any]) -> None:
    """ValueError where a key or a value is none of the Compose specification, or a name that is used is not there."""
    PyCompose.from_yaml(yaml.safe_dump(document)).validate()
    for service in document["services"].values():
        for volume in service.get("volumes", []):  # of which the package looks at the long form alone
            source = volume.partition(":")[0]
            if source not in document["volumes"] and not (INFRA / source).exists():
                raise ValueError(f"no volume and no file {source}")


def test_the_compose_file_is_what_its_specification_says() -> None:
    check(compose())


@pytest.mark.parametrize(
    ("path", "right", "wrong"),
    [
        ([], "services", "service"),
        (["services", "ray"], "healthcheck", "helthcheck"),
        (["services", "ray", "healthcheck"], "start_period", "start_periods"),
        (["services", "mlflow", "build"], "target", "taget"),
        (["services", "mlflow", "deploy", "resources"], "limits", "limit"),
        (["services", "postgres"], "volumes", "volume"),
        (["secrets", "ray-token"], "file", "flie"),
        (["volumes"], "database", "databases"),
        (["secrets"], "grafana", "graphana"),
        (["networks"], "inside", "insides"),
    ],
    ids=str,
)
def test_a_typo_in_the_compose_file_is_refused(path: list[str], right: str, wrong: str) -> None:
    document = copy.deepcopy(compose())
    node = reduce(lambda place, step: place[step], path, document)
    node[wrong] = node.pop(right)
    with pytest.raises(ValueError, match=f"{right}|{wrong}"):
        check(document)


def test_compose_opens_ports_to_this_machine_alone_and_holds_no_secret() -> None:
    for name, service in compose()["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["cap_drop"] == ["ALL"], name
        assert ":" in service["image"], name
        for key in service.get("environment", {}):
            assert key.endswith("FILE") or not any(word in key for word in ("PASSWORD", "TOKEN", "SECRET")), name
    secrets = {Path(secret["file"]) for secret in compose()["secrets"].values()}
    assert {path.parent for path in secrets} == {Path("secrets")}
    assert "infra/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()
