"""One pair's methods for a paper: so narrow that LaTeX sets it in a column."""

from __future__ import annotations

import math
from typing import Any

from bench.stats import SHOWN
from reports.pair import Pair
from reports.report import Report
from reports.tables import tables_of_report
from reports.tables.table import Column, Table, number, points, text, times

NOTE = (
    "Accuracy of the last epoch: mean ± half its 95 % interval over seeds. Gain over none, paired by seed, with half its "
    "simultaneous interval; * shown at 5 % family-wise."
)


@tables_of_report(5, section="files")
def papers(report: Report) -> list[Table]:
    """A table for each pair."""
    return [paper(pair) for pair in report.pairs]


def paper(pair: Pair) -> Table:
    """Accuracy, gain, and training cost without the teacher's training and with it, relative to what none costs."""
    part = pair.methods
    frame = part.assign(gain_text=[_gain(row) for row in part.to_dict("records")])
    flops = part["cost_unit"].iloc[0] == "FLOPs"
    columns = [Column("label", "Method"), Column("top1", "Top-1 %", number(2), plus_minus="half")]
    columns += [Column("gain_text", "Gain", text)] if part["gain"].notna().any() else []
    note = NOTE if part["gain"].notna().any() else NOTE.partition(" Gain")[0]
    if part["ratio"].notna().any():
        columns.append(Column("ratio", "FLOPs" if flops else "Cost", times))
        note += f" {'FLOPs' if flops else 'Cost'} of training, relative to none"
    if part["ratio"].notna().any() and (part["needs"] != "none").any():
        columns.append(Column("with_teacher_ratio", "with teacher", times))
        note += ", and with the teacher's training"
    keys = ["setting", "pair", "label", "n", "top1", "half", "gain", "low", "high", "p_adjusted", "claim", "gain_text", "ratio"]
    frame = frame[[*keys, "with_teacher_ratio"]]
    return Table(f"{pair.name}-paper", pair.full_title, tuple(columns), frame, f"{note}.", narrow=True)


def _gain(row: dict[Any, Any]) -> str:
    """'+0.35 ± 0.47', '+0.62 ± 0.21*', or with brackets where the interval is not symmetric."""
    if math.isnan(row["gain"]):
        return ""
    half, other = row["high"] - row["gain"], row["gain"] - row["low"]
    star = "*" if row["word"] in SHOWN else ""
    if math.isnan(half):
        return points(row["gain"])
    if abs(half - other) > 0.005:
        return f"{points(row['gain'])} [{points(row['low'])}, {points(row['high'])}]{star}"
    return f"{points(row['gain'])} ± {half:.2f}{star}"
