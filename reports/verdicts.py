"""What a report states, in sentences made from the statistics alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import pandas as pd

from bench import stats
from bench.records.record import BUSY_PERCENT
from bench.stats import SHOWN, CostVerdict, Verdict
from reports.frame import PAIR_COLUMNS
from reports.pair import baseline_of
from reports.summary import Baseline
from reports.tables.table import NOTHING, number, p_value, points, times

two = number(2)
Row = dict[Any, Any]  # of the summary


class Sentence(NamedTuple):
    """One statement, and how the page marks it."""

    kind: Literal["better", "worse", "open", "fact"]
    text: str


KIND: dict[Verdict, Literal["better", "worse"]] = {Verdict.BETTER: "better", Verdict.WORSE: "worse"}


def of_pair(part: pd.DataFrame) -> list[Sentence]:
    """Of one pair's rows of the summary: what is shown against `none`, then what is not, then against `kd`."""
    return [*_against_none(part), *_against_kd(part), *_sharing(part)]


def _against_none(part: pd.DataFrame) -> list[Sentence]:
    found = []
    for row in part[part["verdict"].isin(SHOWN)].to_dict("records"):
        verb = "gains" if row["gain"] > 0 else "loses"
        text = f"{row['label']} {verb} {two(abs(row['gain']))} points over none ({_evidence(row)}){_cost(row)}."
        found.append(Sentence(KIND[row["verdict"]], text))
    unsure = part[part["verdict"] == Verdict.OPEN]
    if len(unsure):
        low, high = unsure["detectable"].min(), unsure["detectable"].max()
        size = two(low) if math.isclose(low, high) else f"{two(low)} to {two(high)}"
        could = f"; this design would have found a gain of {size} points with 80 % probability" if not math.isnan(low) else ""
        found.append(Sentence("open", f"No difference from none is shown for {listed(unsure['label'])}{could}."))
    untested = part[part["verdict"] == Verdict.UNTESTED]["label"]
    if len(untested):
        found.append(Sentence("open", f"{listed(untested)}: not tested, which takes at least two seeds in common with none."))
    if baseline_of(part, Baseline.NONE) is None:
        found.append(Sentence("open", "The plain student was not trained, so no gain can be stated."))
    return found


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
    for row in part[part["verdict_kd"].isin(SHOWN) & (part["needs"] != "teacher")].to_dict("records"):
        by = f"{two(abs(row['gain_kd']))} points {row['verdict_kd']} than {kd['label']}"
        text = f"{row['label']}, without a teacher, is {by} ({_evidence(row, '_kd')}){_cost(row, '_kd')}."
        found.append(Sentence(KIND[row["verdict_kd"]], text))
    even = free[free["verdict_kd"] == Verdict.OPEN]["label"]
    if len(even):
        found.append(Sentence("open", f"No difference from {kd['label']} is shown for {listed(even)}, without a teacher."))
    if len(every_kd) > 1:
        text = f"Of {listed(every_kd['label'])}, {kd['label']} has today's default arguments, so it stands for kd here."
        found.append(Sentence("fact", text))
    return found


def _sharing(part: pd.DataFrame) -> list[Sentence]:
    """For every tfd, how many students must share the teacher until kd costs less per point gained."""
    kd = baseline_of(part, Baseline.KD)
    if kd is None:
        return []
    return [_break_even(kd, tfd) for tfd in part[part["family"] == "tfd"].to_dict("records")]


def _break_even(kd: Row, tfd: Row) -> Sentence:
    lacking = [row["label"] for row in (kd, tfd) if row["verdict"] != Verdict.BETTER]
    names = f"{kd['label']} and {tfd['label']}"
    if lacking:
        text = f"Break-even of {names} is not determined: no gain over none is shown for {listed(lacking)}."
        return Sentence("open", text)
    sharing = stats.break_even(kd["train_s"], kd["gain"], kd["teacher_s"], tfd["train_s"], tfd["gain"])
    if math.isnan(sharing):
        return Sentence("open", f"Break-even of {names} is not determined: a training cost is not known.")
    if math.isinf(sharing):
        text = f"However many students share the teacher, {kd['label']} costs more per point gained than {tfd['label']}."
    else:
        text = f"{kd['label']} costs less per point gained than {tfd['label']} once {sharing:.0f} students share the teacher."
    return Sentence("fact", text)


