"""What all that is written to disk has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]


class Frozen(BaseModel):
    """Immutable, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def marked(values: Frozen, mark: str) -> dict[str, bool]:
    """The fields that carry this mark in `json_schema_extra`, and whether each has its default value."""
    found = {}
    for name, field in type(values).model_fields.items():
        marks = field.json_schema_extra
        if isinstance(marks, dict) and mark in marks:
            found[name] = getattr(values, name) == field.default
    return found
