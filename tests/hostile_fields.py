"""What a stranger may write into a sound file of results: wrong kinds of values in every field, sealed anew; and odd names."""

from __future__ import annotations

import copy
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import synthetic
from pydantic import ValidationError

from bench.records.cell import Cell
from bench.records.record import seal

GONE = object()  # the field is missing
DEEP: list[Any] = []
for _ in range(300):
    DEEP = [DEEP]
VALUES: dict[str, Any] = {
    "nothing": None,
    "a negative number": -1,
    "a huge number": 10**300,
    "a fraction": 0.5,
    "a text": "x",
    "a long text": "x" * 100_000,
    "a list": [],
    "an object": {},
    "true": True,
    "a deep list": DEEP,
    "an escape": "\x1b]0;mine\x07\x1b[31m\x9b2Jx",
    "several lines": "a\nb\rdone    all\x0b\u2028c\u202ed",
    "markup": "[bold red]x[/nope][link=file:///etc/passwd]y[/link]",
    "a formula": '=HYPERLINK("http://x","y")',
    "a script": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "a way out": "../../../outside/secret",
    "half a letter": "\ud800",
    "a zero": "a\0b",
    "gone": GONE,
}
TEXTS = ("a text", "a long text", "an escape", "several lines", "markup", "a formula", "a script", "half a letter", "a zero")
HINTS: dict[str, dict[str, Any]] = {
    "CELL/progress.json": {"epoch": 1, "epochs": 2, "share": 0.5, "top1": 5.0, "images_per_s": 9.0, "clocks": {"train_s": 1.0}},
    "CELL/failure.json": {"error": "x", "trace": "y", "when": "2026-01-01T00:00:00+00:00", "again": False},
    "CELL/attempts.json": {"attempts": 1, "checkpoint": None},
    "CELL/eager.json": {"reason": "x"},
    "launches/x.json": {"backend": "slurm", "arrays": [[["digits-resnet8-none-s0-0123456789ab"]]]},
    "report/.files.json": {"files": ["records.csv", "tables/summary.md"]},
}
NAMES = {
    "named an escape": "\x1b[31mx",
    "named several lines": "a\nb",
    "named markup": "[bold red]x[/nope]",
    "named a formula": "=1+1",
    "named a script": "<img src=x onerror=alert(1)>",
    "named an option": "--help",
    "named 250 letters": "x" * 250,
    "named no text": b"\xff\xfe".decode(errors="surrogateescape"),
    "named a cell of another method": "digits-resnet8-[x]-s0-0123456789ab",
}
PLACES = ("", "NAME/manifest.json", "small/", "small/NAME/record.json", "small/cost/NAME.json", "small/launches/NAME.json")
PLACES += ("small/report/maps/NAME.png", "small/CELL/NAME")  # a name stands for NAME, or is added where a slash ends the place
SHOWING = ("status", "status as JSON", "verify", "logs", "show", "report", "report beside", "site", "merge into")
csv.field_size_limit(2**27)
READ_ONLY = ("status", "status as JSON", "verify", "verify all", "logs", "show", "export", "merge from", "plan", "cancel")


def leaves(body: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all fields, and to the first of each list."""
    steps = body.items() if isinstance(body, dict) else enumerate(body[:1]) if isinstance(body, list) else ()
    for key, inner in steps:
        yield (*path, key)
        yield from leaves(inner, (*path, key))


def files_of(sound: Path) -> dict[str, dict[str, Any]]:
    """By place below the grid: what the sealed files hold."""
    [record] = (sound / "small").glob("*-resnet8-none-s0-*/record.json")
    cell = Cell.model_validate(json.loads(record.read_text())["cell"])
    found = {
        "CELL/record.json": json.loads(record.read_text()),
        "manifest.json": json.loads((sound / "small/manifest.json").read_text()),
        "checks.json": json.loads((sound / "small/checks.json").read_text()),
        "cost/x.json": synthetic.cost(cell).model_dump(mode="json"),
        **HINTS,
    }
    return {name: {key: value for key, value in body.items() if key != "sha256"} for name, body in found.items()}


def changed(body: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    body = copy.deepcopy(body)
    place: Any = body
    for key in path[:-1]:
        place = place[key]
    if value is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return body


def plant(root: Path, cell: str, place: str, path: tuple[Any, ...], value: Any, body: dict[str, Any]) -> None:
    """Write the file with that value; a record whose cell is another one now stands in that cell's folder."""
    body = changed(body, path, value) if path else body
    folder = root / "small" / cell
    if place == "CELL/record.json" and path[:1] == ("cell",):
        try:
            body["id"] = Cell.model_validate(body["cell"]).id
        except (ValidationError, ValueError, TypeError, LookupError, RecursionError):
            body["id"] = cell
        if re.fullmatch(r"[\w.+\[\]()=,-]{1,200}", body["id"]) and body["id"] != cell:
            folder = folder.rename(root / "small" / body["id"])
    elif place.startswith("CELL/"):
        (folder / "record.json").unlink()  # hints are of cells that are not done
    target = folder / place.removeprefix("CELL/") if place.startswith("CELL/") else root / "small" / place
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(seal(body)))


def plant_name(root: Path, cell: str, place: str, name: str) -> None:
    target = root / place.replace("CELL", cell).replace("NAME", name)
    if place in ("", "small/"):
        target = target / name
        target.mkdir(parents=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    sound = {"manifest.json": root / "small/manifest.json", "record.json": root / "small" / cell / "record.json"}
    target.write_bytes(sound[target.name].read_bytes() if target.name in sound else b"{}")


def regular(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """The regular files below a folder, but not floods."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**25:
            yield path, path.read_bytes()


def unsafe(printed: str, roots: list[Path]) -> list[str]:
    """What of a stranger's text has come through as more than text."""
    found = [
        f"it prints {letter!r}" for letter in sorted(set(re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028]", printed)))
    ]
    for path, raw in (each for root in roots for each in regular(root)):
        text = raw.decode(errors="replace")
        if path.suffix == ".html" and re.search(r"<img src=x|<script>alert", text):
            found.append(f"{path.name} holds a script")
        if path.suffix == ".csv" and path.name != "curves.csv":
            cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
            formulas = [cell for cell in cells if re.match(r"[=@\t\r]|[+-](?![\d.∞]|inf|$)", cell)]
            found += [f"{path.name} holds the formula {cell[:40]!r}" for cell in formulas[:1]]
    return found
