"""The base of every component: a frozen record of hyper-parameters that is its own YAML section, schema and help."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Immutable, hashable, refuses unknown keys and non-finite numbers. A field's docstring is its help text."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )
