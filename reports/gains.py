"""Every method with `none` and with `kd`: gains, intervals and words, over all pairs of a grid at once.

The comparisons that the grid declares primary are one family of 5 %, all others are another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.records.comparisons import Baseline
from bench.stats import (
    DETECTABLE_MOST,
    Decision,
    Estimate,
    Floats,
    SeedRule,
    Word,
    correlation,
    decide,
    detectable_gain,
    detectable_under,
    estimate,
    follow,
    over_teachers,
    pooled_spread,
)
from reports.design import Design, Group, Lacking
from reports.frame import PAIR_COLUMNS

MEANINGS = {
    "n_paired": "seeds that both have",
    "unpaired": "seeds that one has alone, or that ran otherwise, see apart",
    "apart": "seeds that both have and that are left out, since they ran on another device or path",
    "crossed": "whether the two sides ran on different devices or paths; then no seed ran alike",
    "gain": "mean difference in points, paired by seed",
    "low": "simultaneous 95 % interval, at the level of the word",
    "high": "likewise",
    "p": "of no difference, before any correction",
    "p_adjusted": "corrected for the family's comparisons and for looks",
    "p_equivalent": "of a difference at the margin or beyond, corrected likewise",
    "word": "what may be claimed, see `bench.stats.Word`",
    "primary": "whether the grid declares the comparison primary",
    "comparisons": "in its family",
    "looks": "number of the present look",
    "most": "seeds at most, where they are sequential",
    "one_teacher": "whether a side with a teacher had the same for all seeds",
    "detectable": "true gain in points that the design would have shown with 80 % probability",
    "correlation": "of both sides over the seeds",
}
COLUMNS = [*MEANINGS]
Key = tuple[str, str, str, str, str]  # setting, student, teacher or "" where neither side has one, method, baseline


class Runs(NamedTuple):
    """The trainings of one method on one pair."""

    top1: Mapping[int, float]  # by seed
    teachers: Mapping[int, str]  # by seed; empty for a method without one
    group: Group
    lacking: Lacking
    primary: bool
    ran: Mapping[int, str]  # by seed: device and path


def alike(ours: Mapping[int, str], theirs: Mapping[int, str]) -> tuple[set[int], bool]:
    """The seeds to compare, all of which ran in one way on each side, and whether the two sides differ in it.

    Of several ways it takes one that both sides share, and then the one with most seeds: differences are never pooled over
    devices or execution paths.

    Args:
        ours, theirs: by seed, what the training ran on.
    """
    kinds: dict[tuple[str, str], set[int]] = {}
    for seed in sorted(ours.keys() & theirs.keys()):
        kinds.setdefault((ours[seed], theirs[seed]), set()).add(seed)
    if not kinds:
        return set(), False
    a, b = max(kinds, key=lambda kind: (kind[0] == kind[1], len(kinds[kind])))
    return kinds[a, b], a != b


def differences(ours: Runs, theirs: Runs, seeds: Iterable[int]) -> tuple[Floats, Floats]:
    """(seeds, 2) accuracies of both sides and (seeds,) differences, NaN where a side is missing or ran otherwise."""
    kept, _ = alike(ours.ran, theirs.ran)
    both = np.array([[side.top1.get(seed, math.nan) for side in (ours, theirs)] for seed in seeds]).reshape(-1, 2)
    both[[seed not in kept for seed in seeds]] = math.nan
    return both, both[:, 0] - both[:, 1]


class Comparison(NamedTuple):
    """A method beside a baseline."""

    key: Key
    against: Baseline
    differences: Floats  # by seed, NaN where only one side has it
    unpaired: int
    apart: int  # seeds that both sides have, left out since they ran otherwise
    crossed: bool  # whether the two sides ran on different devices or paths
    estimate: Estimate
    one_teacher: bool  # whether a side with a teacher had the same for all seeds
    primary: bool
    looks: int
    most: int | None  # of sequential seeds, where this comparison is followed seed by seed; its differences are in that order
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
            dict(zip(part["seed"], part["ran"], strict=True)),
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
        exploratory = bool(design.primary) and not primary
        if family:
            rule = replace(design.rule, comparisons=m) if design.rule else None
            decided |= _decided(family, m, exploratory, design.margin, rule)
    return decided


def beside_none(pairs: Mapping[Key, tuple[Runs, Runs]], design: Design) -> dict[Key, dict[str, Any]]:
    """The columns `COLUMNS` of comparisons with `none` that are no part of the grid's own: an exploratory family."""
    family = [_comparison(key, Baseline.NONE, *sides, design, follows=False) for key, sides in pairs.items()]
    return _decided(family, len(family), True, design.margin, None)


