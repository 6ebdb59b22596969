"""Methods at the plain student's cost: trained for another number of epochs (`equal_cost` in a grid), beside the full schedule.

This is the one place where settings that differ in their epochs are compared. A schedule that is merely cut short would not do:
its learning rate has not fallen yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from bench import stats
from bench.records.comparisons import Baseline
from reports import bill, gains
from reports.design import Group, stem
from reports.frame import AT_EQUAL_COST, PAIR_COLUMNS, by_pair, place, sharing
from reports.report import Report
from reports.summary import claim

MEANS = [
    *("top1", "epochs", "steps", "prepare_steps", "train_s", "with_teacher_s", "shared_teacher_s"),
    *("flops", "with_teacher_flops", "shared_teacher_flops"),
]
FACTS = ["label", "needs", "where", "cost_key", "method_id"]
COLUMNS = [
    *("pair", "label", "epochs", "full_epochs", "n", "top1", "half", "full_top1", "gain", "low", "high", "p_adjusted", "claim"),
    *("ratio", "ratio_low", "ratio_high", "cost_word", "with_teacher_ratio", "shared_teacher_ratio", "cost_unit"),
]


def at_equal_cost(report: Report) -> pd.DataFrame:
    """One row for every method and number of epochs of `equal_cost`, with its gain over `none` of the full schedule.

    The gains are an exploratory family of their own. Costs are those of the full schedule's steps, times fewer of them.
    """
    shortened = list(_shortened(report))
    if not shortened:
        return pd.DataFrame(columns=COLUMNS)
    runs = gains.runs_of(by_pair(report.frame), report.design)
    compared = {}
    for index, (row, own, plain, _) in enumerate(shortened):
        theirs = runs[(*(plain[name] for name in PAIR_COLUMNS), plain["method_id"])]
        compared[(str(index), *gains.key_of(row, plain)[1:])] = own, theirs
    decided = list(gains.beside_none(compared, report.design).values())
    plains = [plain for _, _, plain, _ in shortened]
    costs = pd.DataFrame([row for row, *_ in shortened] + plains).drop_duplicates([*PAIR_COLUMNS, "method_id", "epochs"])
    costs = bill.with_ratios(_unsearched(costs), {(place(cost), cost.key): cost for cost in report.costs})
    priced = costs.to_dict("records")[: len(shortened)]
    rows = []
    for (row, _, plain, full), gain, prices in zip(shortened, decided, priced, strict=True):
        more = {"pair": plain["pair"], "full_epochs": plain["epochs"], "full_top1": full}
        rows.append(prices | gain | row | more | {"claim": claim(gain["word"], gain["gain"])})
    return pd.DataFrame(rows)[COLUMNS]


def _shortened(report: Report) -> Iterator[tuple[dict[str, Any], gains.Runs, dict[str, Any], float]]:
    """(means, trainings, the plain student's row of the summary, mean top-1 of the full schedule) of each row."""
    rows = report.frame[report.frame["role"] == AT_EQUAL_COST]
    if rows.empty or report.summary.empty:
        return
    rows = rows.assign(
        pair_teacher=rows["teacher"].where(rows["needs"] == "teacher", ""),
        with_teacher_flops=rows["flops"] + rows["teacher_flops"],
        shared_teacher_flops=rows["flops"] + rows["teacher_flops"] / sharing(rows),
    )
    students = report.frame[report.frame["role"] == "student"]
    rows["setting"] = rows["cost_key"].map(students.drop_duplicates("cost_key").set_index("cost_key")["setting"])
    own_keys = {record.id: record.cell.cost_key for record in report.records}
    for _, part in rows.groupby([*PAIR_COLUMNS, "method_id", "epochs"], sort=False):  # without what has no full schedule yet
        full = report.summary[(report.summary["setting"] == part["setting"].iloc[0])]
        full = full[full["student"] == part["student"].iloc[0]]
        if (part["needs"] == "teacher").any():
            full = full[full["pair_teacher"] == part["pair_teacher"].iloc[0]]
        plain = full[full["baseline"] == Baseline.NONE].to_dict("records")
        if not plain:
            continue
        place_of = {name: plain[0][name] for name in PAIR_COLUMNS}
        row = place_of | part[MEANS].mean().to_dict() | part[FACTS].iloc[0].to_dict() | {"baseline": None}
        row |= {"n": part["seed"].nunique(), "half": stats.half_interval(part["top1"])}
        [runs] = gains.runs_of(part.assign(**place_of), report.design).values()
        group = Group(frozenset(own_keys[cell] for cell in part["id"]), frozenset(map(stem, part["id"])))
        runs = runs._replace(group=group, lacking=report.design.lacking(group))
        same = full[full["method_id"] == row["method_id"]]["top1"]
        yield row, runs, {str(name): value for name, value in plain[0].items()}, float(same.iloc[0])


def _unsearched(costs: pd.DataFrame) -> pd.DataFrame:
    return costs.assign(with_search_s=costs["shared_teacher_s"], with_search_flops=costs["shared_teacher_flops"])
