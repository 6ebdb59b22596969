"""What methods cost in training: ratios within a turn of the probe, and four prices.

The prices: without the teacher's training, with all of it, with a share of it, and the third one with the search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.records.comparisons import Baseline
from bench.records.record import Cost, Timing
from bench.stats import CostRatio, CostWord, apart_ratio, flops_ratio, time_ratio, with_search
from reports.design import Design, Group, Trial
from reports.frame import PAIR_COLUMNS

SUFFIX = {Baseline.NONE: "", Baseline.KD: "_kd"}  # of the columns that compare with it


class Turns(NamedTuple):
    """What one method cost in every turn of a session of the probe."""

    session: str
    values: np.ndarray

    @classmethod
    def of_step(cls, cost: Cost, timing: Timing) -> Turns:
        return cls(cost.session, np.array(timing.turns_ms))


UNKNOWN = CostRatio(math.nan, math.nan, math.nan, CostWord.UNKNOWN, "")


def in_turn(ours: Turns | None, theirs: Turns | None) -> bool:
    """Whether two costs were timed in the same turns."""
    return bool(ours and theirs and ours.session == theirs.session and len(ours.values) == len(theirs.values))


def relative(ours: Turns | None, theirs: Turns | None, medians: tuple[float, float] = (math.nan, math.nan)) -> CostRatio:
    """The ratio of two costs within a turn: median over the turns and its interval.

    What was not timed in turn has the ratio of the medians instead, which a drift of the machine may have moved.
    """
    if ours and theirs and in_turn(ours, theirs):
        return time_ratio(ours.values, theirs.values)
    return apart_ratio(*medians)


def training_turns(row: Mapping[str, Any], cost: Cost | None) -> Turns | None:
    """A training in ms, as if every step took as long as in one turn."""
    if cost is None:
        return None
    ms = row["steps"] * np.array(cost.step.turns_ms)
    if row["prepare_steps"] and cost.prepare_step:
        ms = ms + row["prepare_steps"] * np.array(cost.prepare_step.turns_ms)
    return Turns(cost.session, ms)


def with_ratios(table: pd.DataFrame, costs: Mapping[tuple[str, str], Cost]) -> pd.DataFrame:
    """Every method's training cost relative to that of `none` and of `kd` in its pair.

    Args:
        table: of the summary.
        costs: by (hardware, cost_key).
    """
    unit = "flops" if table["train_s"].isna().all() else "s"
    own = "flops" if unit == "flops" else "train_s"
    table = table.copy()
    index = pd.MultiIndex.from_frame(table[PAIR_COLUMNS])
    rows = table[["where", "cost_key", "steps", "prepare_steps", own]].to_dict("records")
    for baseline, suffix in SUFFIX.items():
        bases = {key: row for key, row, role in zip(index, rows, table["baseline"], strict=True) if role == baseline}
        found = [_ratio(row, bases.get(key), own, costs) for key, row in zip(index, rows, strict=True)]
        names = [f"ratio{suffix}", f"ratio{suffix}_low", f"ratio{suffix}_high"]
        table[names] = pd.DataFrame([ratio[:3] for ratio in found], columns=names, index=table.index)
        table[f"cost_word{suffix}"] = pd.Series([ratio.word for ratio in found], index=table.index, dtype=object)
        base = table[table["baseline"] == baseline].set_index(PAIR_COLUMNS)
        for price in ("with_teacher", "shared_teacher", "with_search"):
            theirs = base[f"{price}_{unit}"].reindex(index).to_numpy()
            table[f"{price}_ratio{suffix}"] = table[f"{price}_{unit}"] / theirs
    plain = table[table["baseline"] == Baseline.NONE].set_index(PAIR_COLUMNS)[own].reindex(index).to_numpy()
    for price in ("with_teacher", "shared_teacher", "with_search"):  # the turns' ratio, and what is added to it
        table[f"{price}_ratio"] = table["ratio"] + (table[f"{price}_{unit}"] - table[own]) / plain
    table["cost_unit"] = "FLOPs" if unit == "flops" else "training time"
    return table


def _ratio(
    row: Mapping[str, Any], other: Mapping[str, Any] | None, own: str, costs: Mapping[tuple[str, str], Cost]
) -> CostRatio:
    if other is None or other is row:
        return UNKNOWN._replace(value=1.0) if other is row else UNKNOWN
    if own == "flops":
        return flops_ratio(row[own], other[own])
    ours, theirs = (training_turns(each, costs.get((each["where"], each["cost_key"]))) for each in (row, other))
    return relative(ours, theirs, (row[own], other[own]))


def with_searches(table: pd.DataFrame, rows: pd.DataFrame, design: Design) -> pd.DataFrame:
    """The fourth price, in seconds and in FLOPs, and how a method's values were found.

    Columns: with_search_s, with_search_flops, tuned ('here, 4 values', 'elsewhere', or empty where nothing was searched).

    Args:
        table: of the summary, with the third price.
        rows: see `reports.frame.by_pair`.
    """
    table = table.copy()
    rows = rows.assign(search=rows["id"].map(design.searches))
    searched = rows[rows["search"].notna()]
    parts = dict(list(searched.groupby([*PAIR_COLUMNS, "search"], sort=False)))
    of_method = (
        searched.drop_duplicates([*PAIR_COLUMNS, "method_id"]).set_index([*PAIR_COLUMNS, "method_id"])["search"].to_dict()
    )
    choices = rows.assign(choice=rows["id"].map(design.choices)).dropna(subset="choice")
    chosen = choices.drop_duplicates([*PAIR_COLUMNS, "method_id"]).set_index([*PAIR_COLUMNS, "method_id"])["choice"].to_dict()
    found = []
    for row in table.to_dict("records"):
        pair = tuple(row[name] for name in PAIR_COLUMNS)
        number = of_method.get((*pair, row["method_id"]))
        prices = {"with_search_s": row["shared_teacher_s"], "with_search_flops": row["shared_teacher_flops"]}
        tuned = "elsewhere" if row["tuned_elsewhere"] else ""
        choice = chosen.get((*pair, row["method_id"]))
        if choice is not None:
            trials = [trial for trial in design.trials if trial.choice == choice]
            tuned = f"here, {len({trial.group for trial in trials})} values"
            prices = _with_trials(row, trials)
        elif number is not None:
            part = parts[(*pair, number)]
            others = part[part["method_id"] != row["method_id"]]
            outside = rows[~rows.index.isin(others.index)]
            tuned = f"here, {part['method_id'].nunique()} values"
            for unit, name in (("s", "train_s"), ("flops", "flops")):
                spent = _spent(others, name, design)
                teachers = _only_theirs(others, outside, "teacher_s" if unit == "s" else "teacher_flops")
                prices[f"with_search_{unit}"] = with_search(row[f"shared_teacher_{unit}"], spent, teachers)
        found.append(prices | {"tuned": tuned})
    names = ["with_search_s", "with_search_flops", "tuned"]
    table[names] = pd.DataFrame(found, columns=names, index=table.index)
    return table


def _with_trials(row: Mapping[str, Any], trials: Sequence[Trial]) -> dict[str, float]:
    """The fourth price of a method whose values trials have chosen, with the teachers that they alone had.

    Trials take as long a FLOP as the chosen value, and their teachers as its teacher; a failed one counts as the mean.
    """
    own = np.array([trial.flops for trial in trials])
    flops = float(np.nanmean(own)) * len(own) if np.isfinite(own).any() else math.nan
    teachers = sum({trial.teacher: trial.teacher_flops for trial in trials}.values())
    taught = row["teacher_s"] / row["teacher_flops"] if row["teacher_flops"] else 0.0
    spent_s = row["train_s"] * flops / row["flops"]
    return {
        "with_search_s": with_search(row["shared_teacher_s"], spent_s, teachers * taught),
        "with_search_flops": with_search(row["shared_teacher_flops"], flops, teachers),
    }


def _spent(others: pd.DataFrame, cost: str, design: Design) -> float:
    """All trainings of the other values; a failed one counts as much as its method's others."""
    total = 0.0
    for _, part in others.groupby("method_id"):
        total += part[cost].sum(min_count=1) + design.lacking(Group.of(part)).failed * part[cost].mean()
    return total


def _only_theirs(others: pd.DataFrame, outside: pd.DataFrame, cost: str) -> float:
    """Trainings of the teachers that nothing but the other values used."""
    own = others[(others["teacher_id"] != "") & ~others["teacher_id"].isin(outside["teacher_id"])]
    return float(own.drop_duplicates("teacher_id")[cost].sum())
