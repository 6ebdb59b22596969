"""How large the gradients of loss terms are along a training."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from reports.gradients import shares
from reports.pair import Pair
from reports.tables import tables_of_pair
from reports.tables.table import NOTHING, Column, Table, number

NOTE = (
    "Norms of gradients over the student's parameters, when the first and the last epoch begin: means over fixed training "
    "batches and over seeds. Each term has its weight. Norms do not add up, since gradients point in different directions. "
    "The cosine is of the angle to the cross-entropy's gradient: 1 where both point the same way."
)
PARTS = (("of_ce", "÷ cross-entropy's"), ("of_loss", "÷ loss's"), ("cosine", "Cosine"))


def percent(share: Any) -> str:
    """A fraction as '0.36 %' or '120 %': two digits that count."""
    if share is None or math.isnan(share):
        return NOTHING
    digits = -1 - math.floor(math.log10(abs(share))) if share else 0
    return f"{100 * share:,.{max(0, digits)}f} %"


@tables_of_pair(75)
def gradient_shares(pair: Pair) -> Table:
    """Each term's gradient beside the cross-entropy's and the loss's, in the first epoch and in the last."""
    rows = []
    for (label, term), along in shares(pair).groupby(["label", "term"], sort=False):
        row = {"label": label, "term": term, "n": along["n"].iloc[0]}
        for part, _ in PARTS:
            row |= {f"{part}_first": along[part].iloc[0], f"{part}_last": along[part].iloc[-1]}
        rows.append(row)
    columns = [Column("label", "Method"), Column("term", "Term"), Column("n", "Seeds", number(0))]
    for part, title in PARTS:
        write = number(2) if part == "cosine" else percent
        columns += [Column(f"{part}_{which}", f"{title}, {which} epoch", write) for which in ("first", "last")]
    frame = pd.DataFrame(rows)
    return Table(f"{pair.name}-gradients", f"{pair.full_title}: gradients of loss terms", tuple(columns), frame, NOTE)
