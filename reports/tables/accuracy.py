"""Accuracies and gains of one pair, and of all pairs."""

from __future__ import annotations

from bench.records.comparisons import Baseline
from reports.pair import Pair
from reports.report import Report
from reports.tables import tables_of_pair, tables_of_report
from reports.tables.table import Column, Table, number, p_value, points, seconds, text, times

SIMULTANEOUS = "simultaneous 95 % interval: it leaves out 0 where the difference is shown"
SUMMARY = (
    Column("setting", "Setting"),
    Column("pair", "Pair"),
    Column("label", "Method"),
    Column("n", "n", number(0)),
    Column("top1", "Top-1 %", number(2), plus_minus="half"),
    Column("gain", "Gain", points),
    Column("p_adjusted", "p", p_value),
    Column("claim", "Claim"),
    Column("train_s", "Training", seconds),
    Column("with_teacher_s", "+ teacher", seconds),
    Column("ratio", "÷ none", times, low_high=("ratio_low", "ratio_high")),
    Column("cost_word", "Costs"),
    Column("with_teacher_ratio", "+ teacher", times),
)


@tables_of_report(0, section="files")
def every_method(report: Report) -> Table | None:
    return Table("summary", "Every method of every pair", SUMMARY, report.summary) if report.pairs else None


@tables_of_pair(10)
def accuracy(pair: Pair) -> Table:
    """Accuracies and gains."""
    part = pair.methods
    mean = "mean ± half its 95 % t-interval; nothing was chosen"
    columns = [
        Column("label", "Method"),
        Column("n", "n", number(0), "seeds"),
        Column("top1", "Top-1 %, last epoch", number(2), mean, plus_minus="half"),
    ]
    if pair.baseline(Baseline.NONE):
        columns += [
            Column("gain", "Gain over none", points, f"points, paired by seed, {SIMULTANEOUS}", low_high=("low", "high")),
            Column("n_paired", "n, paired", number(0), "seeds that both have"),
            Column("p_adjusted", "p", p_value, "paired t, corrected for the grid's comparisons and for looks"),
            Column("claim", "Claim", text, "at 5 % family-wise; open means neither"),
            Column("detectable", "Detectable", number(2), "true gain that this design would have shown with 80 % probability"),
            Column("correlation", "r", number(2), "correlation with none over the seeds: above 0 pairing helps"),
        ]
    if kd := pair.baseline(Baseline.KD):
        against = f"likewise, against {kd['label']}"
        columns += [
            Column("gain_kd", f"Gain over {kd['label']}", points, against, low_high=("low_kd", "high_kd")),
            Column("p_adjusted_kd", f"p over {kd['label']}", p_value, "likewise"),
            Column("claim_kd", f"Claim over {kd['label']}", text, "likewise"),
        ]
    if (part["failed"] > 0).any():
        columns.append(Column("failed", "Failed", number(0), "trainings; what lost one is at most suggested"))
    columns.append(Column("flattery", "Best epoch adds", points, "points gained by choosing the epoch on the test set"))
    if part["chosen_top1"].notna().any():
        chosen = "test accuracy at the epoch chosen on held-out images"
        columns.append(Column("chosen_top1", "Epoch by validation", number(2), chosen))
    uneven = part[(part["unpaired"].fillna(0) > 0) | (part["unpaired_kd"].fillna(0) > 0)]["label"]
    note = f"Seeds differ: {', '.join(uneven)} and the baseline were paired by the seeds that both have." if len(uneven) else ""
    return Table(f"{pair.name}-accuracy", f"{pair.full_title}: accuracy", tuple(columns), part, note)
