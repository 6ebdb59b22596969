"""The same trainings twice: in both precisions, or in two results folders."""

from __future__ import annotations

import math

import pandas as pd

from bench import stats
from reports.frame import PAIR_COLUMNS, by_pair, conditions
from reports.report import Report
from reports.tables import tables_of_report
from reports.tables.table import Column, Table, number, p_value, points, times

PRECISIONS = ("fp32", "bf16")


@tables_of_report(60, section="precisions")
def precisions(report: Report) -> Table | None:
    """What was trained in both precisions, paired by seed."""
    return in_both_precisions(report.frame)


def in_both_precisions(frame: pd.DataFrame) -> Table | None:
    """The same for any tidy frame; None where nothing was trained in both."""
    if frame.empty:
        return None
    frame = frame.assign(setting=conditions(frame))
    halves = {precision: frame[frame["precision"] == precision] for precision in PRECISIONS}
    if any(half.empty for half in halves.values()):
        return None
    table = side_by_side(halves, "precisions", "Both precisions")
    return table if table else None


@tables_of_report(70, section="compared")
def compared(report: Report) -> Table | None:
    """This report's folder beside another one."""
    if report.other is None:
        return None
    return side_by_side({"A": report.frame, "B": report.other.frame}, "compared", "Two result folders")


def side_by_side(sides: dict[str, pd.DataFrame], name: str, title: str) -> Table:
    """Two tidy frames by their names: every method of a pair in both, paired by seed; one family of comparisons."""
    (a, ours), (b, other) = sides.items()
    key = [*PAIR_COLUMNS, "pair", "method_id"]
    both = by_pair(ours).merge(by_pair(other), on=[*key, "seed"], suffixes=("_a", "_b"))
    found = [_change(dict(zip(key, group, strict=True)), part) for group, part in both.groupby(key, sort=False)]
    keys = [*key, "label", "top1_a", "top1_b", "n", "gain", "low", "high", "p", "p_equivalent", "time"]
    frame = pd.DataFrame(found, columns=keys)
    frame["p_holm"] = stats.holm(frame["p"].to_numpy(float))
    frame["verdict"] = [stats.verdict(*values) for values in zip(frame["gain"], frame["p_holm"], strict=True)]
    margin = f"p, within ±{stats.MARGIN}"
    columns = (
        Column("setting", "Setting"),
        Column("pair", "Pair"),
        Column("label", "Method"),
        Column("n", "n", number(0), "seeds in both"),
        Column("top1_a", f"{a}, %", number(2)),
        Column("top1_b", f"{b}, %", number(2)),
        Column("gain", f"{b} − {a}", points, "95 % t-interval, paired by seed", low_high=("low", "high")),
        Column("p_holm", "p", p_value, "Holm-corrected over this table"),
        Column("verdict", f"{b} is"),
        Column("p_equivalent", margin, p_value, "two one-sided t-tests: below .05 both are equivalent"),
        Column("time", f"Time, {b} ÷ {a}", times, "only where both were timed on the same hardware"),
    )
    return Table(name, title, columns, frame)


def _change(key: dict[str, str], part: pd.DataFrame) -> dict[str, object]:
    """One method of one pair on both sides."""
    runs = pd.DataFrame({"a": part["top1_a"].to_numpy(), "b": part["top1_b"].to_numpy()})
    change = stats.gains(runs, ("a",)).iloc[0]
    same_hardware = part["where_a"].iloc[0] == part["where_b"].iloc[0] != ""
    return (
        key
        | {"label": part["label_b"].iloc[0], "top1_a": runs["a"].mean(), "top1_b": runs["b"].mean()}
        | change[["n", "gain", "low", "high", "p"]].to_dict()
        | {"p_equivalent": stats.equivalence_p(runs["b"] - runs["a"])}
        | {"time": (part["train_s_b"] / part["train_s_a"]).mean() if same_hardware else math.nan}
    )
