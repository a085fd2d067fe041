"""What `kubectl apply -k infra/kubernetes/overlays/...` would send: valid, closed, without secrets and without root."""

import copy
import re
from collections.abc import Iterator
from functools import reduce
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError

from pipeline.__main__ import _parser
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load

from .manifests import KUBERNETES, OVERLAYS, Document, check, rendered

ROOT = KUBERNETES.parents[1]
SHIPPED = {"diffusion-pipeline:0.1.0", "diffusion-mlflow:0.1.0", "postgres:17.6"}


def found(documents: list[Document], kind: str, name: str) -> Document:
    (document,) = (each for each in documents if each["kind"] == kind and each["metadata"]["name"] == name)
    return copy.deepcopy(document)


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """All mappings within a document."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from nodes(each)
    elif isinstance(value, list):
        for each in value:
            yield from nodes(each)


def pod_specs(documents: list[Document]) -> list[dict[str, Any]]:
    return [node for node in nodes(documents) if "containers" in node]


def containers(documents: list[Document]) -> list[dict[str, Any]]:
    return [each for spec in pod_specs(documents) for each in spec["containers"] + spec.get("initContainers", [])]


def all_variables(overlay: str) -> list[dict[str, Any]]:
    """Of the environments of all containers."""
    return [variable for each in containers(rendered(overlay)) for variable in each.get("env", [])]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_what_its_kind_is(overlay: str) -> None:
    documents = rendered(overlay)
    assert {"RayCluster", "Deployment", "StatefulSet", "NetworkPolicy", "PodDisruptionBudget"} <= {
        document["kind"] for document in documents
    }
    for document in documents:
        check(document)


TYPOS = [
    ("CronJob", "nightly", ["spec"], "concurrencyPolicy", "concurencyPolicy"),
    ("CronJob", "nightly", ["spec", "jobTemplate", "spec"], "backoffLimit", "backofLimit"),
    ("Deployment", "mlflow", ["spec", "template", "spec", "containers", 0], "readinessProbe", "readynessProbe"),
    ("StatefulSet", "postgres", ["spec", "template", "spec", "securityContext"], "runAsNonRoot", "runAsNonroot"),
    ("NetworkPolicy", "mlflow", ["spec", "ingress", 0], "from", "form"),
    ("PodDisruptionBudget", "ray-head", ["spec"], "maxUnavailable", "maxUnavailible"),
    ("PersistentVolumeClaim", "output", ["spec"], "accessModes", "accessMode"),
    ("RayCluster", "ray", [], "spec", "specs"),
    ("RayCluster", "ray", ["metadata"], "namespace", "nameSpace"),
    ("RayCluster", "ray", ["spec"], "enableInTreeAutoscaling", "enableIntreeAutoscaling"),
    ("RayCluster", "ray", ["spec", "authOptions"], "secretName", "secret"),
    ("RayCluster", "ray", ["spec", "workerGroupSpecs", 0], "maxReplicas", "maxReplica"),
    ("RayCluster", "ray", ["spec", "workerGroupSpecs", 0, "template", "spec"], "tolerations", "toleration"),
    ("RayJob", "train", ["spec"], "backoffLimit", "backOffLimit"),
    ("RayJob", "train", ["spec", "rayClusterSpec", "authOptions"], "mode", "modes"),
    ("RayJob", "train", ["spec", "rayClusterSpec", "headGroupSpec", "template", "spec"], "volumes", "volume"),
    ("RayJob", "train", ["spec", "submitterPodTemplate", "spec", "containers", 0], "resources", "resource"),
]


@pytest.mark.parametrize(("kind", "name", "path", "right", "wrong"), TYPOS, ids=lambda value: str(value)[:30])
def test_a_typo_is_refused(kind: str, name: str, path: list[str | int], right: str, wrong: str) -> None:
    document = found(rendered("one-gpu"), kind, name)
    check(document)
    node = reduce(lambda place, step: place[step], path, document)
    node[wrong] = node.pop(right)
    with pytest.raises(ValidationError, match=f"{wrong}|{right}"):
        check(document)


def test_values_that_ray_does_not_know_are_refused() -> None:
    document = found(rendered("one-gpu"), "RayCluster", "ray")
    document["spec"]["authOptions"]["mode"] = "tokens"
    with pytest.raises(ValidationError, match="tokens"):
        check(document)


def test_a_typo_in_a_ray_cron_job_is_refused() -> None:
    document = found(rendered("ray-cron-job"), "RayCronJob", "nightly")
    document["spec"]["concurrencyPolicy"] = "Forbid"  # which it has not
    with pytest.raises(ValidationError, match="concurrencyPolicy"):
        check(document)


def test_overlays_differ_in_their_workers() -> None:
    groups = {name: found(rendered(name), "RayCluster", "ray")["spec"]["workerGroupSpecs"][0] for name in OVERLAYS}
    assert {name: group["maxReplicas"] for name, group in groups.items()} == {
        "eight-gpus": 8,
        "one-gpu": 1,
        "ray-cron-job": 1,
        "spot": 8,
    }
    assert [name for name, group in groups.items() if "nodeSelector" in group["template"]["spec"]] == ["spot"]


@pytest.mark.parametrize(
    ("overlay", "kind", "name"), [("spot", "RayJob", "train"), ("ray-cron-job", "RayCronJob", "nightly")]
)
def test_jobs_have_the_cluster_that_stands(overlay: str, kind: str, name: str) -> None:
    documents = rendered(overlay)
    spec = found(documents, kind, name)["spec"]
    of_job = spec.get("jobTemplate", spec)["rayClusterSpec"]
    assert of_job == found(documents, "RayCluster", "ray")["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_in_the_namespace_and_every_image_has_its_version(overlay: str) -> None:
    documents = rendered(overlay)
    homes = {document["metadata"].get("namespace") for document in documents if document["kind"] != "Namespace"}
    assert homes == {"diffusion"}
    assert {each["image"] for each in containers(documents)} <= SHIPPED


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_container_is_root_or_without_limits(overlay: str) -> None:
    """What Pod Security's level `restricted` asks for, and limits of memory and CPU."""
    documents = rendered(overlay)
    for spec in pod_specs(documents):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(documents):
        security = container["securityContext"]
        assert (security["allowPrivilegeEscalation"], security["capabilities"]["drop"]) == (False, ["ALL"])
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_referred_to_only(overlay: str) -> None:
    documents = rendered(overlay)
    assert "Secret" not in {document["kind"] for document in documents}
    secret = re.compile("password|token|access_key|secret", re.IGNORECASE)
    in_the_open = {each["name"] for each in all_variables(overlay) if secret.search(each["name"]) and "value" in each}
    assert in_the_open <= {"RAY_AUTH_MODE"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_has_a_network_policy_of_its_own(overlay: str) -> None:
    documents = rendered(overlay)
    policies = [document["spec"]["podSelector"] for document in documents if document["kind"] == "NetworkPolicy"]
    assert {} in policies, "nothing is denied by default"
    selected = {policy["matchLabels"]["diffusion/role"] for policy in policies if "matchLabels" in policy}
    for policy in policies:
        for expression in policy.get("matchExpressions", []):
            selected |= set(expression["values"])
    templates = [node for node in nodes(documents) if "containers" in node.get("spec", {})]
    assert {template["metadata"]["labels"]["diffusion/role"] for template in templates} <= selected


def test_secrets_named_are_those_that_the_readme_makes() -> None:
    readme = (KUBERNETES.parent / "README.md").read_text(encoding="utf-8")
    made = set(re.findall(r"create secret generic (\S+)", readme))
    named = set()
    for overlay in OVERLAYS:
        for node in nodes(rendered(overlay)):
            named |= {node["secretKeyRef"]["name"]} if "secretKeyRef" in node else set()
            named |= {node["secretName"]} if "secretName" in node else set()
    assert named == made


def commands(overlay: str) -> Iterator[list[str]]:
    """Words after `python -m pipeline` of all that an overlay starts."""
    for node in nodes(rendered(overlay)):
        for text in [node.get("entrypoint"), *(node.get("args") or [])]:
            if isinstance(text, str) and "python -m pipeline" in text:
                yield text.partition("python -m pipeline ")[2].partition("||")[0].split()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_started_is_a_command_of_the_pipeline(overlay: str) -> None:
    started = list(commands(overlay))
    assert started
    for words in started:
        _parser().parse_args([word for word in words if word != "$OVERRIDES"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_started_finds_its_run_file_and_keys(overlay: str) -> None:
    values = {each["name"]: each.get("value", "") for each in all_variables(overlay)}
    for words in commands(overlay):
        words = [word for text in words for word in values.get(text.strip('"$'), text).split()]
        file = ROOT / words[1].removeprefix("/opt/pipeline/")
        keys = [word for word in words[2:] if "=" in word]
        assert load(file, keys, Config).output == "/output"


def test_ray_is_the_version_of_the_lock() -> None:
    lock = (KUBERNETES.parent / "requirements.lock").read_text(encoding="utf-8")
    documents = rendered("one-gpu")
    assert f"ray=={found(documents, 'RayCluster', 'ray')['spec']['rayVersion']}\n" in lock


def test_no_key_is_written_twice() -> None:
    """Readers of YAML let the last one win without a word."""
    for path in KUBERNETES.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        for document in yaml.compose_all(text):
            for node in _mapping_nodes(document):
                keys = [key.value for key, _ in node.value]
                assert len(keys) == len(set(keys)), f"{path}: {keys}"


def _mapping_nodes(node: Any) -> Iterator[yaml.MappingNode]:
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mapping_nodes(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _mapping_nodes(value)
