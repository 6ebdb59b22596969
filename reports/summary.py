"""The tidy frame to one line for every method of every pair: what tables, figures and sentences are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench import stats
from bench.records.record import Cost, Timing
from bench.stats import CostVerdict
from reports.frame import PAIR_COLUMNS, by_pair, place


class Baseline(StrEnum):
    """What methods are compared with; the value is the family of the method that may be it."""

    NONE = "none"
    KD = "kd"


SUFFIX = {Baseline.NONE: "", Baseline.KD: "_kd"}  # of the columns that compare with it

_MEANS = [
    *("top1", "top5", "best_top1", "flattery", "chosen_top1", "train_s", "train_s_low", "train_s_high", "teacher_s"),
    *("with_teacher_s", "shared_teacher_s", "flops", "teacher_flops", "with_teacher_flops", "shared_teacher_flops", "step_ms"),
    *("peak_mib", "energy_kj", "train_only", "host_peak_mib", "parameters", "latency_ms", "images_per_s"),
    *("steps", "prepare_steps", "epochs"),
]
_FACTS = ["label", "family", "at_defaults", "needs", "where", "cost_key"]
_AGAINST = ["n", "unpaired", "gain", "low", "high", "p", "p_holm", "verdict", "detectable", "boot_low", "boot_high"]
_KEY = [*PAIR_COLUMNS, "method_id"]


def summary(frame: pd.DataFrame, costs: Iterable[Cost] = ()) -> pd.DataFrame:
    """Every method of every pair in one line, best first within its pair.

    Columns beside the pair's: method_id, label, family, at_defaults, needs; baseline (`none` or `kd` where the method is what
    others of its pair are compared with); n; top1 and half (mean and half its 95 % interval), best_top1, flattery, chosen_top1;
    gain, low, high, p_holm, verdict, detectable, unpaired against `none` and, suffixed `_kd`, against `kd`; train_s,
    with_teacher_s, shared_teacher_s, teacher_s and the same in FLOPs; ratio, with_teacher_ratio, shared_teacher_ratio (to what
    `none` costs: seconds where timed, else FLOPs), ratio_low, ratio_high, cost_verdict (see `relative`); ratio_kd,
    ratio_kd_low, ratio_kd_high, cost_verdict_kd; teachers (how many trainings of the teacher were used).

    Args:
        costs: of the probe; without them ratios of seconds have no interval.
    """
    rows = by_pair(frame)
    rows = rows.assign(with_teacher_flops=rows["flops"] + rows["teacher_flops"])
    rows["shared_teacher_flops"] = rows["flops"] + rows["teacher_flops"] / rows["users"].clip(lower=1)
    groups = rows.groupby([*PAIR_COLUMNS, "pair", "method_id"], sort=False)
    table = groups[_MEANS].mean()
    table[_FACTS] = groups[_FACTS].first()
    table["n"] = groups["seed"].nunique()
    table["half"] = groups["top1"].agg(stats.half_interval)
    table["teachers"] = groups["teacher_id"].nunique()
    table = table.reset_index()
    table["baseline"] = _roles(table)
    table = _with_gains(table, rows)
    table = _with_ratios(table, {(place(cost), cost.key): cost for cost in costs})
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


def _with_gains(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Every method's gain over the baselines of its pair; each pair's table is one family of comparisons."""
    found = []
    runs = dict(list(rows.groupby(PAIR_COLUMNS, sort=False)))
    for key, part in table.groupby(PAIR_COLUMNS, sort=False):
        present = {part.loc[part["baseline"] == baseline, "method_id"].squeeze(): baseline for baseline in _present(part)}
        gains = stats.gains(stats.wide(runs[key]), tuple(present))
        if len(gains):
            found.append(gains.assign(**dict(zip(PAIR_COLUMNS, key, strict=True)), against=gains["baseline"].map(present)))
    gains = pd.concat(found) if found else pd.DataFrame(columns=[*PAIR_COLUMNS, "against", "method", *_AGAINST])
    gains = gains.rename(columns={"method": "method_id"})
    for baseline, suffix in SUFFIX.items():
        part = gains[gains["against"] == baseline][[*_KEY, *_AGAINST]]
        part = part.rename(columns={"n": "n_paired" + suffix} | {name: name + suffix for name in _AGAINST if name != "n"})
        table = table.merge(part, on=_KEY, how="left")
    return table


