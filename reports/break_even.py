"""How many students must share a teacher before a method with one costs less per point gained than a method without."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench import stats
from bench.records.comparisons import Baseline
from bench.stats import BreakEven, Floats, Price
from reports.bill import in_turn, training_turns
from reports.pair import Pair
from reports.summary import shown_above

Row = dict[Any, Any]  # of the summary


class Sharing(NamedTuple):
    """A method with a teacher beside one without."""

    taught: Row
    free: Row
    found: BreakEven
    extra: Price  # of a point that the first gains over the second, with the teacher shared as in the third price


def sharings(pair: Pair) -> list[Sharing]:
    """Each method with a teacher beside each without; a copy of itself is on a method's own bill.

    Costs are incremental: over those of the plain student, which everybody pays. Nothing where no step was timed.
    """
    plain = pair.baseline(Baseline.NONE)
    if plain is None or pair.methods["train_s"].isna().all():
        return []
    rows = pair.methods.to_dict("records")
    runs = pair.runs.pivot(index="seed", columns="method_id", values="top1")
    gains = {row["method_id"]: (runs[row["method_id"]] - runs[plain["method_id"]]).to_numpy(float) for row in rows}
    taught = [row for row in rows if row["needs"] == "teacher"]
    free = [row for row in rows if row["needs"] != "teacher" and row["baseline"] != Baseline.NONE]
    return [_sharing(pair, ours, rival, plain, gains) for ours in taught for rival in free]


def _sharing(pair: Pair, taught: Row, free: Row, plain: Row, gains: dict[str, Floats]) -> Sharing:
    ours, theirs = gains[taught["method_id"]], gains[free["method_id"]]
    costs = _incremental(pair, taught, free, plain)
    both = shown_above(taught) and shown_above(free)
    found = stats.students_to_share(ours, theirs, *costs, taught["teacher_s"], both)
    found = found._replace(students=_estimate(taught, free, plain))
    extra_s = taught["shared_teacher_s"] - free["with_teacher_s"]
    gain = stats.estimate(ours - theirs)
    m = taught["comparisons"]
    more = stats.decide(gain, 1 if math.isnan(m) else int(m))
    return Sharing(taught, free, found, stats.price(extra_s, float(gain.mean), float(more.low), float(more.high)))


def _estimate(taught: Row, free: Row, plain: Row) -> float:
    """From the gains and the seconds that the tables show; the interval is that of the seeds that all three have."""
    own, rival = taught["train_s"] - plain["train_s"], free["with_teacher_s"] - plain["train_s"]
    return stats.break_even(own, taught["gain"], taught["teacher_s"], rival, free["gain"])


def _incremental(pair: Pair, taught: Row, free: Row, plain: Row) -> tuple[Any, Any]:
    """Seconds beyond the plain student's, turn by turn where all three were timed in turn; else one number each."""
    turns = [training_turns(row, pair.costs.get(row["method_id"])) for row in (taught, free, plain)]
    copy_s = free["teacher_s"]  # of a method that needs a trained copy of itself
    if in_turn(turns[0], turns[2]) and in_turn(turns[1], turns[2]):
        ours, theirs, base = (each.values / 1000 for each in turns if each)
        return ours - base, theirs - base + copy_s
    return taught["train_s"] - plain["train_s"], free["train_s"] + copy_s - plain["train_s"]


def frame_of(pair: Pair) -> pd.DataFrame:
    """One row for each of `sharings`, determined ones first, then by the number of students."""
    rows = []
    for taught, free, found, extra in sharings(pair):
        rows.append(
            {"label": taught["label"], "rival": free["label"], **found._asdict()}
            | {"extra_price": extra.value, "extra_low": extra.low, "extra_high": extra.high}
        )
    names = ["label", "rival", *BreakEven._fields, "extra_price", "extra_low", "extra_high"]
    frame = pd.DataFrame(rows, columns=names)
    frame = frame[frame["students"].notna()]
    frame["basis"] = np.where(frame["determined"].astype(bool), "determined", "not determined: " + frame["reason"].astype(str))
    return frame.sort_values(["determined", "students"], ascending=[False, True], ignore_index=True)
