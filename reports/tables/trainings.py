"""The trainings behind a mean: how far they spread, how many failed, and how the networks fit beyond their accuracy."""

from __future__ import annotations

import pandas as pd

from reports.pair import Pair
from reports.tables import tables_of_pair
from reports.tables.table import Column, Table, number

COLUMNS = (
    Column("label", "Method"),
    Column("n", "n", number(0), "trainings that ended"),
    Column("failed", "Failed", number(0), "trainings; a seed that failed is not replaced"),
    Column("lowest", "Lowest, %", number(2), "top-1 of the last epoch; a rare collapse shows here, and breaks a t-test"),
    Column("median", "Median, %", number(2)),
    Column("highest", "Highest, %", number(2)),
    Column("train_top1", "Training, %", number(2), "training images right in the end, without augmentation; mean"),
    Column("test_nll", "Test NLL", number(3), "mean negative log-likelihood, nats"),
    Column("test_calibration_error", "Calibration error, %", number(2), "expected, over 15 bins of confidence"),
)


@tables_of_pair(12)
def trainings(pair: Pair) -> Table:
    """Quantiles of the accuracies, failures, and fit; columns that no record has a value of are left out."""
    runs = pair.runs.groupby("method_id", sort=False)
    frame = pair.methods[["label", "method_id", "n", "failed"]].set_index("method_id")
    quantiles = runs["top1"].agg(lowest="min", median="median", highest="max")
    fit = runs[["train_top1", "test_nll", "test_calibration_error"]].mean()
    frame = frame.join(quantiles).join(fit).reset_index()
    shown = tuple(column for column in COLUMNS if frame[column.key].notna().any())
    return Table(f"{pair.name}-trainings", f"{pair.full_title}: single trainings", shown, pd.DataFrame(frame))
