"""Whose code a record is of: the digest in its `source`, and records that other code made. No torch here.

A source is "<shipped>" or "<shipped>+<own>": digests of the shipped code and of the users' own code that the cell uses. Shipped
code counts by the methods' versions, and a difference is worth a note. A result of other own code is stale.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from bench import sources
from bench.records.cell import Cell, digest
from bench.records.folders import GridFolder
from bench.records.naming import nested
from bench.records.record import Record

PROJECT = Path(__file__).resolve().parents[2]
FOLDERS = {"data": PROJECT / "bench/data", "model": PROJECT / "bench/models", "method": PROJECT / "methods"}
KINDS = (*FOLDERS, "optimizer", "augmentation")  # of the last two the user's own alone count: a cell's id says the rest
LENGTH = 16  # hexadecimal digits of each part

Code = Mapping[str, str]
"""Digests of the users' own code by what it registers: "method:cp", "model:two_stages", "data:parity", "optimizer:lion"."""


def keys(cell: Cell) -> list[str]:
    """What a cell uses, as `Code` names it."""
    found = {f"data:{cell.data['type']}", f"model:{cell.student['type']}"}
    found |= {f"model:{teacher.model['type']}" for teacher in cell.teachers}
    return sorted(found | {f"method:{part['type']}" for part in nested(cell.method)} | set(cell.recipe.parts))


def source(cell: Cell, code: Code) -> str:
    """What `Record.source` is for a cell that is trained now."""
    theirs = {key: _shipped(key) for key in keys(cell) if key not in code and key.partition(":")[0] in FOLDERS}
    own = own_source(cell, code)
    return digest(theirs)[:LENGTH] + (f"+{own}" if own else "")


def own_source(cell: Cell, code: Code) -> str:
    """The part of users' own code; empty where a cell uses none."""
    own = {key: code[key] for key in keys(cell) if key in code}
    return digest(own)[:LENGTH] if own else ""


def own_part(text: str | None) -> str | None:
    """The part of users' own code of a source; None where nothing is known."""
    return None if text is None else text.partition("+")[2]


def made_by_other_code(record: Record, code: Code) -> bool:
    """Whether users' own code has changed since; not where the record does not say what made it."""
    own = own_part(record.source)
    return own is not None and own != own_source(record.cell, code)


def stale(cells: Iterable[Cell], folder: GridFolder, code: Code) -> list[str]:
    """Ids of finished cells that other code of the user made, or whose teacher it made. `cells`: teachers first."""
    records: dict[str, Record | None] = {}
    for cell in cells:
        try:
            records[cell.id] = folder.cell(cell.id).record()
        except (ValueError, OSError):
            records[cell.id] = None
    return stale_among([record for record in records.values() if record], code)


def stale_among(records: Collection[Record], code: Code) -> list[str]:
    """Ids of the records that other code of the user made, or whose teacher it made."""
    found = {record.id for record in records if made_by_other_code(record, code)}
    return [record.id for record in records if record.id in found or found.intersection(record.cell.waits_for)]


def unknown_among(records: Iterable[Record], code: Code) -> list[str]:
    """Ids of the records that users' own code made without a word about which."""
    return [record.id for record in records if record.source is None and own_source(record.cell, code)]


def mixed_code(records: Collection[Record], code: Code) -> list[str]:
    """A sentence where results of different code of the user's own stand side by side."""
    other = stale_among(records, code)
    labels = sorted({record.cell.label for record in records if record.id in other})
    if not labels:
        return []
    return [f"{_results(len(other))} made by other code than the grid's last run, and kept: {', '.join(labels)}."]


def notes(records: Collection[Record], code: Code) -> list[str]:
    """What is worth knowing of the code behind records, a line each."""
    lines = []
    if other := stale_among(records, code):
        lines.append(f"{_results(len(other))} made by other code than the grid's last run: {_some(other)}")
    if unknown := unknown_among(records, code):
        lines.append(f"{_results(len(unknown))} made by code of yours that the record does not name: {_some(unknown)}")
    nameless = [record.id for record in records if record.source is None and record.id not in unknown]
    if nameless:
        lines.append(f"{_results(len(nameless))} recorded without a digest of the code; the methods' versions count")
    known = [(_shipped_part(record.source), record.cell) for record in records if record.source]
    differing = [cell for part, cell in known if part != _shipped_part(source(cell, code))]
    if differing:
        lines.append(f"{_results(len(differing))} made by shipped code that differs from today's; the methods' versions count")
    return lines


def code_of(manifest: Mapping[str, object]) -> dict[str, str]:
    """Digests of users' own code, as the last run of a grid found it."""
    found = manifest.get("code")
    items = found.items() if isinstance(found, dict) else ()
    named = rf"({'|'.join(KINDS)}):.+"
    return {key: value for key, value in items if isinstance(value, str) and re.fullmatch(named, str(key))}


def _shipped_part(text: str) -> str:
    return text.partition("+")[0]


def _shipped(key: str) -> str:
    kind, _, name = key.partition(":")
    return sources.shipped(FOLDERS[kind], name)


def _results(count: int) -> str:
    return f"{count} result was" if count == 1 else f"{count} results were"


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
