"""The papers' numbers, from results/published/*.csv."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pandas as pd

from bench.errors import UserError

FOLDER = Path(__file__).parents[1] / "results" / "published"
COLUMNS = ["source", "table", "data", "student", "teacher", "method", "top1", "rule", "runs", "select", "note"]
COST_COLUMNS = ["source", "data", "student", "teacher", "method", "cost", "unit", "batch_size", "hardware", "note"]
CHOICES = {"rule": ("last", "best"), "select": ("mean", "best_of")}


def read(folder: Path = FOLDER) -> pd.DataFrame:
    """All published numbers, with the columns `COLUMNS`; `runs` is NaN where it is not stated.

    Raises:
        UserError: a file that is no such table; names file, line and column.
    """
    paths = [path for path in sorted(folder.glob("*.csv")) if not path.name.startswith("cost_")]
    rows = [_row(line, where) for path in paths for line, where in _lines(path, COLUMNS)]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"top1": float, "runs": float})


def read_costs(folder: Path = FOLDER) -> pd.DataFrame:
    """Published costs, from its files cost_*.csv, with the columns `COST_COLUMNS`; "cost" in the unit of its row.

    Raises:
        UserError: a file that is no such table; names file, line and column.
    """
    rows = []
    for path in sorted(folder.glob("cost_*.csv")):
        for line, where in _lines(path, COST_COLUMNS):
            cost = _number(line[COST_COLUMNS.index("cost")], 0, 1e9, f"{where}, cost")
            rows.append(dict(zip(COST_COLUMNS, line, strict=True)) | {"cost": cost})
    return pd.DataFrame(rows, columns=COST_COLUMNS)


def _lines(path: Path, columns: list[str]) -> list[tuple[list[str], str]]:
    """The lines of a table, each with its place for errors."""
    try:
        lines = list(csv.reader(path.read_text("utf-8").splitlines(), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8: {error}") from None
    if not lines or lines[0] != columns:
        raise UserError(f"{path}: its first line must be {','.join(columns)}")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise UserError(f"{path}, line {number}: {len(line)} values for {len(columns)} columns")
    return [(line, f"{path}, line {number}") for number, line in enumerate(lines[1:], start=2)]


def _row(line: list[str], where: str) -> dict[str, object]:
    row: dict[str, object] = dict(zip(COLUMNS, line, strict=True))
    for name, choices in CHOICES.items():
        if row[name] not in choices:
            raise UserError(f"{where}, {name}: {' or '.join(choices)}, not '{row[name]}'")
    row["top1"] = _number(line[COLUMNS.index("top1")], 0, 100, f"{where}, top1")
    runs = line[COLUMNS.index("runs")]
    row["runs"] = _number(runs, 1, 10**6, f"{where}, runs") if runs else math.nan
    if row["select"] == "best_of" and not runs:
        raise UserError(f"{where}, runs: best_of needs the number of runs")
    return row


def _number(text: str, low: float, high: float, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise UserError(f"{where}: a number from {low} to {high}, not '{text}'")
    return value
