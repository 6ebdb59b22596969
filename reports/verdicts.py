"""What may be said, in sentences made from the statistics alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import pandas as pd

from bench import stats
from bench.records.record import BUSY_PERCENT
from reports.frame import PAIR_COLUMNS
from reports.tables import NOTHING, family, number, p_value, points, times

two = number(2)


class Sentence(NamedTuple):
    kind: Literal["better", "worse", "open", "fact"]
    text: str


def of_pair(part: pd.DataFrame) -> list[Sentence]:
    """Of one pair's rows of the summary: what is shown against `none`, then what is not, then against `kd`."""
    said = []
    judged = part[part["verdict"].notna()]
    for row in judged[judged["verdict"].isin(["better", "worse"])].to_dict("records"):
        verb = "gains" if row["gain"] > 0 else "loses"
        text = f"{row['method']} {verb} {two(abs(row['gain']))} points over none ({_evidence(row)}){_bill(row)}."
        said.append(Sentence(row["verdict"], text))
    unsure = judged[judged["verdict"] == "no difference shown"]
    if len(unsure):
        low, high = unsure["detectable"].min(), unsure["detectable"].max()
        size = two(low) if math.isclose(low, high) else f"{two(low)} to {two(high)}"
        could = f"; this design would have found a gain of {size} points with 80 % probability" if not math.isnan(low) else ""
        said.append(Sentence("open", f"No difference from none is shown for {listed(unsure['method'])}{could}."))
    untested = judged[judged["verdict"] == "not tested"]["method"]
    if len(untested):
        said.append(Sentence("open", f"{listed(untested)}: not tested, which takes at least two seeds in common with none."))
    if "none" not in set(part["method"]):
        said.append(Sentence("open", "The plain student was not trained, so no gain can be stated."))
    against_kd = part[part["verdict_kd"].isin(["better", "worse"]) & (part["needs"] != "teacher")]
    for row in against_kd.to_dict("records"):
        by = f"{two(abs(row['gain_kd']))} points {row['verdict_kd']} than kd ({_evidence(row, '_kd')}){_bill(row, '_kd')}"
        said.append(Sentence(row["verdict_kd"], f"{row['method']}, without a teacher, is {by}."))
    even = part[part["verdict_kd"].eq("no difference shown") & (part["needs"] != "teacher") & (part["method"] != "none")]
    if len(even):
        said.append(Sentence("open", f"No difference from kd is shown for {listed(even['method'])}, without a teacher."))
    return said + _sharing(part)


def in_short(part: pd.DataFrame) -> str:
    """One pair in one sentence: who is shown to differ from `none`, who is not, and what tfd and kd cost.

    Raises:
        ValueError: the plain student is missing.
    """
    if "none" not in set(part["method"]):
        raise ValueError("without the plain student nothing can be said")
    said = []
    untaught = part[part["needs"] != "teacher"]
    for rows, verdict, gain, verb in (
        (part, "better", "", "gain over none"),
        (part, "worse", "", "lose to none"),
        (untaught, "better", "_kd", "gain over kd, which has a teacher"),
        (untaught, "worse", "_kd", "lose to kd, which has a teacher"),
    ):
        shown = rows[rows["verdict" + gain].eq(verdict) & (rows["method"] != "none")].to_dict("records")
        if shown:
            names = listed(f"{row['method']} ({points(row['gain' + gain])})" for row in shown)
            said.append(f"{names} {'is' if len(shown) == 1 else 'are'} shown to {verb}")
    unsure = part[part["verdict"] == "no difference shown"]
    if len(unsure):
        low, high = two(unsure["detectable"].min()), two(unsure["detectable"].max())
        size = low if low == high else f"{low} to {high}"
        said.append(
            f"no difference from none is shown for {listed(unsure['method'])} (a gain of {size} points would have been found "
            "with 80 % probability)"
        )
    untested = part[part["verdict"] == "not tested"]["method"]
    if len(untested):
        said.append(f"{listed(untested)}: not tested, for want of seeds")
    for row in part.to_dict("records"):
        if family(row["method"]) in ("tfd", "kd") and not math.isnan(row["ratio"]):
            whole = f", {_times(row['whole_ratio'])} with the teacher's" if row["needs"] == "teacher" else ""
            said.append(f"{row['method']} costs {_times(row['ratio'])} none's training{whole}")
    return "; ".join(said) + "."


def _evidence(row: dict, suffix: str = "") -> str:
    low, high = points(row["low" + suffix]), points(row["high" + suffix])
    p = p_value(row["p_holm" + suffix])
    text = f"95_% interval {low} to_{high}, n_=_{row['n_paired' + suffix]:.0f}, p_{p if '<' in p else '=_' + p}"
    return text.replace("< ", "<_").replace("_", "\N{NO-BREAK SPACE}")


