"""Which configuration keys decide *what* is computed, and which only *where* and *how fast*.

A key without a mark is an identity key: it enters the digest under which a stage's result is stored, so that changing
it computes anew. A key marked `Resource` (workers, addresses, devices, cadences) never does: the same result is found
again.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


class _Resource:
    def __repr__(self) -> str:
        return "Resource"


Resource = _Resource()


def identity(record: BaseModel) -> dict[str, Any]:
    """The JSON form of `record` without its resource keys, at any depth: what a digest is taken of."""
    return {
        name: _identity_value(getattr(record, name))
        for name, field in type(record).model_fields.items()
        if Resource not in field.metadata
    }


def _identity_value(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, Mapping):
        return {str(key): _identity_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_identity_value(item) for item in value]
    return value
