"""TFD's answer from records: what was claimed, what was trained, how large its term and its gradient are along a training."""

from __future__ import annotations

import csv

import pandas as pd

from bench.records.comparisons import Baseline
from bench.records.folders import GridFolder
from bench.records.record import Record
from reports.figures.gradient_shares import gradient_shares
from reports.gradients import shares
from reports.headline import busy_s, how, image, one_pair
from reports.report import Report
from reports.tables.gradient_shares import percent
from reports.tables.published import same_rule
from reports.tables.table import Column, Table, markdown_text, number, points, seconds, text


def claimed(published: pd.DataFrame) -> str:
    """Markdown: what the paper printed for each student, and by which rule.

    Args:
        published: rows of `reports.published.read` with `none` and `tfd` of each student, once.
    """
    rows = []
    for student, part in published.groupby("student", sort=True):
        by_method = part.set_index("method")
        none, tfd = by_method.loc[Baseline.NONE.value], by_method.loc["tfd"]
        gain = tfd["top1"] - none["top1"]
        alike = "yes" if same_rule(tfd, none) else "no"
        rows.append([student, none["top1"], how(none), tfd["top1"], how(tfd), gain, alike])
    names = ("student", "none", "none_how", "tfd", "tfd_how", "gain", "alike")
    columns = (
        Column("student", "student"),
        Column("none", "none, %", number(2)),
        Column("none_how", "its rule", text),
        Column("tfd", "tfd, %", number(2)),
        Column("tfd_how", "rule of tfd", text),
        Column("gain", "difference", points),
        Column("alike", "by one rule"),
    )
    return "\n".join(Table("", "", columns, pd.DataFrame(rows, columns=list(names))).markdown_lines()) + "\n"


def trained(folder: GridFolder) -> str:
    """Markdown: what was trained for it, where and for how long, and the teacher's accuracy."""
    report = Report.of_grid(folder)
    pair = one_pair(report)
    students = pair.runs["id"].to_list()
    teachers = [record for record in report.records if record.id not in students]
    methods = ", ".join(f"{row.label} ({row.n:.0f})" for row in pair.methods.itertuples())
    hardware = "; ".join(sorted({f"{record.hardware}, torch {record.machine.versions['torch']}" for record in report.records}))
    found = [
        f"- {pair.full_title}; methods, with seeds: {methods}",
        *(f"- the teacher has {record.accuracies.last.top1:.2f} % after its last epoch" for record in teachers),
        f"- {len(report.records)} trainings in {' and '.join(sorted({record.cell.precision for record in report.records}))}, "
        f"which took {seconds(busy_s(report.records))} on {hardware}",
        *_term(folder, report.records),
    ]
    return "\n".join(found) + "\n"


def full_length(folder: GridFolder, published: pd.DataFrame) -> str:
    """Markdown: accuracies after the last epoch and at the best one, beside those that were published.

    Args:
        published: of the pair's student, a row for each method.
    """
    report = Report.of_grid(folder)
    pair, theirs = one_pair(report), published.set_index("method")
    rows = [
        {
            "method": record.cell.label,
            "last": record.accuracies.last.top1,
            "best": record.accuracies.best_test.top1,
            "theirs": theirs["top1"].get(record.cell.label),
            "how": how(theirs.loc[record.cell.label]) if record.cell.label in theirs.index else None,
        }
        for record in sorted(report.records, key=lambda record: (record.cell.label != Baseline.NONE.value, record.cell.label))
    ]
    columns = (
        Column("method", pair.full_title.partition(",")[0]),
        Column("last", "last epoch, %", number(2)),
        Column("best", "best epoch on the test set, %", number(2)),
        Column("theirs", "published, %", number(2)),
        Column("how", "its rule", text),
    )
    hardware = "; ".join(sorted({f"{record.hardware}, torch {record.machine.versions['torch']}" for record in report.records}))
    found = [
        *Table("", "", columns, pd.DataFrame(rows)).markdown_lines(),
        "",
        f"{markdown_text(pair.full_title)}, one seed: {len(rows)} trainings "
        f"in {seconds(busy_s(report.records))} on {hardware}.",
    ]
    return "\n".join(found) + "\n"


def _term(folder: GridFolder, records: tuple[Record, ...]) -> list[str]:
    """How large TFD's term is beside the cross-entropy, after the first and the last epoch, over seeds."""
    shares = []
    for record in records:
        if record.cell.method["type"] == "tfd":
            rows = list(csv.DictReader(folder.cell(record.id).curves(record).splitlines()))
            shares.append([float(row["loss_tfd"]) / float(row["loss_ce"]) for row in (rows[0], rows[-1])])
    if not shares:
        return []
    begin, end = (100 * sum(share) / len(shares) for share in zip(*shares, strict=True))
    return [
        f"- the term of tfd is {begin:.2f} % of the cross-entropy in the first epoch and {end:.2f} % in the last (mean of "
        f"{len(shares)} seeds; values of the loss, not gradients)"
    ]


def gradient(folder: GridFolder) -> str:
    """Markdown: the share of TFD's gradient along a training, from a grid of one pair that was trained with `GradientShares`.

    Raises:
        ValueError: it has another number of pairs, or no gradients of tfd.
    """
    [pair] = Report.of_grid(folder).pairs
    along = shares(pair)
    along = along[along["label"].eq("tfd") & along["term"].eq("tfd")]
    if along.empty:
        raise ValueError(f"{folder.name}: no gradients of tfd")
    start, largest, end = along.iloc[0], along.loc[along["of_ce"].idxmax()], along.iloc[-1]
    seeds = f"{start['n']:.0f} seed{'s' * int(start['n'] > 1)}"
    least, most = (number(2)(value) for value in (along["cosine"].min(), along["cosine"].max()))
    lines = [
        *image(folder, gradient_shares(pair)),
        f"- {markdown_text(pair.full_title)}, {seeds}; each value is a mean over eight batches",
        f"- the gradient of tfd's term has {percent(start['of_ce'])} of the norm of the cross-entropy's at the start, "
        f"{percent(largest['of_ce'])} at most (when epoch {largest['epoch']:.0f} begins), and {percent(end['of_ce'])} when the "
        "last epoch begins",
        f"- the cosine of the angle between the two lies between {least} and {most}",
    ]
    return "\n".join(lines) + "\n"
