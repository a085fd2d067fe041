"""Writes what a manifest is checked against from KubeRay's own CustomResourceDefinitions: `prune.py FOLDER VERSION`.

FOLDER holds KubeRay's `config/crd/bases`. Left out are descriptions, defaults, status, Kubernetes' CEL rules, and pod
templates: what they hold is a built-in kind, against whose schema they are checked instead. RayJob and RayCronJob
repeat the whole of RayCluster; here they refer to it.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

KINDS = ("RayCluster", "RayJob", "RayCronJob")
LEFT_OUT = {
    "description",
    "default",
    "x-kubernetes-validations",
    "x-kubernetes-map-type",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
}


def specification(folder: Path, kind: str) -> Any:
    """The schema of a kind's `spec`."""
    text = (folder / f"ray.io_{kind.lower()}s.yaml").read_text(encoding="utf-8")
    versions = yaml.load(text, yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = (version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
    return pruned(schema["properties"]["spec"])


def pruned(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural schema without what no check needs."""
    kept = {key: value for key, value in schema.items() if key not in LEFT_OUT}
    if "properties" in kept:
        if {"metadata", "spec"} <= set(kept["properties"]) and "containers" in kept["properties"]["spec"]["properties"]:
            return {"type": "object", "x-pod-template": True}
        kept["properties"] = {name: pruned(value) for name, value in kept["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = pruned(kept[key])
    return kept


def main(folder: Path, version: str) -> None:
    """Writes `kuberay.yaml` beside this file."""
    cluster, job, cron_job = (specification(folder, kind) for kind in KINDS)
    job["properties"]["rayClusterSpec"] = {"$ref": "#/RayCluster"}
    cron_job["properties"]["jobTemplate"] = {"$ref": "#/RayJob"}
    schemas = {"RayCluster": cluster, "RayJob": job, "RayCronJob": cron_job}
    notice = (
        f"# KubeRay {version}: specifications in ray-operator/config/crd/bases of ray-project/kuberay, by prune.py.\n"
        "# Copyright of the KubeRay authors; Apache License 2.0, as in LICENSE at the top of this tree.\n"
    )
    Path(__file__).with_name("kuberay.yaml").write_text(notice + yaml.safe_dump(schemas), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