def in_short(part: pd.DataFrame) -> str:
    """One pair in one sentence: which methods are shown to differ from `none`, which are not, and what tfd and kd cost.

    Raises:
        ValueError: the plain student is missing.
    """
    if "baseline" not in part or baseline_of(part, Baseline.NONE) is None:
        raise ValueError("without the plain student nothing can be stated")
    clauses = _shown_in_short(part)
    unsure = part[part["verdict"] == Verdict.OPEN]
    if len(unsure):
        low, high = two(unsure["detectable"].min()), two(unsure["detectable"].max())
        size = low if low == high else f"{low} to {high}"
        clauses.append(
            f"no difference from none is shown for {listed(unsure['label'])} (a gain of {size} points would have been found "
            "with 80 % probability)"
        )
    untested = part[part["verdict"] == Verdict.UNTESTED]["label"]
    if len(untested):
        clauses.append(f"{listed(untested)}: not tested, for want of seeds")
    for row in part[part["family"].isin(["tfd", "kd"]) & part["ratio"].notna()].to_dict("records"):
        total = f", {_times(row['with_teacher_ratio'])} with the teacher's" if row["needs"] == "teacher" else ""
        clauses.append(f"{row['label']} costs {_times(row['ratio'])} none's training{total}")
    return "; ".join(clauses) + "."


def _shown_in_short(part: pd.DataFrame) -> list[str]:
    kd = baseline_of(part, Baseline.KD)
    name = kd["label"] if kd else ""
    free = part[part["needs"] != "teacher"]
    found = []
    for rows, verdict, suffix, verb in (
        (part, Verdict.BETTER, "", "gain over none"),
        (part, Verdict.WORSE, "", "lose to none"),
        (free, Verdict.BETTER, "_kd", f"gain over {name}, which has a teacher"),
        (free, Verdict.WORSE, "_kd", f"lose to {name}, which has a teacher"),
    ):
        shown = rows[(rows["verdict" + suffix] == verdict) & (rows["baseline"] != Baseline.NONE)].to_dict("records")
        if shown:
            names = listed(f"{row['label']} ({points(row['gain' + suffix])})" for row in shown)
            found.append(f"{names} {'is' if len(shown) == 1 else 'are'} shown to {verb}")
    return found


def _evidence(row: Row, suffix: str = "") -> str:
    low, high = points(row["low" + suffix]), points(row["high" + suffix])
    p = p_value(row["p_holm" + suffix])
    text = f"95_% interval {low} to_{high}, n_=_{row['n_paired' + suffix]:.0f}, p_{p if '<' in p else '=_' + p}"
    return text.replace("< ", "<_").replace("_", "\N{NO-BREAK SPACE}")


def _cost(row: Row, suffix: str = "") -> str:
    """What the training cost relative to the baseline's; of a method with a teacher, with the teacher's as well."""
    ratio, verdict = row["ratio" + suffix], row["cost_verdict" + suffix]
    if math.isnan(ratio):
        return ""
    low, high = (times(row[f"ratio{suffix}_{side}"]) for side in ("low", "high"))
    interval = f" ({low} to_{high})".replace("_", "\N{NO-BREAK SPACE}") if low != NOTHING else ""
    if verdict == CostVerdict.OPEN:
        text = f", no difference in training cost shown{interval}"
    else:
        text = f", at {_times(ratio)} its training cost{interval}"
        text += " by timings that were not taken in turn" if verdict == CostVerdict.APART else ""
    if row["needs"] == "none" or suffix:
        return text
    total = row["with_teacher_ratio"]
    return text + (f", {_times(total)} with the teacher's" if not math.isnan(total) else ", the teacher's unknown")


