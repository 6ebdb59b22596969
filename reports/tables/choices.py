"""How values of hyper-parameters were chosen on held-out images, where a grid asks for that."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pandas as pd

from reports.design import Trial
from reports.frame import by_pair
from reports.report import Report
from reports.tables import tables_of_report
from reports.tables.table import Column, Table, number


@tables_of_report(18, section="across")
def choices(report: Report) -> Table | None:
    """One row a choice: what was tried, what was chosen, and by how much."""
    by_choice: dict[int, list[Trial]] = defaultdict(list)
    for trial in report.design.trials:
        by_choice[trial.choice].append(trial)
    if not by_choice or not report.pairs:
        return None
    rows = by_pair(report.frame)
    rows = rows.assign(choice=rows["id"].map(report.design.choices))
    found = []
    for choice, trials in by_choice.items():
        chosen = rows[rows["choice"] == choice]
        if len(chosen):
            found.append(_row(trials, chosen.iloc[0].to_dict()) | {"top1": chosen["top1"].mean()})
    if not found:
        return None
    columns = (
        Column("pair", "Pair"),
        Column("family", "Method"),
        Column("values", "Values", number(0), "tried, each with all seeds of the trials"),
        Column("seeds", "Seeds", number(0), "of the trials alone"),
        Column("label", "Chosen"),
        Column("validation", "Held-out %", number(2), "of the chosen value: mean after the last epoch"),
        Column("next", "Next best %", number(2), "of the value that came second"),
        Column("top1", "Test %", number(2), "of the chosen value, trained on all of the training set with the grid's seeds"),
    )
    frame = pd.DataFrame(found)
    return Table("choices", "Hyper-parameters chosen on held-out images", columns, frame, _note(report, frame))


def _row(trials: list[Trial], chosen: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, list[float]] = defaultdict(list)
    for trial in trials:
        values[trial.group].append(trial.validation)
    labels = {trial.group: trial.label for trial in trials}
    means = {group: sum(each) / len(each) for group, each in values.items()}
    own = [mean for group, mean in means.items() if labels[group] == chosen["label"]]
    best = max((mean for mean in means.values() if not math.isnan(mean)), default=math.nan)
    mine = own[0] if own else best  # a style may have renamed the label
    others = sorted((mean for mean in means.values() if not math.isnan(mean)), reverse=True)[1:]
    facts = {"pair": chosen["pair"], "family": chosen["family"], "label": chosen["label"]}
    seeds = len({trial.seed for trial in trials})
    return facts | {"values": len(values), "seeds": seeds, "validation": mine, "next": others[0] if others else math.nan}


def _note(report: Report, frame: pd.DataFrame) -> str:
    """Whether all methods had as many values, and which had no choice."""
    budgets = frame.drop_duplicates("family").set_index("family")["values"]
    note = "Test images took no part in the choice; the trials are on each method's bill (with the search). "
    if budgets.nunique() > 1:
        listed = ", ".join(f"{name} {count}" for name, count in budgets.items())
        note += f"Budgets of values differ ({listed}): more values favor a method."
    else:
        note += f"Equal budgets: {budgets.iloc[0]} values for each."
    methods = report.summary.drop_duplicates("label")
    fixed = [row.label for row in methods.itertuples() if row.family not in set(budgets.index) and row.family != "none"]
    return note + (f" Without a choice, at the values that the grid names: {', '.join(map(str, fixed))}." if fixed else "")
