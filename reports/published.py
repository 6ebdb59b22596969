"""The papers' numbers, from results/published/*.csv."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pandas as pd

from bench.errors import UserError

FOLDER = Path(__file__).parents[1] / "results" / "published"
COLUMNS = ["source", "table", "data", "student", "teacher", "method", "top1", "rule", "runs", "select", "note"]
CHOICES = {"rule": ("last", "best"), "select": ("mean", "best_of")}


def read(folder: Path = FOLDER) -> pd.DataFrame:
    """All published numbers, with the columns `COLUMNS`; `runs` is NaN where it is not stated.

    Raises:
        UserError: a file that is no such table; names file, line and column.
    """
    rows = [row for path in sorted(folder.glob("*.csv")) for row in _rows(path)]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"top1": float, "runs": float})


def _rows(path: Path) -> list[dict[str, object]]:
    try:
        lines = list(csv.reader(path.read_text("utf-8").splitlines(), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8: {error}") from None
    if not lines or lines[0] != COLUMNS:
        raise UserError(f"{path}: its first line must be {','.join(COLUMNS)}")
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines[1:], start=2)]


def _row(line: list[str], where: str) -> dict[str, object]:
    if len(line) != len(COLUMNS):
        raise UserError(f"{where}: {len(line)} values for {len(COLUMNS)} columns")
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
