"""What a grid's manifest must hold, and how two of them become one. No torch here."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, ValidationError

from bench.records import requests
from bench.texts import first


class Manifest(BaseModel):
    """The part of a manifest that this program relies on; other keys are kept as they are."""

    class _Cell(BaseModel):
        id: str = Field(pattern=r"^[a-z0-9_+.-]{1,120}$")
        label: str

    class _Skip(BaseModel):
        what: str
        reason: str

    cells: list[_Cell]
    skipped: list[_Skip]
    methods: dict[str, Any] = {}
    plugins: dict[str, Any] = {}
    code: dict[str, Any] = {}
    comparisons: dict[str, int] = {}
    requests: list[dict[str, Any]] = []


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
