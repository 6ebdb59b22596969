"""Accuracy against what a training has cost so far, from the learning curves."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from bench.records.comparisons import Baseline
from reports.pair import Pair
from reports.tables import tables_of_pair
from reports.tables.table import Column, Table, count, seconds


@tables_of_pair(70)
def time_to_accuracy(pair: Pair) -> Table:
    """Training cost until an accuracy is first reached on the test set: median over seeds, where more than half got there."""
    return time_to(pair, goals(pair))


def goals(pair: Pair) -> list[float]:
    """Accuracies to ask the cost of: 90, 95 and 100 % of what the plain student reaches, and what the best method does."""
    plain, top1 = pair.baseline(Baseline.NONE), pair.methods["top1"]
    anchor = float(plain["top1"] if plain else top1.min())
    wanted = [0.9 * anchor, 0.95 * anchor, anchor, float(top1.max())]
    return sorted({math.floor(value * 10) / 10 for value in wanted})


def time_to(pair: Pair, accuracies: list[float]) -> Table:
    """The same for these accuracies, in %."""
    rows, unit = _timed_runs(pair)
    teacher = "teacher_s" if unit == "train_s" else "teacher_flops"
    found = []
    for row in rows[["id", "method_id", "prepare_s", "prepare_flops", unit, teacher]].to_dict("records"):
        top1 = pair.curves[row["id"]].top1
        prepared, per_epoch = _spent(row, unit, len(top1))
        reached = [(top1 >= goal - 1e-9) for goal in accuracies]
        costs = [prepared + per_epoch * (int(hit.argmax()) + 1) if hit.any() else math.inf for hit in reached]
        found.append([row["method_id"], *costs, *(cost + row[teacher] for cost in costs)])
    titles = [f"{goal:.1f}" for goal in accuracies]
    names = [*titles, *(f"{title}_with_teacher" for title in titles)]
    frame = pd.DataFrame(found, columns=["method_id", *names]).groupby("method_id").median().replace(math.inf, math.nan)
    frame = _labeled(frame, pair).sort_values([*titles, "label"], na_position="last", ignore_index=True)
    write = seconds if unit == "train_s" else count
    columns = (Column("label", "Method"), *(Column(title, f"to {title} %", write) for title in titles))
    if (pair.methods["needs"] != "none").any():
        columns += tuple(Column(f"{title}_with_teacher", f"to {title} %, with the teacher", write) for title in titles)
    kind = "Training seconds" if unit == "train_s" else "Training FLOPs"
    note = f"{kind}, without the teacher's training and with it; – where at most half of the seeds got there."
    return Table(f"{pair.name}-time-to-accuracy", f"{pair.full_title}: cost to reach an accuracy", columns, frame, note)


def _timed_runs(pair: Pair) -> tuple[pd.DataFrame, str]:
    """The runs that have a curve, and the column of their cost: seconds where anything was timed, else FLOPs."""
    rows = pair.runs[pair.runs["id"].isin(pair.curves.keys())]
    return rows, "train_s" if rows["train_s"].notna().any() else "flops"


def _spent(row: dict[Any, Any], unit: str, epochs: int) -> tuple[float, float]:
    """Cost of the preparation, and of one epoch after it."""
    prepared = row["prepare_s" if unit == "train_s" else "prepare_flops"]
    return prepared, (row[unit] - prepared) / epochs


def _labeled(frame: pd.DataFrame, pair: Pair) -> pd.DataFrame:
    """A frame by `method_id` with labels in its first column, in their order."""
    frame.insert(0, "label", [pair.labels[method_id] for method_id in frame.index])
    return frame.sort_values("label").reset_index()
