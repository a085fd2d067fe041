"""The Kubernetes manifests as a cluster gets them: rendered by kustomize, each checked against the schema of its kind.

`manifests.py FOLDER` writes what the overlays render to into FOLDER and checks it. Fields that a schema does not know
are refused, as a cluster with strict validation does it. Not checked: KubeRay's CEL rules and those of its operator.
"""

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from subprocess import run
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

KUBERNETES = Path(__file__).resolve().parents[2] / "infra" / "kubernetes"
OVERLAYS = sorted(path.parent.name for path in (KUBERNETES / "overlays").glob("*/kustomization.yaml"))
KUBERNETES_VERSION = "1.34"
KUBECTL = Path(sys.executable).with_name("kubectl")

Document = dict[str, Any]


@cache
def rendered_text(overlay: str) -> str:
    """What `kubectl kustomize` makes of an overlay."""
    command = [str(KUBECTL), "kustomize", str(KUBERNETES / "overlays" / overlay)]
    return run(command, capture_output=True, text=True, check=True).stdout


def rendered(overlay: str) -> list[Document]:
    """The same as documents."""
    return list(yaml.load_all(rendered_text(overlay), yaml.CSafeLoader))


def check(document: Document) -> None:
    """ValidationError where a document is not what its kind is; its metadata and pod templates included."""
    if document["apiVersion"] == "ray.io/v1":
        _built_in({"apiVersion": "v1", "kind": "PodTemplate", "metadata": document["metadata"]})
        unknown = set(document) - {"apiVersion", "kind", "metadata", "spec"}
        if unknown:
            raise ValidationError(f"unknown fields {sorted(unknown)}")
        _of_kuberay(document["kind"]).validate(document["spec"])
    else:
        _built_in(document)


def _built_in(document: Document) -> None:
    _built_in_text(json.dumps(document))


@cache  # most of what overlays render to is the same in all
def _built_in_text(document: str) -> None:
    kubernetes_validate.validate(json.loads(document), KUBERNETES_VERSION, strict=True)


def _pod_template(_validator: Any, _wanted: bool, template: Any, _schema: Any) -> Iterator[ValidationError]:
    """The keyword `x-pod-template` of our schemas."""
    try:
        _built_in({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}, "template": template})
    except ValidationError as error:
        yield ValidationError(error.message, path=tuple(error.path)[1:])


@cache
def _of_kuberay(kind: str) -> Draft202012Validator:
    text = (Path(__file__).parent / "crds" / "kuberay.yaml").read_text(encoding="utf-8")
    schemas = yaml.load(text, yaml.CSafeLoader)
    validator = extend(Draft202012Validator, {"x-pod-template": _pod_template})
    return validator({**{name: _closed(schema) for name, schema in schemas.items()}, "$ref": f"#/{kind}"})


def _closed(schema: Any) -> Any:
    """A structural schema that refuses fields it does not name, unless it says that it keeps them."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    names_all = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if names_all and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed["additionalProperties"] = False
    return closed


def main(folder: Path) -> None:
    """Renders and checks; says what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    for overlay in OVERLAYS:
        documents = rendered(overlay)
        for document in documents:
            try:
                check(document)
            except ValidationError as error:
                name = f"{document['kind']} {document['metadata'].get('name')}"
                sys.exit(f"{overlay}: {name}: {'.'.join(map(str, error.path))}: {error.message}")
        path = folder / f"{overlay}.yaml"
        path.write_text(rendered_text(overlay), encoding="utf-8")
        print(f"{path}: {len(documents)} objects, valid for Kubernetes {KUBERNETES_VERSION} and KubeRay 1.7")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
