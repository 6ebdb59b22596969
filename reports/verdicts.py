"""What a report states of one pair of networks, in sentences made from the statistics alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import pandas as pd

from bench.records.comparisons import Baseline
from bench.stats import DETECTABLE_MOST, SHOWN, CostWord, Word
from reports.break_even import Sharing, sharings
from reports.frame import SHARED_BY
from reports.pair import Pair, baseline_of
from reports.tables.table import NOTHING, number, p_value, points, seconds, students, times

two = number(2)
Row = dict[Any, Any]  # of the summary
Kind = Literal["better", "worse", "open", "fact"]


class Sentence(NamedTuple):
    """One statement, and how the page marks it."""

    kind: Kind
    text: str


def of_pair(pair: Pair) -> list[Sentence]:
    """What is shown against `none`, then what is not, then against `kd`, then who must share a teacher."""
    return [*_against_none(pair.methods), *_against_kd(pair.methods), *_sharing(pair)]


def _against_none(part: pd.DataFrame) -> list[Sentence]:
    if baseline_of(part, Baseline.NONE) is None:
        return [Sentence("open", "The plain student was not trained, so no gain can be stated.")]
    compared = part[part["baseline"] != Baseline.NONE]
    found = [_shown(row) for row in _rows(compared, *SHOWN)]
    return [*found, *_not_shown(compared, "none", "")]


def _shown(row: Row) -> Sentence:
    verb, kind = (
        (f"gains {two(row['gain'])} points over", "better")
        if row["gain"] > 0
        else (f"loses {two(-row['gain'])} points against", "worse")
    )
    text = f"{_named(row)} {verb} none ({_evidence(row)}){_cost(row)}."
    return Sentence(kind, text)  # type: ignore[arg-type]


def _not_shown(part: pd.DataFrame, baseline: str, suffix: str) -> list[Sentence]:
    """Suggested, equivalent, open, and what has no word."""
    found = []
    if suggested := _with_gains(_rows(part, Word.SUGGESTED, suffix=suffix), suffix):
        found.append(
            Sentence(
                "open",
                f"Suggested, not shown, against {baseline}: {suggested}. Their p is below .05, but only before correction.",
            )
        )
    if equivalent := _with_gains(_rows(part, Word.EQUIVALENT, suffix=suffix), suffix):
        found.append(Sentence("fact", f"Equivalent to {baseline} within the grid's margin: {equivalent}."))
    rows = _rows(part, Word.OPEN, suffix=suffix)
    if rows:
        text = f"Open against {baseline} (which does not mean equal): {_with_gains(rows, suffix)}."
        found.append(Sentence("open", f"{text}{_could_see(rows, suffix)}"))
    if late := _rows(part, Word.UNFINISHED, suffix=suffix):
        found.append(
            Sentence("open", f"No word on {listed(row['label'] for row in late)} before all seeds asked for are trained.")
        )
    if untested := _rows(part, Word.NOT_TESTED, suffix=suffix):
        names = listed(_named(row) for row in untested)
        found.append(Sentence("open", f"{names}: not tested, which takes at least two seeds in common with {baseline}."))
    return found


def _rows(part: pd.DataFrame, *words: Word, suffix: str = "") -> list[Row]:
    """The rows with one of these words, primary ones first."""
    rows = part[part["word" + suffix].isin(words)]
    return rows.sort_values("primary" + suffix, ascending=False, kind="stable").to_dict("records")


def _with_gains(rows: Iterable[Row], suffix: str = "") -> str:
    names = [f"{row['label']} ({points(row['gain' + suffix])}{_marks(row, suffix)})" for row in rows]
    return listed(names) if names else ""


def _marks(row: Row, suffix: str) -> str:
    primary = ", primary" if row["primary" + suffix] is True else ""
    return primary + (f", {_failures(row)}" if row["failed"] else "")


def _could_see(rows: Iterable[Row], suffix: str = "") -> str:
    """One number for what the design could have seen, for each family in question."""
    sizes = {row["primary" + suffix]: row["detectable" + suffix] for row in rows}
    named = {True: " in a primary comparison" if len(sizes) > 1 else "", False: " in another" if len(sizes) > 1 else ""}
    texts = [f"{gain_size(size)}{named[bool(primary)]}" for primary, size in sizes.items() if not math.isnan(size)]
    return f" With 80 % probability this design would show a true gain of {' and of '.join(texts)}." if texts else ""


def gain_size(size: float) -> str:
    """'1.43 points', or '10 points or more' at the cap."""
    return f"{DETECTABLE_MOST:.0f} points or more" if size >= DETECTABLE_MOST else f"{two(size)} points"


def _named(row: Row) -> str:
    """A method with the condition under which a statement about it holds."""
    if row["needs"] == "none" or row["one_teacher"] is not True:
        return str(row["label"])
    return f"{row['label']}, with this one {'teacher' if row['needs'] == 'teacher' else 'copy of itself'},"


def _against_kd(part: pd.DataFrame) -> list[Sentence]:
    """What is shown of methods without a teacher; which cell stands for kd, where that is not plain."""
    kd = baseline_of(part, Baseline.KD)
    every_kd = part[part["family"] == Baseline.KD]
    if kd is None:
        if every_kd.empty:
            return []
        names = listed(every_kd["label"])
        text = f"Nothing is compared with kd: of {names}, none or several have today's default arguments."
        return [Sentence("open", text)]
    found = []
    free = part[(part["needs"] != "teacher") & (part["baseline"] != Baseline.NONE)]
    name = f"{kd['label']} with its one teacher" if (free["one_teacher_kd"] == True).any() else str(kd["label"])  # noqa: E712
    for row in _rows(free, *SHOWN, suffix="_kd"):
        word: Literal["better", "worse"] = "better" if row["gain_kd"] > 0 else "worse"
        by = f"{two(abs(row['gain_kd']))} points {word} than {name}"
        own = "without a teacher" if row["needs"] == "none" else "with a copy of itself"
        found.append(Sentence(word, f"{row['label']}, {own}, is {by} ({_evidence(row, '_kd')}){_cost(row, '_kd')}."))
    found += _not_shown(free, name, "_kd")
    if len(every_kd) > 1:
        text = f"Of {listed(every_kd['label'])}, {kd['label']} has today's default arguments, so it stands for kd here."
        found.append(Sentence("fact", text))
    return found


def _sharing(pair: Pair) -> list[Sentence]:
    """For every tfd, how many students must share the teacher until kd costs less per point gained."""
    kd = pair.baseline(Baseline.KD)
    if kd is None or kd["needs"] != "teacher":
        return []
    found = [each for each in sharings(pair) if each.taught["method_id"] == kd["method_id"] and each.free["family"] == "tfd"]
    if not found and (pair.methods["family"] == "tfd").any():
        return [Sentence("open", f"Break-even of {kd['label']} is not determined: no step was timed.")]
    return [_break_even(each) for each in found]


def _break_even(each: Sharing) -> Sentence:
    kd, tfd, found = each.taught["label"], each.free["label"], each.found
    estimate = "" if math.isnan(found.students) else f" (estimate {students(found.students)})"
    if not found.determined:
        text = f"Break-even of {kd} and {tfd}, by the cost of a point beyond none's training: "
        text += f"not determined{estimate}, since {found.reason}."
        return Sentence("open", text)
    interval = f"95 % interval {students(found.low)} to {students(found.high)}".replace(" ", "\N{NO-BREAK SPACE}")
    if math.isinf(found.students):
        text = f"However many students share the teacher, {kd} costs more per point gained than {tfd} ({interval})."
    else:
        count = "1 student uses" if found.students == 1 else f"{found.students:.0f} students share"
        text = f"{kd} costs less per point gained than {tfd} once {count} the teacher ({interval})."
    if each.extra.determined and each.extra.value > 0:
        low, high = seconds(each.extra.low), seconds(each.extra.high)
        text += f" A point that it gains beyond {tfd} costs {seconds(each.extra.value)} ({low} to {high}), "
        text += f"its teacher shared by {SHARED_BY}."
    return Sentence("fact", text)


def in_short(part: pd.DataFrame) -> str:
    """One pair in one sentence: what is shown, suggested and open against `none`, and what tfd and kd cost.

    Raises:
        ValueError: the plain student is missing.
    """
    if "baseline" not in part or baseline_of(part, Baseline.NONE) is None:
        raise ValueError("without the plain student nothing can be stated")
    clauses = _shown_in_short(part)
    compared = part[part["baseline"] != Baseline.NONE]
    kd = baseline_of(part, Baseline.KD)
    free = compared[compared["needs"] != "teacher"]
    if suggested := _with_gains(_rows(compared, Word.SUGGESTED)):
        clauses.append(f"only suggested against none: {suggested}")
    if equivalent := _with_gains(_rows(compared, Word.EQUIVALENT)):
        clauses.append(f"equivalent to none within the margin: {equivalent}")
    if rows := _rows(compared, Word.OPEN):
        size = _could_see(rows).strip().rstrip(".")
        clauses.append(f"open against none: {_with_gains(rows)}" + (f" ({size[0].lower()}{size[1:]})" if size else ""))
    if kd is not None and (suggested := _with_gains(_rows(free, Word.SUGGESTED, suffix="_kd"), "_kd")):
        clauses.append(f"only suggested against {kd['label']}: {suggested}")
    if kd is not None and (rows := [row for row in _rows(free, Word.OPEN, suffix="_kd") if row["primary_kd"] is True]):
        clauses.append(f"open against {kd['label']}: {_with_gains(rows, '_kd')}")
    if untested := _rows(compared, Word.NOT_TESTED):
        clauses.append(f"{listed(row['label'] for row in untested)}: not tested, for want of seeds")
    if late := _rows(compared, Word.UNFINISHED):
        clauses.append(f"{listed(row['label'] for row in late)}: not finished")
    for row in part[part["family"].isin(["tfd", "kd"]) & part["ratio"].notna()].to_dict("records"):
        clauses.append(f"{row['label']} costs {_times(row['ratio'])} none's {row['cost_unit']}{_total(row)}")
    return "; ".join(clauses) + "."


def _shown_in_short(part: pd.DataFrame) -> list[str]:
    kd = baseline_of(part, Baseline.KD)
    name = kd["label"] if kd else ""
    free = part[part["needs"] != "teacher"]
    found = []
    for rows, sign, suffix, verb in (
        (part, 1, "", "gain over none"),
        (part, -1, "", "lose to none"),
        (free, 1, "_kd", f"gain over {name}, which has a teacher"),
        (free, -1, "_kd", f"lose to {name}, which has a teacher"),
    ):
        rows = rows[(rows["gain" + suffix] * sign > 0) & (rows["baseline"] != Baseline.NONE)]
        shown = _rows(rows, *SHOWN, suffix=suffix)
        if shown:
            one = any(row["one_teacher" + suffix] is True for row in shown)
            condition = " with this one teacher" if one and not suffix else ""
            names = _with_gains(shown, suffix)
            found.append(f"{names} {'is' if len(shown) == 1 else 'are'} shown to {verb}{condition}")
    return found


def _evidence(row: Row, suffix: str = "") -> str:
    low, high = points(row["low" + suffix]), points(row["high" + suffix])
    n, most = f"{row['n_paired' + suffix]:.0f}", row["most" + suffix]
    text = f"simultaneous 95_% interval {low} to_{high}, n_=_{n}"
    if math.isnan(most):
        p = p_value(row["p_adjusted" + suffix])
        text += f", p_{p if '<' in p else '=_' + p}"
        text += f", look {row['looks' + suffix]:.0f}" if row["looks" + suffix] > 1 else ""
    else:
        text += f" of at most {most:.0f}, by a look after every seed"
    text += f", {_failures(row)}" if row["failed"] else ""
    text += ", exploratory" if row["word" + suffix] == Word.SHOWN_EXPLORATORY else ""
    return text.replace("< ", "<_").replace("_", "\N{NO-BREAK SPACE}")


def _failures(row: Row) -> str:
    return f"{row['failed']:.0f} of {row['n'] + row['failed']:.0f} trainings failed"


def _cost(row: Row, suffix: str = "") -> str:
    """What the training cost relative to the baseline's, and the same with the teachers' trainings."""
    ratio, word = row["ratio" + suffix], row["cost_word" + suffix]
    if math.isnan(ratio):
        return ""
    low, high = (times(row[f"ratio{suffix}_{side}"]) for side in ("low", "high"))
    interval = f"{low} to_{high}" if low != NOTHING else ""
    what = f"its {row['cost_unit']}"
    notes = {
        CostWord.OPEN: f"{interval}, open",
        CostWord.NOT_TESTED: "too few turns for an interval",
        CostWord.APART: "not timed in turn",
        CostWord.COUNTED: "matrix products and convolutions alone",
    }
    note = notes.get(word, interval)
    text = f", at {_times(ratio)} {what}" + (f" ({note})" if note else "")
    return text.replace("to_", "to\N{NO-BREAK SPACE}") + _total(row, suffix)


def _total(row: Row, suffix: str = "") -> str:
    """The ratio with the trainings of teachers, where any side has one."""
    if row["needs"] == "none" and not suffix:
        return ""
    total = row["with_teacher_ratio" + suffix]
    whose = "the teacher's" if row["needs"] == "teacher" or suffix else "its copy's"
    return f", {_times(total)} with {whose}" if not math.isnan(total) else f", {whose} unknown"


def _times(ratio: float) -> str:
    return times(ratio).replace("×", " times")


def listed(names: Iterable[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    *rest, last = list(names)
    return f"{', '.join(rest)} and {last}" if rest else last
