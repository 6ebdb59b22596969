"""The same trainings twice: in both precisions, or in two results folders."""

from __future__ import annotations

import math

import pandas as pd

from bench import stats
from reports.design import Design
from reports.frame import PAIR_COLUMNS, by_pair, conditions
from reports.gains import together
from reports.report import Report
from reports.summary import claim
from reports.tables import tables_of_report
from reports.tables.accuracy import SIMULTANEOUS
from reports.tables.table import Column, Table, number, p_value, points, times

PRECISIONS = ("fp32", "bf16")


@tables_of_report(60, section="precisions")
def precisions(report: Report) -> Table | None:
    """What was trained in both precisions, paired by seed."""
    return in_both_precisions(report.frame, report.design)


def in_both_precisions(frame: pd.DataFrame, design: Design) -> Table | None:
    """The same for any tidy frame; None where nothing was trained in both."""
    if frame.empty:
        return None
    frame = frame.assign(setting=conditions(frame))
    halves = {precision: frame[frame["precision"] == precision] for precision in PRECISIONS}
    if any(half.empty for half in halves.values()):
        return None
    table = side_by_side(halves, "precisions", "Both precisions", design.margin)
    return table if table else None


@tables_of_report(70, section="compared")
def compared(report: Report) -> Table | None:
    """This report's folder beside another one."""
    if report.other is None:
        return None
    return side_by_side({"A": report.frame, "B": report.other.frame}, "compared", "Two result folders", report.design.margin)


def side_by_side(sides: dict[str, pd.DataFrame], name: str, title: str, margin: float) -> Table:
    """Two tidy frames by their names: every method of a pair in both, paired by seed; one family of comparisons.

    Args:
        margin: points within which two accuracies count as the same.
    """
    (a, ours), (b, other) = sides.items()
    key = [*PAIR_COLUMNS, "pair", "method_id"]
    both = by_pair(ours).merge(by_pair(other), on=[*key, "seed"], suffixes=("_a", "_b"))
    both = both[(both["needs_a"] == "teacher") | ~both.duplicated(["id_a", "id_b"])]  # runs without a teacher count once
    found = [_change(dict(zip(key, group, strict=True)), part) for group, part in both.groupby(key, sort=False)]
    keys = [*key, "label", "top1_a", "top1_b", "n", "gain", "estimate", "time"]
    frame = pd.DataFrame(found, columns=keys)
    if found:
        decision = stats.decide(together(list(frame.pop("estimate"))), margin=margin)
        for column in ("low", "high", "p", "p_adjusted", "p_equivalent", "word"):
            frame[column] = getattr(decision, column)
        frame["claim"] = [claim(*values) for values in zip(frame["word"], frame["gain"], strict=True)]
    columns = (
        Column("setting", "Setting"),
        Column("pair", "Pair"),
        Column("label", "Method"),
        Column("n", "n", number(0), "seeds in both"),
        Column("top1_a", f"{a}, %", number(2)),
        Column("top1_b", f"{b}, %", number(2)),
        Column("gain", f"{b} − {a}", points, f"{SIMULTANEOUS}; paired by seed", low_high=("low", "high")),
        Column("p_adjusted", "p", p_value, "corrected for the comparisons of this table"),
        Column(
            "p_equivalent", f"p, within ±{margin:g}", p_value, "two one-sided t-tests, corrected: below .05 both are equivalent"
        ),
        Column("claim", "Claim"),
        Column("time", f"Time, {b} ÷ {a}", times, "only where both were timed on the same hardware"),
    )
    return Table(name, title, columns, frame)


def _change(key: dict[str, str], part: pd.DataFrame) -> dict[str, object]:
    """One method of one pair on both sides."""
    part = part.drop_duplicates("seed")
    change = stats.estimate((part["top1_b"] - part["top1_a"]).to_numpy(float))
    same_hardware = part["where_a"].iloc[0] == part["where_b"].iloc[0] != ""
    return (
        key
        | {"label": part["label_b"].iloc[0], "top1_a": part["top1_a"].mean(), "top1_b": part["top1_b"].mean()}
        | {"n": int(change.n), "gain": float(change.mean), "estimate": change}
        | {"time": (part["train_s_b"] / part["train_s_a"]).mean() if same_hardware else math.nan}
    )
