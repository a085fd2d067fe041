"""How MLflow names one version of a registered model: models:/NAME@ALIAS or models:/NAME/VERSION."""

import re
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ConfigError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_FORM = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))")


def version_uri(model: str, version: int | str) -> str:
    """models:/NAME/VERSION."""
    return f"models:/{model}/{version}"


def names_registered(name: str) -> bool:
    """Whether this is, or is meant to be, the name of a registered model's version, and not a path."""
    return name.startswith("models:")


class ModelURI(NamedTuple):
    """The parts of such a name: an alias, or else the number of a version."""

    model: str
    alias: str | None
    number: int | None

    @classmethod
    def parsed(cls, name: str) -> "ModelURI":
        """ConfigError where it is none."""
        match = _FORM.fullmatch(name)
        if match is None:
            raise ConfigError(
                f"{name}: expected models:/NAME@ALIAS, such as models:/ddpm-digits@champion, or models:/NAME/VERSION"
            )
        model, alias, number = match.groups()
        return cls(model, alias, None if alias else int(number))

    def version(self, client: "MlflowClient") -> "ModelVersion":
        """The version that it means now. MlflowException where there is none."""
        if self.alias:
            return client.get_model_version_by_alias(self.model, self.alias)
        return client.get_model_version(self.model, str(self.number))
