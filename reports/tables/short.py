"""What a reader sees first: accuracy, gain and cost of one pair in one table, and every method on every pair at a glance."""

from __future__ import annotations

import pandas as pd

from bench.records.comparisons import Baseline
from reports.frame import SHARED_BY
from reports.pair import Pair
from reports.report import Report
from reports.tables import tables_of_pair, tables_of_report
from reports.tables.marks import LEGEND
from reports.tables.table import Column, Table, number, points, times


@tables_of_pair(5, section="top")
def short(pair: Pair) -> Table:
    """Accuracy, gain and cost in one table, best first."""
    part = pair.methods
    over = "FLOPs" if part["cost_unit"].iloc[0] == "FLOPs" else "Cost"
    mean = "mean of the last epoch over the seeds ± half its 95 % t-interval"
    gain = "points over none, paired by seed, with the simultaneous 95 % interval"
    columns = (
        Column("label", "Method"),
        Column("n", "n", number(0), "seeds"),
        Column("top1", "Top-1 %", number(2), mean, plus_minus="half"),
        Column("gain", "Gain", points, gain, low_high=("low", "high"), mark="claim"),
        Column("ratio", f"{over} ÷ none", times, "of the training, the teacher's own not counted"),
        Column("with_teacher_ratio", "with its teacher", times, "with all of the teacher's training, ÷ none"),
        Column("shared_teacher_ratio", f"shared by {SHARED_BY}", times, "with its share of the teacher's training, ÷ none"),
    )
    shown = tuple(column for column in columns if column.key == "label" or part[column.key].notna().any())
    title = f"{pair.full_title}: accuracy and cost"
    return Table(f"{pair.name}-short", title, shown, part, f"Gains over none: {LEGEND}")


@tables_of_report(5, section="matrix")
def matrix(report: Report) -> Table | None:
    """Gains over `none`, a column a pair, and the mean over the pairs of each setting that has several."""
    compared = report.summary[report.summary["gain"].notna()] if len(report.pairs) > 1 else pd.DataFrame()
    if compared.empty:
        return None
    frame = compared.drop_duplicates("method_id")[["label", "method_id"]].set_index("method_id")
    columns = [Column("label", "Method")]
    for index, (setting, part) in enumerate(report.over.groupby("setting", sort=False)):
        own = part.set_index("method_id")
        frame[f"over_{index + 1}"], frame[f"over_claim_{index + 1}"] = own["gain"], own["claim"]
        several = report.over["setting"].nunique() > 1
        title = "Mean over pairs" + f", {setting}" * several
        about = "of each method, these pairs and teachers"
        columns.append(Column(f"over_{index + 1}", title, points, about, mark=f"over_claim_{index + 1}"))
    several = len({pair.setting for pair in report.pairs}) > 1
    for index, pair in enumerate(report.pairs):
        own = pair.methods[pair.methods["baseline"] != Baseline.NONE].set_index("method_id")
        frame[f"gain_{index + 1}"], frame[f"claim_{index + 1}"] = own["gain"], own["claim"]
        title = pair.full_title if several else pair.title
        columns.append(Column(f"gain_{index + 1}", title, points, mark=f"claim_{index + 1}"))
    order = frame[[column.key for column in columns[1:]]].mean(axis=1).sort_values(ascending=False).index
    note = f"Gain over none, which has no row, in points: {LEGEND}"
    return Table("matrix", "Every method on every pair", tuple(columns), frame.loc[order].reset_index(), note)
