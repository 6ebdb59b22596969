"""What spans the pairs: teachers, searches for hyper-parameters, ranks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench import stats
from bench.records.naming import data_name
from bench.records.teacher import key_of, source_of
from reports.frame import PAIR_COLUMNS, by_pair
from reports.report import Report
from reports.tables import tables_of_report
from reports.tables.table import Column, Table, count, number, p_value, seconds


@tables_of_report(10, section="across")
def teachers(report: Report) -> Table | None:
    """The cells that others learned from."""
    if not report.pairs:
        return None
    frame = report.frame
    rows = frame[frame["id"].isin(set(frame["teacher_id"]))].copy()
    rows["users"] = rows["id"].map(frame["teacher_id"].value_counts())
    columns = (
        Column("student", "Teacher"),
        Column("setting", "Setting"),
        Column("seed", "Seed", number(0)),
        Column("top1", "Top-1 %", number(2)),
        Column("train_s", "Training", seconds),
        Column("flops", "FLOPs", count),
        Column("users", "Students", number(0), "cells that learned from it: methods × seeds"),
    )
    return Table("teachers", "Teachers", columns, rows.sort_values(["setting", "student", "seed"]))


@tables_of_report(15, section="across")
def supplied_teachers(report: Report) -> Table | None:
    """Teachers that were not trained here, with the accuracy that was measured of each."""
    rows: dict[str, dict[str, Any]] = {}
    for record in report.records:
        if key := key_of(record.cell):
            found = report.teachers.get(key)
            row = rows.setdefault(key, {"teacher": source_of(record.cell), "data": data_name(record.cell.data), "users": 0})
            row["users"] += 1
            row["note"] = "not measured" if found is None else "near chance" if found.near_chance else ""
            if found:
                row |= {"top1": found.top1, "top5": found.top5, "images": found.images, "chance": 100 / found.classes}
    if not rows:
        return None
    columns = (
        Column("teacher", "Teacher"),
        Column("data", "Data"),
        Column("top1", "Top-1 %", number(2), "of the test set, in the precision and on the images on which it teaches"),
        Column("top5", "Top-5 %", number(2)),
        Column("chance", "Chance %", number(2)),
        Column("images", "Images", number(0)),
        Column("users", "Students", number(0), "cells that learned from it: methods × seeds"),
        Column("note", "Note"),
    )
    frame = pd.DataFrame(rows.values(), columns=[column.key for column in columns])
    return Table("supplied-teachers", "Teachers that were not trained here: accuracy on the test set", columns, frame)


@tables_of_report(20, section="across")
def search(report: Report) -> Table | None:
    """Where a method ran with several values of a hyper-parameter: what the validation split chooses, and what that cost."""
    if not report.pairs:
        return None
    rows = by_pair(report.frame)
    rows = rows[rows.groupby([*PAIR_COLUMNS, "family"])["method_id"].transform("nunique") > 1].copy()
    rows["validation"] = [
        float(np.nanmax(c.validation)) if (c := report.curves.get(i)) and np.isfinite(c.validation).any() else math.nan
        for i in rows["id"]
    ]
    found = []
    for key, part in rows.groupby([*PAIR_COLUMNS, "pair", "family"], sort=False):
        variants = part.groupby(["label", "method_id"])
        means = variants[["validation", "top1", "chosen_top1", "train_s", "flops"]].mean().reset_index()
        spent = variants[["train_s", "flops"]].sum(min_count=1).sum(min_count=1)
        if len(means) < 2 or means["validation"].isna().any():
            continue
        best = means.sort_values("validation", ascending=False).iloc[0]
        found.append(
            {"setting": key[0], "pair": key[3], "family": key[4], "variants": len(means), "chosen": best["label"]}
            | best[["validation", "chosen_top1", "top1"]].to_dict()
            | {"search_s": spent["train_s"], "search_flops": spent["flops"]}
        )
    columns = (
        Column("pair", "Pair"),
        Column("family", "Method"),
        Column("variants", "Tried", number(0)),
        Column("chosen", "Chosen on validation"),
        Column("validation", "Validation %", number(2)),
        Column("chosen_top1", "Test %, that epoch", number(2)),
        Column("top1", "Test %, last epoch", number(2)),
        Column("search_s", "All of the search", seconds, "training of all values and seeds"),
        Column("search_flops", "FLOPs", count),
    )
    keys = ["setting", *(column.key for column in columns)]
    return Table("search", "Hyper-parameters chosen on the validation split", columns, pd.DataFrame(found, columns=keys))


class Ranks(NamedTuple):
    """Mean ranks of methods over pairs of networks."""

    mean: pd.Series  # by label; 1 is best
    difference: float  # the test finds no difference between ranks that are closer
    p: float  # Friedman's


def ranks_of(report: Report) -> Ranks | None:
    """The ranks of the methods that all pairs have; None where pairs or methods are too few for a test."""
    if not report.pairs:
        return None
    labels = report.summary.drop_duplicates("method_id").set_index("method_id")["label"]
    found = stats.ranks(report.summary.pivot(index=PAIR_COLUMNS, columns="method_id", values="top1"))
    if found is None:
        return None
    mean, difference, p = found
    return Ranks(mean.rename(index=labels), difference, p)


@tables_of_report(30, section="across")
def ranks(report: Report) -> Table | None:
    """Mean ranks of the methods."""
    found = ranks_of(report)
    if found is None:
        return None
    p = p_value(found.p)
    note = f"Over {len(report.pairs)} pairs, not independent where they share a student. "
    note += f"Friedman p {p if '<' in p else f'= {p}'}, critical difference {found.difference:.2f}."
    columns = (Column("label", "Method"), Column("mean_rank", "Mean rank", number(2)))
    frame = found.mean.rename("mean_rank").rename_axis("label").reset_index()
    return Table("ranks", "Mean ranks", columns, frame, note)