def _times(ratio: float) -> str:
    return times(ratio).replace("×", " times")


def of_methods(summary: pd.DataFrame) -> list[Sentence]:
    """Over several pairs: how often each method was shown to be better or worse than `none`."""
    found = []
    compared = summary[summary["verdict"].notna()]
    for (label, _), part in compared.groupby(["label", "method_id"]):
        better, worse, n = (part["verdict"] == Verdict.BETTER).sum(), (part["verdict"] == Verdict.WORSE).sum(), len(part)
        kind: Literal["better", "worse", "open"] = "better" if better > worse else "worse" if worse > better else "open"
        text = f"{label}: better than none in {better} of {n} pairs, worse in {worse}, "
        text += f"no difference shown in {n - better - worse}; mean gain {points(part['gain'].mean())} points."
        found.append(Sentence(kind, text))
    return sorted(found, key=lambda sentence: ("better", "worse", "open").index(sentence.kind))


def caveats(
    summary: pd.DataFrame,
    missing: int,
    problems: int,
    hardware: Iterable[str],
    busy_percent: float = 0.0,
    processes: int = 1,
) -> list[str]:
    """What a reader must know before believing the sentences.

    Args:
        missing, problems: how many cells lack a record, and how many files could not be used.
        hardware: of the costs; the sentences use the first.
        busy_percent: of other work while steps were timed.
        processes: at most so many shared out a batch in training.
    """
    n = summary["n"]
    seeds = f"{n.min():.0f}" if n.min() == n.max() else f"{n.min():.0f} to {n.max():.0f}"
    corrected = "p-values are Holm-corrected over each pair's table, intervals are not"
    found = [f"Accuracy is that of the last epoch, over {seeds} seed{'s' * (seeds != '1')} a method; {corrected}."]
    found.append("Intervals are about the draw of seeds; the test images are the same throughout.")
    with_teacher = summary[(summary["needs"] == "teacher") & (summary["n"] > 1)]
    if (with_teacher["teachers"] == 1).any():
        found.append(
            "One teacher served all seeds: statements about methods with a teacher are conditional on that one teacher."
        )
    if (summary["unpaired"].fillna(0) > 0).any() or (summary["unpaired_kd"].fillna(0) > 0).any():
        found.append("Not all methods have the same seeds; each difference is paired by the seeds that both have.")
    if missing:
        found.append(f"Cells missing: {missing}, listed below; what is missing may not be missing by chance.")
    if problems:
        found.append(f"Files that could not be used: {problems}, listed below; they are not in any number here.")
    found += _caveats_of_costs(summary, list(hardware), busy_percent, processes)
    if summary.groupby(PAIR_COLUMNS).size().max() > 2:
        found.append("A gain holds for these hyper-parameters; another value of a weight is another method.")
    return found


def _caveats_of_costs(summary: pd.DataFrame, hardware: list[str], busy_percent: float, processes: int) -> list[str]:
    found = []
    if not hardware:
        found.append("No step was timed, so costs are FLOPs; run the cost probe to have seconds.")
    elif len(hardware) > 1:
        found.append(f"Steps were timed on {len(hardware)} machines, which are never mixed; the sentences use {hardware[0]}.")
    if busy_percent > BUSY_PERCENT:
        found.append(
            f"Other work used up to {busy_percent:.0f} % of the processor while steps were timed, which makes times longer "
            "and ratios, though taken in turn, less certain; run the cost probe again on an idle machine."
        )
    if processes > 1 and hardware:
        found.append(f"Up to {processes} processes shared out a batch; costs are those of steps that one process takes alone.")
    if (summary["cost_verdict"] == CostVerdict.APART).any():
        found.append("Some costs were not timed in turn with what they are compared to; probe the grid's costs anew.")
    return found


def listed(names: Iterable[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    *rest, last = list(names)
    return f"{', '.join(rest)} and {last}" if rest else last
