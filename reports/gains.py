"""Every method with `none` and with `kd`: gains, intervals and words, over all pairs of a grid at once.

The comparisons that the grid declares primary are one family of 5 %, all others are another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.records.comparisons import Baseline
from bench.stats import (
    DETECTABLE_MOST,
    Decision,
    Estimate,
    Floats,
    correlation,
    decide,
    detectable_gain,
    estimate,
    over_teachers,
)
from reports.design import Design, Group, Lacking
from reports.frame import PAIR_COLUMNS

COLUMNS = [
    *("n_paired", "unpaired", "gain", "low", "high", "p", "p_adjusted", "p_equivalent", "word", "primary", "comparisons"),
    *("looks", "one_teacher", "detectable", "correlation"),
]
Key = tuple[str, str, str, str, str]  # setting, student, teacher or "" where neither side has one, method, baseline


class Runs(NamedTuple):
    """The trainings of one method on one pair."""

    top1: Mapping[int, float]  # by seed
    teachers: Mapping[int, str]  # by seed; empty for a method without one
    group: Group
    lacking: Lacking
    primary: bool


class Comparison(NamedTuple):
    """A method beside a baseline."""

    key: Key
    against: Baseline
    differences: Floats  # by seed, NaN where only one side has it
    unpaired: int
    estimate: Estimate
    one_teacher: bool  # whether a side with a teacher had the same for all seeds
    primary: bool
    looks: int
    failed: bool  # a training of either side
    late: bool  # likewise, not there yet
    correlation: float

    @property
    def collapsed(self) -> bool:
        """Whether the loss is so large that its spread is not that of the other methods."""
        return float(self.estimate.mean) < -DETECTABLE_MOST


def runs_of(rows: pd.DataFrame, design: Design) -> dict[tuple[str, str, str, str], Runs]:
    """The trainings of every method of every pair, by (*PAIR_COLUMNS, method_id).

    Args:
        rows: see `reports.frame.by_pair`.
    """
    found = {}
    for key, part in rows.groupby([*PAIR_COLUMNS, "method_id"], sort=False):
        teacher = part["teacher_id"].where(part["teacher_id"] != "", part["teacher"]) if part["needs"].iloc[0] != "none" else []
        group = Group.of(part)
        found[key] = Runs(
            dict(zip(part["seed"], part["top1"], strict=True)),
            dict(zip(part["seed"], teacher, strict=False)),
            group,
            design.lacking(group),
            bool(design.primary) and not design.primary.isdisjoint(part["id"]),
        )
    return found


def compare(table: pd.DataFrame, rows: pd.DataFrame, design: Design) -> dict[Key, dict[str, Any]]:
    """The columns `COLUMNS` of every comparison.

    Args:
        table: of the summary, with `baseline` and `needs`.
        rows: see `reports.frame.by_pair`.
    """
    found = _comparisons(table, runs_of(rows, design), design)
    decided: dict[Key, dict[str, Any]] = {}
    for primary in (True, False):
        family = [each for each in found.values() if each.primary == primary]
        m = max(len(family), design.declared.primary if primary else design.declared.exploratory)
        if family:
            decided |= _decided(family, m, bool(design.primary) and not primary, design.margin)
    return decided


def key_of(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> Key:
    """The comparison of two rows of one pair's summary."""
    taught = "teacher" in (row["needs"], baseline["needs"])
    teacher = row["pair_teacher"] if taught else ""
    return row["setting"], row["student"], teacher, row["method_id"], baseline["method_id"]


def _comparisons(table: pd.DataFrame, runs: Mapping[tuple[str, str, str, str], Runs], design: Design) -> dict[Key, Comparison]:
    found: dict[Key, Comparison] = {}
    columns = [*PAIR_COLUMNS, "method_id", "needs", "baseline"]
    for pair, part in table[columns].groupby(PAIR_COLUMNS, sort=False):
        methods = part.to_dict("records")
        bases = {row["baseline"]: row for row in methods if row["baseline"]}
        for against in Baseline:
            for row in methods:
                base = bases.get(against)
                if base is None or row is base or row["baseline"] == Baseline.NONE:
                    continue
                key = key_of(row, base)
                if key not in found:
                    ours, theirs = (runs[(*pair, each["method_id"])] for each in (row, base))
                    found[key] = _comparison(key, against, ours, theirs, design)
    return found


def _comparison(key: Key, against: Baseline, ours: Runs, theirs: Runs, design: Design) -> Comparison:
    seeds = sorted({*ours.top1, *theirs.top1})
    both = np.array([[side.top1.get(seed, math.nan) for side in (ours, theirs)] for seed in seeds])
    differences = both[:, 0] - both[:, 1]
    used = [seed for seed, value in zip(seeds, differences, strict=True) if not math.isnan(value)]
    counts = [len({side.teachers[seed] for seed in used}) for side in (ours, theirs) if side.teachers]
    teachers = [tuple(side.teachers.get(seed, "") for side in (ours, theirs)) for seed in seeds]
    several = max(counts, default=0) > 1
    return Comparison(
        key,
        against,
        differences,
        int(np.isnan(differences).sum()),
        over_teachers(differences, teachers) if several else estimate(differences),
        bool(used) and 1 in counts,
        ours.primary,
        design.look(ours.group, theirs.group),
        failed=bool(ours.lacking.failed or theirs.lacking.failed),
        late=bool(ours.lacking.late or theirs.lacking.late),
        correlation=float(correlation(both, [(0, 1)])[0]),
    )


def _decided(family: list[Comparison], m: int, exploratory: bool, margin: float) -> dict[Key, dict[str, Any]]:
    estimates = together([each.estimate for each in family])
    decision = decide(
        estimates,
        m,
        looks=[each.looks for each in family],
        exploratory=exploratory,
        margin=margin,
        diverged=[each.failed for each in family],
        finished=[not each.late for each in family],
    )
    seen = _detectable(family, estimates, m)
    return {each.key: _columns(each, index, decision, m, seen[index]) for index, each in enumerate(family)}


def together(estimates: list[Estimate]) -> Estimate:
    """Estimates of single comparisons as those of a family."""
    return Estimate(*(np.array([float(value) for value in column]) for column in zip(*estimates, strict=True)))


def _detectable(family: list[Comparison], estimates: Estimate, m: int) -> list[float]:
    """One number for all comparisons of one student with one baseline: the true gain that they would have shown."""
    places = [(*each.key[:2], each.against) for each in family]
    usable = np.array([not (each.collapsed or each.failed) for each in family])
    known = {}
    for place in dict.fromkeys(places):
        at = np.array([place == each for each in places])
        known[place] = detectable_gain(Estimate(*(column[at] for column in estimates)), m, usable[at])
    return [known[place] for place in places]


def _columns(each: Comparison, index: int, decision: Decision, m: int, detectable: float) -> dict[str, Any]:
    names = ("low", "high", "p", "p_adjusted", "p_equivalent", "word")
    return {
        "n_paired": int((~np.isnan(each.differences)).sum()),
        "unpaired": each.unpaired,
        "gain": float(each.estimate.mean),
        **{name: getattr(decision, name)[index] for name in names},
        "primary": each.primary,
        "comparisons": m,
        "looks": each.looks,
        "one_teacher": each.one_teacher,
        "detectable": detectable,
        "correlation": each.correlation,
    }
