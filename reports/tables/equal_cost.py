"""Accuracy at the plain student's cost, by trainings with another number of epochs."""

from __future__ import annotations

from reports.equal_cost import at_equal_cost
from reports.frame import SHARED_BY
from reports.report import Report
from reports.tables import tables_of_report
from reports.tables.accuracy import SIMULTANEOUS
from reports.tables.table import Column, Table, number, p_value, points, times


@tables_of_report(5, section="equal-cost")
def equal_cost(report: Report) -> Table | None:
    """What `equal_cost` of the grid asks for."""
    found = at_equal_cost(report)
    if found.empty:
        return None
    over = "FLOPs ÷" if found["cost_unit"].iloc[0] == "FLOPs" else "÷"
    columns = (
        Column("pair", "Pair"),
        Column("label", "Method"),
        Column("epochs", "Epochs", number(0)),
        Column("full_epochs", "of", number(0), "epochs of the full schedule"),
        Column("n", "n", number(0), "seeds"),
        Column("top1", "Top-1 %", number(2), "last epoch; mean ± half its 95 % t-interval", plus_minus="half"),
        Column("full_top1", "Full schedule, %", number(2), "the same method's mean with the full schedule"),
        Column("gain", "Gain over none", points, f"none has the full schedule; {SIMULTANEOUS}", low_high=("low", "high")),
        Column("p_adjusted", "p", p_value, "corrected for the comparisons of this table"),
        Column("claim", "Claim"),
        Column("ratio", f"{over} none", times, "without the teacher's training", low_high=("ratio_low", "ratio_high")),
        Column("with_teacher_ratio", f"with the teacher {over} none", times, "with all of the teacher's training"),
        Column("shared_teacher_ratio", f"shared by {SHARED_BY} {over} none", times, "with a share of the teacher's training"),
    )
    note = (
        "Each training has a schedule of its own length, and the teacher keeps the full one. Comparisons of this table are an "
        "exploratory family of their own. Steps cost what they cost in the full schedule."
    )
    return Table("equal-cost", "At equal cost", columns, found, note)
