"""What a grid's manifest must hold, and how two of them become one. No torch here."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.records import requests
from bench.texts import first


class _Part(BaseModel):
    """A part of a manifest; other keys are kept as they are."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Cell(_Part):
    id: str = Field(pattern=r"^[a-z0-9_+.-]{1,120}$")
    label: str
    family: str | None = None
    group: str = ""
    seed: int = 0
    student: str = ""
    source: str | None = None
    setting: str = ""
    search: int | None = None
    equal_cost: str = ""


class _Skip(_Part):
    what: str
    reason: str


class _Plugin(_Part):
    arguments: list[str]
    defaults: dict[str, Any]
    presets: dict[str, dict[str, Any]]


class _Counts(_Part):
    primary: int
    exploratory: int


class _Request(_Part):
    time: str
    seeds: dict[str, list[int]]
    done: dict[str, list[int]]
    rule: dict[str, float] | None = None


class _Look(_Part):
    time: str
    rule: dict[str, float]
    comparisons: list[dict[str, Any]]


class _Rule(_Part):
    """See `bench.stats.SeedRule`."""

    model_config = ConfigDict(extra="forbid")

    first: int = Field(ge=2)
    most: int = Field(le=10**6)
    comparisons: int = Field(ge=1, le=10**6)
    margin: float = Field(1.0, gt=0)
    alpha: float = Field(0.05, gt=0, lt=1)

    @model_validator(mode="after")
    def _ordered(self) -> _Rule:
        if self.first > self.most:
            raise ValueError("'first' is above 'most'")
        return self


class _Grid(BaseModel):
    margin: float | None = Field(None, gt=0)


class Manifest(_Part):
    """The part of a manifest that this program relies on."""

    cells: list[_Cell]
    skipped: list[_Skip]
    grid: _Grid = _Grid()
    file: str | None = None
    methods: dict[str, dict[str, Any]] = {}
    plugins: dict[str, _Plugin] = {}
    code: dict[str, Any] = {}
    comparisons: _Counts | None = None
    requests: list[_Request] = []
    looks: list[_Look] = []
    rule: _Rule | None = None


def mistake(manifest: dict[str, Any]) -> str | None:
    """Why a manifest cannot be used, or None."""
    try:
        Manifest.model_validate(manifest)
    except ValidationError as error:
        return first(error)
    return None


def united(former: dict[str, Any], manifest: dict[str, Any], file: str | None) -> dict[str, Any]:
    """The manifest of all that was ever asked of a grid: see `bench.records.folders.GridFolder.request`.

    Args:
        former: the manifest so far; empty where there is none.
        manifest: of the present request.
    """
    present = {cell["id"] for cell in manifest["cells"]}
    earlier = [cell | {"earlier": True} for cell in former.get("cells", []) if cell["id"] not in present]
    body = manifest | {"cells": [*manifest["cells"], *earlier]} | ({"file": file} if file else {})
    body |= {"rule": manifest.get("rule")} if "rule" in former else {}
    for key in ("methods", "plugins", "code"):
        both = former.get(key, {}) | manifest.get(key, {})
        body |= {key: both} if both else {}
    counts, now = former.get("comparisons", {}), manifest.get("comparisons", {})
    return body | ({"comparisons": {key: max(now[key], counts.get(key, 0)) for key in now}} if now else {})


def added(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Our manifest, with the cells, cards of methods, code, requests and looks that only theirs has."""
    known = {cell["id"] for cell in ours["cells"]}
    body = ours | {"cells": ours["cells"] + [cell for cell in theirs["cells"] if cell["id"] not in known]}
    for key in ("methods", "code"):
        both = {**theirs.get(key, {}), **ours.get(key, {})}
        body |= {key: both} if both else {}
    histories = {key: requests.merged(ours.get(key, []), theirs.get(key, [])) for key in ("requests", "looks")}
    return body | {key: history for key, history in histories.items() if history}