def _present(part: pd.DataFrame) -> list[Baseline]:
    return [baseline for baseline in Baseline if (part["baseline"] == baseline).any()]


def _with_ratios(table: pd.DataFrame, costs: Mapping[tuple[str, str], Cost]) -> pd.DataFrame:
    """Every method's training cost relative to that of `none` and of `kd` in its pair."""
    unit = "flops" if table["train_s"].isna().all() else "s"
    own = "flops" if unit == "flops" else "train_s"
    table = table.copy()
    index = pd.MultiIndex.from_frame(table[PAIR_COLUMNS])
    rows = table[["where", "cost_key", "steps", "prepare_steps", own]].to_dict("records")
    for baseline, suffix in SUFFIX.items():
        bases = {key: row for key, row, role in zip(index, rows, table["baseline"], strict=True) if role == baseline}
        found = []
        for key, row in zip(index, rows, strict=True):
            other = bases.get(key)
            if other is None or other is row:
                found.append(UNKNOWN._replace(value=1.0) if other is row else UNKNOWN)
            elif unit == "flops":
                found.append(UNKNOWN._replace(value=row[own] / other[own]))
            else:
                ours, theirs = (_training_turns(each, costs.get((each["where"], each["cost_key"]))) for each in (row, other))
                found.append(relative(ours, theirs, row[own] / other[own]))
        names = [f"ratio{suffix}", f"ratio{suffix}_low", f"ratio{suffix}_high"]
        table[names] = pd.DataFrame([ratio[:3] for ratio in found], columns=names, index=table.index)
        table[f"cost_verdict{suffix}"] = pd.Series([ratio.verdict for ratio in found], index=table.index, dtype=object)
    plain = table[table["baseline"] == Baseline.NONE].set_index(PAIR_COLUMNS)[own].reindex(index).to_numpy()
    for price in ("with_teacher", "shared_teacher"):
        table[f"{price}_ratio"] = table["ratio"] + (table[f"{price}_{unit}"] - table[own]) / plain
    return table


class Turns(NamedTuple):
    """What one method cost in every turn of a session of the probe."""

    session: str
    values: np.ndarray

    @classmethod
    def of_step(cls, cost: Cost, timing: Timing) -> Turns:
        return cls(cost.session, np.array(timing.turns_ms))


class Ratio(NamedTuple):
    """Of two costs, with a 95 % interval, and what it shows."""

    value: float
    low: float
    high: float
    verdict: CostVerdict | None  # None where nothing was compared


UNKNOWN = Ratio(math.nan, math.nan, math.nan, None)


def relative(ours: Turns | None, theirs: Turns | None, otherwise: float = math.nan) -> Ratio:
    """The ratio of two costs within a turn: median over the turns and its interval.

    What was not timed in turn has `otherwise` instead, the ratio of the medians, which a drift of the machine may have moved.
    """
    if ours is None or theirs is None or ours.session != theirs.session or len(ours.values) != len(theirs.values):
        return Ratio(otherwise, math.nan, math.nan, None if math.isnan(otherwise) else CostVerdict.APART)
    value, low, high = stats.median_interval(ours.values / theirs.values)
    verdict = CostVerdict.MORE if low > 1 else CostVerdict.LESS if high < 1 else CostVerdict.OPEN
    return Ratio(value, low, high, verdict)


def _training_turns(row: Mapping[str, Any], cost: Cost | None) -> Turns | None:
    """A training, as if every step took as long as in one turn."""
    if cost is None:
        return None
    ms = row["steps"] * np.array(cost.step.turns_ms)
    if row["prepare_steps"] and cost.prepare_step:
        ms = ms + row["prepare_steps"] * np.array(cost.prepare_step.turns_ms)
    return Turns(cost.session, ms)
