"""How many students must share a teacher before it pays."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench import stats
from bench.stats import Verdict
from reports.pair import Pair
from reports.summary import Baseline
from reports.tables import tables_of_pair
from reports.tables.table import Column, Table, students

NOTE = "Smallest number of students sharing one teacher at which training seconds per point gained fall below the rival's."


@tables_of_pair(60)
def break_even(pair: Pair) -> Table:
    """Each method with a teacher against each without."""
    rows = []
    methods = pair.methods[["label", "needs", "baseline", "train_s", "teacher_s", "gain", "verdict"]].to_dict("records")
    for distilled in (method for method in methods if method["needs"] == "teacher"):
        for free in (method for method in methods if method["needs"] != "teacher" and method["baseline"] != Baseline.NONE):
            own, rival = (distilled["train_s"], distilled["gain"]), (free["train_s"], free["gain"])
            shown = distilled["verdict"] == free["verdict"] == Verdict.BETTER
            sharing = stats.break_even(*own, distilled["teacher_s"], *rival)
            rows.append({"label": distilled["label"], "rival": free["label"], "students": sharing, "both_shown": shown})
    columns = (
        Column("label", "With a teacher"),
        Column("rival", "Without"),
        Column("students", "Students that must share", students),
        Column("basis", "Basis"),
    )
    frame = pd.DataFrame(rows, columns=["label", "rival", "students", "both_shown"])
    frame["basis"] = np.where(frame["both_shown"].astype(bool), "both gains shown", "gain not shown: a guess")
    frame = frame[frame["students"].notna()].sort_values(["both_shown", "students"], ascending=[False, True])
    title = f"{pair.full_title}: how many students must share a teacher before it pays"
    return Table(f"{pair.name}-break-even", title, columns, frame, NOTE)
