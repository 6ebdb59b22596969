"""Trials: trainings of several values of a method's arguments on a part of the training set; the rest of it chooses. No torch.

A manifest marks them: "trial" is the number of the choice that a cell is trained for, "choice" of the one that chose its value.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from bench.records.cell_folder import CellFolder


def trials_of(manifest: Mapping[str, Any]) -> dict[str, int]:
    """By the id of a cell: the number of the choice for which it is trained, teachers of such cells included."""
    return {cell["id"]: cell["trial"] for cell in manifest["cells"] if isinstance(cell.get("trial"), int)}


def choices_of(manifest: Mapping[str, Any]) -> dict[str, int]:
    """By the id of a cell: the number of the choice that has chosen its method's values."""
    return {cell["id"]: cell["choice"] for cell in manifest["cells"] if isinstance(cell.get("choice"), int)}


def validation(cell: CellFolder) -> float | None:
    """Accuracy on the held-out images after the last epoch, %; None while it is not trained, NaN where that failed."""
    try:
        if record := cell.record():
            rows = list(csv.DictReader(cell.curves(record).splitlines()))
            return float(rows[-1]["val_top1"] or "nan") if rows else math.nan
    except (ValueError, OSError, KeyError):
        pass
    return math.nan if cell.settled() else None


def best(values: Mapping[str, list[float]]) -> str | None:
    """The name of the values with the highest mean; what has a NaN cannot be chosen. Of equal ones the first."""
    means: dict[str, float] = defaultdict(lambda: math.nan)
    means |= {name: sum(each) / len(each) for name, each in values.items() if each}
    known = [name for name in values if not math.isnan(means[name])]
    return max(known, key=lambda name: means[name]) if known else None