def key_of(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> Key:
    """The comparison of two rows of one pair's summary."""
    taught = "teacher" in (row["needs"], baseline["needs"])
    teacher = row["pair_teacher"] if taught else ""
    return row["setting"], row["student"], teacher, row["method_id"], baseline["method_id"]


def _comparisons(table: pd.DataFrame, runs: Mapping[tuple[str, str, str, str], Runs], design: Design) -> dict[Key, Comparison]:
    found: dict[Key, Comparison] = {}
    going_on = _going_on(table, runs, design)
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
                    follows = all((*pair[:2], each["method_id"]) in going_on for each in (row, base))
                    found[key] = _comparison(key, against, ours, theirs, design, follows)
    return found


def _going_on(table: pd.DataFrame, runs: Mapping[tuple[str, str, str, str], Runs], design: Design) -> set[tuple[str, str, str]]:
    """(setting, student, method_id) of what gets further seeds while anything is open: primary methods or all, baselines."""
    if design.rule is None:
        return set()
    found = {(*key[:2], key[3]) for key, own in runs.items() if own.primary or not design.primary}
    students = {key[:2] for key in found}
    bases = table[table["baseline"].notna()][["setting", "student", "method_id"]].itertuples(index=False, name=None)
    return found | {(setting, student, method_id) for setting, student, method_id in bases if (setting, student) in students}


def _comparison(key: Key, against: Baseline, ours: Runs, theirs: Runs, design: Design, follows: bool) -> Comparison:
    """One comparison.

    Args:
        follows: whether both sides get further seeds under a rule of sequential seeds; else it is about the first seeds.
    """
    groups = ours.group, theirs.group
    rule = design.rule if design.planned(*groups) else None
    seeds = list(range(rule.most if follows else rule.first)) if rule else sorted({*ours.top1, *theirs.top1})
    both, gained = differences(ours, theirs, seeds)
    kept, crossed = alike(ours.ran, theirs.ran)
    failed, late = (any(getattr(side.lacking, name) for side in (ours, theirs)) for name in ("failed", "late"))
    used = [seed for seed, value in zip(seeds, gained, strict=True) if not math.isnan(value)]
    counts = [len({side.teachers[seed] for seed in used}) for side in (ours, theirs) if side.teachers]
    teachers = [tuple(side.teachers.get(seed, "") for side in (ours, theirs)) for seed in seeds]
    several = max(counts, default=0) > 1
    return Comparison(
        key,
        against,
        gained,
        0 if rule else int(np.isnan(gained).sum()),
        len(ours.ran.keys() & theirs.ran.keys()) - len(kept),
        crossed,
        over_teachers(gained, teachers) if several and not rule else estimate(gained),
        bool(used) and 1 in counts,
        ours.primary,
        1 if rule else design.look(*groups),
        most=rule.most if rule and follows else None,
        failed=failed,
        late=len(used) < rule.first and not failed if rule else late,
        correlation=float(correlation(both, [(0, 1)])[0]),
    )


def _followed(each: Comparison, rule: SeedRule, exploratory: bool) -> dict[str, Any]:
    """The columns that sequential seeds change: mean, interval and word at the decision; there is no p."""
    found = follow(each.differences, rule, each.failed)
    word = Word(str(found.word))
    nothing = dict.fromkeys(("p", "p_adjusted", "p_equivalent"), math.nan)
    return nothing | {
        "n_paired": int(found.n),
        "gain": float(found.mean),
        "low": float(found.low),
        "high": float(found.high),
        "word": Word.SHOWN_EXPLORATORY if exploratory and word == Word.SHOWN else word,
        "most": rule.most,
    }


def _decided(
    family: list[Comparison], m: int, exploratory: bool, margin: float, rule: SeedRule | None
) -> dict[Key, dict[str, Any]]:
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
    seen = _detectable(family, estimates, m, rule)
    columns = {each.key: _columns(each, index, decision, m, seen[index]) for index, each in enumerate(family)}
    if rule is None:
        return columns
    return columns | {each.key: columns[each.key] | _followed(each, rule, exploratory) for each in family if each.most}


def together(estimates: list[Estimate]) -> Estimate:
    """Estimates of single comparisons as those of a family."""
    return Estimate(*(np.array([float(value) for value in column]) for column in zip(*estimates, strict=True)))


def _detectable(family: list[Comparison], estimates: Estimate, m: int, rule: SeedRule | None) -> list[float]:
    """One number for all comparisons of one student with one baseline: the true gain that they would have shown."""
    places = [(*each.key[:2], each.against, bool(each.most)) for each in family]
    usable = np.array([not (each.collapsed or each.failed) for each in family])
    known = {}
    for place in dict.fromkeys(places):
        at = np.array([place == each for each in places])
        own = Estimate(*(column[at] for column in estimates))
        sequential = rule is not None and place[-1]
        known[place] = (
            detectable_under(rule, pooled_spread(own, usable[at])) if sequential else detectable_gain(own, m, usable[at])
        )
    return [known[place] for place in places]


def _columns(each: Comparison, index: int, decision: Decision, m: int, detectable: float) -> dict[str, Any]:
    names = ("low", "high", "p", "p_adjusted", "p_equivalent", "word")
    return {
        "n_paired": int((~np.isnan(each.differences)).sum()),
        "unpaired": each.unpaired,
        "apart": each.apart,
        "crossed": each.crossed,
        "gain": float(each.estimate.mean),
        **{name: getattr(decision, name)[index] for name in names},
        "primary": each.primary,
        "comparisons": m,
        "looks": each.looks,
        "most": math.nan,
        "one_teacher": each.one_teacher,
        "detectable": detectable,
        "correlation": each.correlation,
    }
