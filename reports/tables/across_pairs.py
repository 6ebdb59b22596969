"""What spans the pairs: teachers, searches for hyper-parameters, ranks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench import stats
from bench.records.comparisons import Baseline
from bench.records.naming import data_name
from bench.records.teacher import key_of, source_of
from reports.frame import PAIR_COLUMNS, by_pair
from reports.report import Report
from reports.tables import tables_of_report
from reports.tables.table import Column, Table, count, number, p_value, points, seconds


@tables_of_report(10, section="across")
def teachers(report: Report) -> Table | None:
    """The cells that others learned from."""
    if not report.pairs:
        return None
    frame = report.frame
    taught_by = (frame["teacher_id"] + " " + frame["more_teachers"]).str.split().explode()
    rows = frame[frame["id"].isin(set(taught_by))].copy()
    rows["users"] = rows["id"].map(taught_by.value_counts())
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
    for cell in (alone for record in report.records for alone in record.cell.by_teacher()):
        if key := key_of(cell):
            found = report.teachers.get(key)
            row = rows.setdefault(key, {"teacher": source_of(cell), "data": data_name(cell.data), "users": 0})
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


@tables_of_report(10, section="ranks")
def over_pairs(report: Report) -> Table | None:
    """The mean gain of every method over the pairs of a setting, in place of votes."""
    if len(report.pairs) < 2 or report.over.empty:
        return None
    interval = "simultaneous 95 % interval"
    columns = (
        Column("setting", "Setting"),
        Column("label", "Method"),
        Column("pairs", "Pairs", number(0), "distinct ones: of a method without a teacher, students"),
        Column(
            "gain", "Mean gain, these pairs", points, f"{interval}: about these pairs and teachers", low_high=("low", "high")
        ),
        Column("p_adjusted", "p", p_value),
        Column("claim", "Claim"),
        Column("groups", "Groups", number(0), "of pairs that share neither student nor teacher"),
        Column(
            "like_gain", "Mean gain, pairs like these", points, f"{interval} over groups", low_high=("like_low", "like_high")
        ),
        Column("like_p_adjusted", "p, pairs like these", p_value),
        Column("like_claim", "Claim, pairs like these"),
    )
    note = (
        "Corrected over the methods; a family of its own beside those of the pairs. Pairs like these: students are averaged "
        f"first, then groups; tested from {stats.COMPONENTS_FROM} groups on."
    )
    return Table("over-pairs", "Mean gain over none, over the pairs", columns, report.over, note)


@tables_of_report(15, section="across")
def spread_between_teachers(report: Report) -> Table | None:
    """How far several teachers of one pair differ in what they add, where that can be separated from their students' spread."""
    if not report.pairs:
        return None
    rows, found = by_pair(report.frame), []
    runs = dict(list(rows.groupby([*PAIR_COLUMNS, "method_id"], sort=False)))
    plain = {tuple(row[n] for n in PAIR_COLUMNS): row["method_id"] for row in _plain(report)}
    for row in report.summary[report.summary["teachers"] > 1].to_dict("records"):
        pair = tuple(row[name] for name in PAIR_COLUMNS)
        if row["needs"] != "none" and pair in plain:
            both = runs[(*pair, row["method_id"])].merge(runs[(*pair, plain[pair])], on="seed", suffixes=("", "_none"))
            spread = stats.teacher_spread((both["top1"] - both["top1_none"]).to_numpy(), both["teacher_id"].tolist())
            found.append(
                {"pair": row["pair"], "label": row["label"], "teachers": row["teachers"], "n": len(both)} | spread._asdict()
            )
    columns = (
        Column("pair", "Pair"),
        Column("label", "Method"),
        Column("teachers", "Teachers", number(0)),
        Column("n", "Students", number(0)),
        Column("between", "Between teachers", number(2), "standard deviation of the gain, points; – where it is not separable"),
        Column("within", "Within", number(2), "of students with one teacher"),
        Column("p", "p", p_value, "of no spread between teachers"),
    )
    note = "Where each seed has its own teacher, the two cannot be separated; `teacher_seeds: 3` makes it possible."
    frame = pd.DataFrame(found, columns=["separable", *(column.key for column in columns)])
    return Table("teacher-spread", "Spread between teachers", columns, frame, note)


def _plain(report: Report) -> list[dict[Any, Any]]:
    return report.summary[report.summary["baseline"] == Baseline.NONE].to_dict("records")


class Ranks(NamedTuple):
    """Mean ranks of methods over the students of one setting."""

    setting: str
    found: stats.Ranking
    labels: list[str]  # in the order of the ranks


def ranks_of(report: Report) -> list[Ranks]:
    """The ranks of the methods that all pairs of a setting have, each student counted once; where there are enough students."""
    if not report.pairs:
        return []
    labels = report.summary.drop_duplicates("method_id").set_index("method_id")["label"]
    found = []
    for setting, part in report.summary.groupby("setting", sort=False):
        table = part.pivot(index=["student", "pair_teacher"], columns="method_id", values="top1")
        ranking = stats.rank_students(table.to_numpy(), list(table.index.get_level_values("student")), list(table.columns))
        if ranking:
            found.append(Ranks(str(setting), ranking, [labels[name] for name in ranking.names]))
    return found


@tables_of_report(30, section="across")
def ranks(report: Report) -> list[Table]:
    """Mean ranks of the methods."""
    made = []
    for index, (setting, found, labels) in enumerate(ranks_of(report)):
        p = p_value(found.p)
        note = f"{setting}. Over {found.students} students, each averaged over its teachers and counted once. "
        note += f"Friedman p {p if '<' in p else f'= {p}'}, critical difference {found.critical:.2f}."
        columns = (Column("label", "Method"), Column("mean_rank", "Mean rank", number(2)))
        frame = pd.DataFrame({"label": labels, "mean_rank": found.mean_ranks})
        made.append(Table("ranks" + (f"-{index + 1}" if index else ""), "Mean ranks", columns, frame, note))
    return made
