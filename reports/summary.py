"""The tidy frame to one line for every method of every pair: what tables, figures and sentences are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from bench import stats
from bench.records.comparisons import Baseline
from bench.records.record import Cost
from bench.stats import SHOWN, Word
from reports import bill, gains
from reports.design import Design
from reports.frame import PAIR_COLUMNS, by_pair, place, sharing

_MEANS = [
    *("top1", "top5", "best_top1", "flattery", "chosen_top1", "train_s", "train_s_low", "train_s_high", "teacher_s"),
    *("with_teacher_s", "shared_teacher_s", "flops", "teacher_flops", "with_teacher_flops", "shared_teacher_flops", "step_ms"),
    *("peak_mib", "energy_kj", "train_only", "host_peak_mib", "parameters", "latency_ms", "images_per_s"),
    *("steps", "prepare_steps", "epochs", "energy_kj_low", "energy_kj_high"),
]
_FACTS = ["label", "family", "at_defaults", "needs", "where", "cost_key", "tuned_elsewhere"]


def summary(frame: pd.DataFrame, costs: Iterable[Cost] = (), design: Design | None = None) -> pd.DataFrame:
    """Every method of every pair in one line, best first within its pair.

    Columns beside the pair's: method_id, label, family, at_defaults, needs; baseline (`none` or `kd` where the method is what
    others of its pair are compared with); n, failed (trainings), top1 and half (mean and half its 95 % interval), best_top1,
    flattery, chosen_top1; what `reports.gains.COLUMNS` names, and claim (its word and direction as text), against `none` and,
    suffixed `_kd`, against `kd`; low and high are simultaneous: of the level of the word. train_s, with_teacher_s,
    shared_teacher_s, with_search_s, teacher_s and the same in FLOPs; ratio, with_teacher_ratio, shared_teacher_ratio,
    with_search_ratio (to what `none` costs: seconds where timed, else FLOPs), ratio_low, ratio_high, cost_word, and the same
    suffixed `_kd`; cost_unit; teachers (how many trainings of the teacher were used); tuned (how its values were found).

    Args:
        costs: of the probe; without them ratios of seconds have no interval.
        design: of the grid; by default nothing is primary, and nothing is missing.
    """
    design = design or Design()
    rows = by_pair(frame)
    rows = rows.assign(with_teacher_flops=rows["flops"] + rows["teacher_flops"])
    rows["shared_teacher_flops"] = rows["flops"] + rows["teacher_flops"] / sharing(rows)
    groups = rows.groupby([*PAIR_COLUMNS, "pair", "method_id"], sort=False)
    table = groups[_MEANS].mean()
    table[_FACTS] = groups[_FACTS].first()
    table["n"] = groups["seed"].nunique()
    table["half"] = groups["top1"].agg(stats.half_interval)
    table["teachers"] = groups["teacher_id"].nunique()
    table = table.reset_index()
    runs = gains.runs_of(rows, design)
    table["failed"] = [
        runs[key].lacking.failed for key in table[[*PAIR_COLUMNS, "method_id"]].itertuples(index=False, name=None)
    ]
    table["baseline"] = _roles(table)
    table = _with_gains(table, rows, design)
    table = bill.with_searches(table, rows, design)
    table = bill.with_ratios(table, {(place(cost), cost.key): cost for cost in costs})
    return table.sort_values([*PAIR_COLUMNS, "top1"], ascending=[True, True, True, False], ignore_index=True)


def stands_for(part: pd.DataFrame, baseline: Baseline) -> str | None:
    """The `method_id` that is this baseline among one pair's rows of the summary.

    It is the only method of the baseline's family, else the only one of them at today's defaults, else none: a choice by
    accuracy would favor the baseline.
    """
    found = part[part["family"] == baseline]
    if len(found) > 1:
        found = found[found["at_defaults"].astype(bool)]
    return str(found["method_id"].iloc[0]) if len(found) == 1 else None


def _roles(table: pd.DataFrame) -> pd.Series:
    """Which baseline each row is, or None."""
    roles = pd.Series([None] * len(table), index=table.index, dtype=object)
    for _, part in table.groupby(PAIR_COLUMNS, sort=False):
        for baseline in Baseline:
            chosen = stands_for(part, baseline)
            roles[part.index[part["method_id"] == chosen]] = baseline
    return roles


def _with_gains(table: pd.DataFrame, rows: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Every method's gain over the baselines of its pair."""
    compared = gains.compare(table, rows, design)
    columns = [*PAIR_COLUMNS, "method_id", "needs", "baseline"]
    methods = table[columns].to_dict("records")
    bases = {(*(row[name] for name in PAIR_COLUMNS), row["baseline"]): row for row in methods if row["baseline"]}
    for baseline, suffix in bill.SUFFIX.items():
        found: list[dict[str, Any]] = []
        for row in methods:
            base = bases.get((*(row[name] for name in PAIR_COLUMNS), baseline))
            found.append(compared.get(gains.key_of(row, base), {}) if base else {})
        part = pd.DataFrame(found, columns=gains.COLUMNS, index=table.index)
        part["word"] = part["word"].astype(object).where(part["word"].notna(), None)
        part["claim"] = [claim(*values) for values in zip(part["word"], part["gain"], strict=True)]
        table = pd.concat([table, part.add_suffix(suffix)], axis=1)
    return table


def claim(word: Word | None, gain: float) -> str:
    """A word and its direction: 'gain shown', 'loss suggested', 'open'."""
    if word is None or word not in (*SHOWN, Word.SUGGESTED):
        return str(word or "")
    return f"{'gain' if gain > 0 else 'loss'} {word}"


def shown_above(row: dict[str, Any], suffix: str = "") -> bool:
    """Whether a gain is shown: its interval lies above 0."""
    return row["word" + suffix] in SHOWN and row["gain" + suffix] > 0 and not math.isnan(row["low" + suffix])