def _bill(row: dict, suffix: str = "") -> str:
    """What the training cost relative to the baseline's; of a method with a teacher, with the teacher's as well."""
    ratio, verdict = row["ratio" + suffix], row["cost_verdict" + suffix]
    if math.isnan(ratio):
        return ""
    low, high = (times(row[f"ratio{suffix}_{side}"]) for side in ("low", "high"))
    interval = f" ({low} to_{high})".replace("_", "\N{NO-BREAK SPACE}") if low != NOTHING else ""
    if verdict == "no difference shown":
        text = f", no difference in training cost shown{interval}"
    else:
        text = f", at {_times(ratio)} its training cost{interval}"
        text += " by timings that were not taken in turn" if verdict == "not timed in turn" else ""
    if row["needs"] == "none" or suffix:
        return text
    return text + (
        f", {_times(row['whole_ratio'])} with the teacher's"
        if not math.isnan(row["whole_ratio"])
        else ", the teacher's unknown"
    )


def _times(ratio: float) -> str:
    return times(ratio).replace("×", " times")


def _sharing(part: pd.DataFrame) -> list[Sentence]:
    """Break-even of kd against tfd, where both gains are shown."""
    by_method = part.set_index("method")
    if not {"kd", "tfd"} <= set(by_method.index) or not (by_method.loc[["kd", "tfd"], "verdict"] == "better").all():
        return []
    kd, tfd = by_method.loc["kd"], by_method.loc["tfd"]
    shared = stats.break_even(kd["train_s"], kd["gain"], kd["teacher_s"], tfd["train_s"], tfd["gain"])
    if math.isnan(shared):
        return []
    if math.isinf(shared):
        return [Sentence("fact", "However many students share the teacher, kd costs more per point gained than tfd.")]
    return [Sentence("fact", f"kd costs less per point gained than tfd once {shared:.0f} students share the teacher.")]


def of_methods(summary: pd.DataFrame) -> list[Sentence]:
    """Over several pairs: how often each method was shown to be better or worse than `none`."""
    said = []
    for method, part in summary[summary["verdict"].notna()].groupby("method"):
        counts = part["verdict"].value_counts()
        better, worse, n = counts.get("better", 0), counts.get("worse", 0), len(part)
        kind: Literal["better", "worse", "open"] = "better" if better > worse else "worse" if worse > better else "open"
        mean = f"mean gain {points(part['gain'].mean())} points"
        text = f"{method}: better than none in {better} of {n} pairs, worse in {worse}, "
        text += f"no difference shown in {n - better - worse}; {mean}."
        said.append(Sentence(kind, text))
    return sorted(said, key=lambda sentence: ("better", "worse", "open").index(sentence.kind))


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
        busy_percent: of other work while steps were timed.
        processes: at most so many shared out a batch in training.
    """
    said = []
    n = summary["n"]
    seeds = f"{n.min():.0f}" if n.min() == n.max() else f"{n.min():.0f} to {n.max():.0f}"
    corrected = "p-values are Holm-corrected over each pair's table, intervals are not"
    said.append(f"Accuracy is that of the last epoch, over {seeds} seed{'s' * (seeds != '1')} a method; {corrected}.")
    said.append("Intervals are about the draw of seeds; the test images are the same throughout.")
    taught = summary[(summary["needs"] == "teacher") & (summary["n"] > 1)]
    if len(taught) and (taught["teachers"] == 1).any():
        said.append("One teacher served all seeds: what is said of methods with a teacher is conditional on that one teacher.")
    if (summary["unpaired"].fillna(0) > 0).any() or (summary["unpaired_kd"].fillna(0) > 0).any():
        said.append("Not all methods have the same seeds; each difference is paired by the seeds that both have.")
    if missing:
        said.append(f"Cells missing: {missing}, listed below; what is missing may not be missing by chance.")
    if problems:
        said.append(f"Files that could not be used: {problems}, listed below; they are not in any number here.")
    places = list(hardware)
    if not places:
        said.append("No step was timed, so costs are FLOPs; run the cost probe to have seconds.")
    elif len(places) > 1:
        said.append(f"Steps were timed on {len(places)} machines, which are never mixed; the sentences use {places[0]}.")
    if busy_percent > BUSY_PERCENT:
        said.append(
            f"Other work used up to {busy_percent:.0f} % of the processor while steps were timed, which makes times longer "
            "and ratios, though taken in turn, less certain; run the cost probe again on an idle machine."
        )
    if processes > 1 and places:
        said.append(f"Up to {processes} processes shared out a batch; costs are those of steps that one process takes alone.")
    if (summary["cost_verdict"] == "not timed in turn").any():
        said.append("Some costs were not timed in turn with what they are compared to; probe the grid's costs anew.")
    if summary.groupby(PAIR_COLUMNS).size().max() > 2:
        said.append("A gain holds for these hyper-parameters; another value of a weight is another method.")
    return said


def listed(names: Iterable[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    *rest, last = list(names)
    return f"{', '.join(rest)} and {last}" if rest else last
