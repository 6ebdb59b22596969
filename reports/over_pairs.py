"""The mean gain of every method over the pairs of a grid, in each setting: one test a method in place of votes.

Runs without a teacher count once for all teachers of their student. The primary methods are a family of 5 %, as are the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.records.comparisons import Baseline
from bench.stats import Estimate, Floats, decide, like_these, over_these
from reports.design import Design
from reports.frame import PAIR_COLUMNS, by_pair
from reports.gains import Runs, differences, runs_of, together
from reports.summary import claim

FROM = 2  # pairs, or students of a method without a teacher
COLUMNS = [
    *("setting", "label", "method_id", "needs", "pairs", "students", "gain", "low", "high", "p_adjusted", "word", "claim"),
    *("groups", "like_gain", "like_low", "like_high", "like_p_adjusted", "like_word", "like_claim", "primary", "looks"),
]


class Gains(NamedTuple):
    """A method's gains over `none` on the pairs of one setting."""

    row: Mapping[str, Any]  # of the summary, one of them
    differences: Floats  # (pairs, seeds), NaN where a run is missing
    students: list[str]
    teachers: list[str | None]
    primary: bool
    looks: int
    failed: bool
    late: bool


def over_pairs(frame: pd.DataFrame, summary: pd.DataFrame, design: Design) -> pd.DataFrame:
    """One row a method and setting: the mean over these pairs (low, high, word), and over pairs like these (like_low, ...).

    Args:
        frame: the tidy frame.
        summary: of the same frame.
    """
    found = gains_over_pairs(frame, summary, design)
    rows: list[dict[str, Any]] = []
    for primary in (True, False):
        family = [each for each in found if each.primary == primary]
        if family:
            rows += _decided(family, bool(design.primary) and not primary)
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values(["setting", "gain"], ascending=[True, False], ignore_index=True)


def gains_over_pairs(frame: pd.DataFrame, summary: pd.DataFrame, design: Design) -> list[Gains]:
    """The gains of every method that ran on several pairs of one setting."""
    if design.rule:  # how many further seeds a pair has depends on its results
        frame = frame[frame["seed"] < design.rule.first]
    runs = runs_of(by_pair(frame), design)
    plain = {
        tuple(row[name] for name in PAIR_COLUMNS): row["method_id"]
        for row in summary[summary["baseline"] == Baseline.NONE].to_dict("records")
    }
    places: dict[tuple[str, str], dict[tuple[str, str | None], tuple[Mapping[str, Any], Runs, Runs]]] = {}
    for row in summary.to_dict("records"):
        pair = tuple(row[name] for name in PAIR_COLUMNS)
        if pair not in plain or row["baseline"] == Baseline.NONE:
            continue
        place = row["student"], row["pair_teacher"] if row["needs"] == "teacher" else None
        sides = runs[(*pair, row["method_id"])], runs[(*pair, plain[pair])]
        places.setdefault((row["setting"], row["method_id"]), {}).setdefault(place, (row, *sides))
    return [_gains(own, design) for own in places.values() if len(own) >= FROM]


def _gains(own: Mapping[tuple[str, str | None], tuple[Mapping[str, Any], Runs, Runs]], design: Design) -> Gains:
    seeds = sorted({seed for _, ours, theirs in own.values() for seed in {*ours.top1, *theirs.top1}})
    gained = np.array([differences(ours, theirs, seeds)[1] for _, ours, theirs in own.values()])
    sides = [side for _, *both in own.values() for side in both]
    return Gains(
        next(iter(own.values()))[0],
        gained,
        [student for student, _ in own],
        [teacher for _, teacher in own],
        any(ours.primary for _, ours, _ in own.values()),
        max(design.look(ours.group, theirs.group) for _, ours, theirs in own.values()),
        failed=any(side.lacking.failed for side in sides),
        late=any(side.lacking.late for side in sides),
    )


def _decided(family: list[Gains], exploratory: bool) -> list[dict[str, Any]]:
    about_these = together([over_these(each.differences, each.students) for each in family])
    about_others = together([_like(each) for each in family])
    rules = {
        "looks": [each.looks for each in family],
        "exploratory": exploratory,
        "diverged": [each.failed for each in family],
        "finished": [not each.late for each in family],
    }
    these, others = (decide(estimates, len(family), **rules) for estimates in (about_these, about_others))  # type: ignore[arg-type]
    rows = []
    for index, each in enumerate(family):
        gain, like = float(about_these.mean[index]), float(about_others.mean[index])
        row = {name: each.row[name] for name in ("setting", "label", "method_id", "needs")}
        row |= {"pairs": int(about_these.n[index]), "students": len(set(each.students)), "gain": gain}
        row |= {name: getattr(these, name)[index] for name in ("low", "high", "p_adjusted", "word")}
        row |= {"claim": claim(these.word[index], gain), "groups": int(about_others.n[index]), "like_gain": like}
        row |= {f"like_{name}": getattr(others, name)[index] for name in ("low", "high", "p_adjusted", "word")}
        row |= {"like_claim": claim(others.word[index], like), "primary": each.primary, "looks": each.looks}
        rows.append(row)
    return rows


def _like(each: Gains) -> Estimate:
    """Over independent groups of pairs; pairs without a run in common are left out."""
    some = np.asarray(~np.isnan(each.differences).all(axis=1))
    students, teachers = (
        [name for name, kept in zip(names, some, strict=True) if kept] for names in (each.students, each.teachers)
    )
    return like_these(np.nanmean(each.differences[some], axis=1), students, teachers)
