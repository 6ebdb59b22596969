"""Where the time of a training step goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bench.records.comparisons import Baseline
from bench.records.naming import method_family
from bench.records.record import PARTS_IN_CODE, Cost
from reports.bill import UNKNOWN, Turns, relative
from reports.frame import place
from reports.pair import Pair, slug
from reports.report import Report
from reports.tables import tables_of_pair, tables_of_report
from reports.tables.table import Column, Table, number, times

NOTE = (
    "Median and quartiles over the turns; of ratios within a turn the median and its 95 % interval. "
    "The parts are measured apart and need not add up to the whole step."
)


@tables_of_pair(50)
def step(pair: Pair) -> Table:
    """The steps of one pair's methods."""
    costs = {pair.labels[method_id]: cost for method_id, cost in pair.costs.items()}
    none = pair.baseline(Baseline.NONE)
    plain = pair.costs.get(none["method_id"]) if none else None
    return step_parts(costs, plain, f"{pair.name}-step", f"{pair.full_title}: where a step's time goes")


@tables_of_report(50, section="steps")
def steps_of_untrained_cells(report: Report) -> list[Table]:
    """What was timed of cells that are not trained yet: a table for each session of the probe."""
    trained = set(report.frame["cost_key"])
    families = {cell["id"]: cell.get("family") for cell in report.manifest["cells"]}
    sessions: dict[tuple[str, str], list[Cost]] = {}
    for cost in report.costs:
        if cost.example in families and cost.key not in trained:
            sessions.setdefault((place(cost), cost.session), []).append(cost)
    found = []
    for index, ((where, _), together) in enumerate(sorted(sessions.items())):
        several = len({cost.teacher for cost in together if cost.teacher}) > 1
        behind = [f", {cost.teacher}" if several and cost.teacher else "" for cost in together]
        named = {report.style.named(cost.label) + more: cost for cost, more in zip(together, behind, strict=True)}
        kinds = [method_family(cost.method) if cost.method else families[cost.example] for cost in together]
        plain = next((cost for cost, family in zip(together, kinds, strict=True) if family == Baseline.NONE), None)
        student = together[0].student
        title = f"{student}: where a step's time goes, on {where}"
        found.append(step_parts(named, plain, f"steps-{index + 1}-{slug(student)}", title))
    return found


def step_parts(costs: Mapping[str, Cost], plain: Cost | None, name: str, title: str) -> Table:
    """Each method's training step and its parts, with quartiles; relative to the plain student's step, and the teacher's share
    relative to its forward pass timed alone.

    Args:
        costs: by label.
        plain: of the plain student, one of them; None where it was not timed.
    """
    rows = [_row(label, cost, plain) for label, cost in costs.items()]
    parts = {key.removesuffix("_low_ms"): None for row in rows for key in row if key.endswith("_low_ms")}  # in order, once
    timings = [
        Column(f"{part}_ms", f"{_title(part)}, ms", number(2), low_high=(f"{part}_low_ms", f"{part}_high_ms")) for part in parts
    ]
    step_ratio = Column("ratio", "Step ÷ none", times, "95 % interval", low_high=("ratio_low", "ratio_high"))
    columns = [Column("label", "Method"), *timings[:1], step_ratio, *timings[1:]]
    if any("alone_ms" in row for row in rows):
        columns += [
            Column("alone_ms", "Teacher alone, ms", number(2), "its forward pass, with nothing around it"),
            Column("alone", "Teacher ÷ alone", times, "95 % interval", low_high=("alone_low", "alone_high")),
        ]
    columns.append(Column("turns", "Turns", number(0)))
    frame = pd.DataFrame(rows).sort_values("step_ms", ignore_index=True) if rows else pd.DataFrame()
    return Table(name, title, tuple(columns), frame, NOTE)


def _title(part: str) -> str:
    return PARTS_IN_CODE.get(part, part).capitalize()


def _row(label: str, cost: Cost, plain: Cost | None) -> dict[str, Any]:
    timings = {"step": cost.step, **cost.parts}
    timings |= {"preparation": cost.prepare_step} if cost.prepare_step else {}
    row: dict[str, Any] = {"label": label, "turns": len(cost.step.turns_ms)}
    for part, timing in timings.items():
        row |= {f"{part}_ms": timing.median_ms, f"{part}_low_ms": timing.low_ms, f"{part}_high_ms": timing.high_ms}
    step = teacher = UNKNOWN
    if plain and plain is not cost:
        medians = cost.step.median_ms, plain.step.median_ms
        step = relative(Turns.of_step(cost, cost.step), Turns.of_step(plain, plain.step), medians)
    if alone := cost.teacher_alone:
        row["alone_ms"] = alone.median_ms
        teacher = relative(Turns.of_step(cost, cost.parts["teacher"]), Turns.of_step(cost, alone))
    for found, prefix in ((step, "ratio"), (teacher, "alone")):
        row |= {prefix: found.value, f"{prefix}_low": found.low, f"{prefix}_high": found.high}
    return row
