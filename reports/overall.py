"""What a report states of all pairs together, and what a reader must know before believing any sentence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from bench.records.record import BUSY_PERCENT
from bench.stats import COMPONENTS_FROM, SHOWN, CostWord, SeedRule, Word, wants_second_session
from reports.design import Design
from reports.frame import PAIR_COLUMNS
from reports.tables.table import p_value, points
from reports.verdicts import Kind, Sentence, listed


def of_methods(over: pd.DataFrame) -> list[Sentence]:
    """The mean gain over several pairs of one setting, a sentence for each method that is shown to differ, one for the rest.

    Args:
        over: see `reports.over_pairs.over_pairs`.
    """
    found = []
    for setting, part in over.groupby("setting", sort=False):
        where = f" ({setting})" if over["setting"].nunique() > 1 else ""
        rows = part.to_dict("records")
        found += [_shown(row, where) for row in rows if row["word"] in SHOWN]
        rest = [f"{row['label']} ({points(row['gain'])}, {row['claim']})" for row in rows if row["word"] not in SHOWN]
        if rest:
            found.append(Sentence("open", f"Over the pairs not shown to differ from none{where}: {listed(rest)}."))
    return found


def _shown(row: dict[Any, Any], where: str) -> Sentence:
    kind: Kind = "better" if row["gain"] > 0 else "worse"
    verb = "gains" if row["gain"] > 0 else "loses"
    many = (
        f"these {row['pairs']} pairs, with these teachers," if row["needs"] == "teacher" else f"these {row['pairs']} students"
    )
    p = p_value(row["p_adjusted"])
    text = f"{row['label']} {verb} {points(abs(row['gain']))[1:]} points on average over {many}{where} "
    text += f"(interval {points(row['low'])} to {points(row['high'])}, p {p if '<' in p else '= ' + p})"
    text += ", exploratory" if row["word"] == Word.SHOWN_EXPLORATORY else ""
    if row["like_word"] == Word.NOT_TESTED:
        return Sentence(kind, f"{text}; of pairs like these nothing is claimed below {COMPONENTS_FROM} independent groups.")
    interval = f"{points(row['like_low'])} to {points(row['like_high'])}"
    return Sentence(kind, f"{text}; of pairs like these: {row['like_claim']} (interval {interval}, {row['groups']} groups).")


def of_precisions(table: pd.DataFrame | None) -> list[Sentence]:
    """What was trained in both precisions.

    Args:
        table: frame of `reports.tables.compared.in_both_precisions`, or None.
    """
    found = []
    for row in table.to_dict("records") if table is not None else []:
        interval = f"{points(row['low'])} to {points(row['high'])}"
        text = f"{row['label']} on {row['pair']}, bf16 against fp32: {row['claim']} ({points(row['gain'])} points, "
        kind: Kind = "fact" if row["word"] == Word.EQUIVALENT else "open"
        found.append(Sentence(kind, f"{text}simultaneous 95 % interval {interval}, n = {row['n']:.0f})."))
    return found


def caveats(
    summary: pd.DataFrame,
    design: Design,
    problems: int,
    hardware: Iterable[str],
    busy_percent: float = 0.0,
    processes: int = 1,
) -> list[str]:
    """What a reader must know before believing the sentences.

    Args:
        problems: how many files could not be used.
        hardware: of the costs; the sentences use the first.
        busy_percent: of other work while steps were timed.
        processes: at most so many shared out a batch in training.
    """
    n = summary["n"]
    seeds = f"{n.min():.0f}" if n.min() == n.max() else f"{n.min():.0f} to {n.max():.0f}"
    found = [f"Accuracy is that of the last epoch, over {seeds} seed{'s' * (seeds != '1')} a method."]
    found += _caveats_of_families(summary, design)
    found.append("Intervals are about the choice of seeds; the test images are the same throughout.")
    taught = summary[(summary["needs"] != "none") & (summary["n"] > 1)]
    if (taught["one_teacher"] == True).any() or (summary["one_teacher_kd"] == True).any():  # noqa: E712
        found.append(
            "One teacher served all seeds of some methods: what is stated of them holds for that one teacher. "
            "`teacher_seeds: each` makes it a statement about the method."
        )
    if (summary["unpaired"].fillna(0) > 0).any() or (summary["unpaired_kd"].fillna(0) > 0).any():
        found.append("Not all methods have the same seeds; each difference is paired by the seeds that both have.")
    found += _caveats_of_devices(summary)
    failed = sum(each.failed for each in design.missing)
    if failed:
        found.append(f"Trainings that failed: {failed}. Such a seed is not replaced, and what lost one is at most suggested.")
    if len(design.missing) > failed:
        found.append(
            f"Cells missing: {len(design.missing) - failed}, listed below; what is missing may not be missing by chance."
        )
    if problems:
        found.append(f"Files that could not be used: {problems}, listed below; they are not in any number here.")
    found += _caveats_of_costs(summary, list(hardware), busy_percent, processes)
    if summary.groupby(PAIR_COLUMNS).size().max() > 2:
        found.append("A gain holds for these hyper-parameters; another value of a weight is another method.")
    return found


def _caveats_of_devices(summary: pd.DataFrame) -> list[str]:
    """Where trainings of different devices or execution paths meet."""
    found = []
    apart = max(summary[f"apart{suffix}"].fillna(0).max() for suffix in ("", "_kd"))
    if apart:
        text = (
            "Seeds ran on different devices or execution paths, which are never pooled: a difference takes those of one kind. "
        )
        found.append(f"{text}That leaves out up to {apart:.0f} seeds of a comparison.")
    crossed = summary[(summary["crossed"] == True) | (summary["crossed_kd"] == True)]["label"]  # noqa: E712
    if len(crossed):
        names = listed(dict.fromkeys(crossed))
        found.append(f"Compared across devices or execution paths, since no seed ran alike on both sides: {names}.")
    return found


def _caveats_of_families(summary: pd.DataFrame, design: Design) -> list[str]:
    """How many comparisons share the 5 %, and at which look they are."""
    sizes: dict[bool, float] = {}
    for suffix in ("", "_kd"):
        some = summary[summary["comparisons" + suffix].notna()]
        sizes |= dict(zip(some["primary" + suffix].astype(bool), some["comparisons" + suffix], strict=True))
    if not sizes:
        return []
    primary, others = sizes.get(True, 0), sizes.get(False, 0)
    if primary:
        shared = f"The {primary:.0f} primary comparisons share" if primary > 1 else "The primary comparison has"
        shared += " an error of 5 %"
        shared += f"; the {others:.0f} exploratory ones share another" if others > 1 else ""
        shared += "; the exploratory one has its own" if others == 1 else ""
    else:
        shared = f"All {others:.0f} comparisons of the grid share" if others > 1 else "The only comparison of the grid has"
        shared += " an error of 5 %"
    found = [f"{shared}. p and intervals are corrected for it: where a difference is shown, the interval leaves out 0."]
    found.append(
        "Nothing bounds how often a difference is suggested by chance: with 15 methods that do not differ, in 42 % of reports."
    )
    found.append(f"Two accuracies count as the same within {design.margin:g} points; equivalent means that they are shown to.")
    if design.rule:
        found.append(_sequential(summary, design.rule))
    looks = max(summary[f"looks{suffix}"].max() for suffix in ("", "_kd"))
    if looks > 1:
        text = f"Seeds were added after others were complete. At look k, here up to {looks:.0f}, p is multiplied by k (k + 1)."
        found.append(text + (" The history of looks is rebuilt from dates and commits of records." if design.rebuilt else ""))
    elif not design.requests:
        found.append("No history of requests is known: were seeds added after a look at results, p is too small.")
    return found


def _sequential(summary: pd.DataFrame, rule: SeedRule) -> str:
    if not any(summary[f"most{suffix}"].notna().any() for suffix in ("", "_kd")):
        return (
            f"Seeds are sequential, up to {rule.most}, and that rule was not there before results: verdicts count every look, "
            "as for seeds that were added by hand."
        )
    return (
        f"Seeds are sequential: {rule.first} first, then one at a time up to {rule.most} for what is open. Verdicts are by a "
        "group-sequential t-test, which may be looked at after every seed and keeps its 5 %; it has no p. Comparisons of which "
        "a side gets no further seeds, and gains over several pairs, are about the first seeds. A gain that stops its own "
        "trainings is too large on average: a true .3 reads .37."
    )


def _caveats_of_costs(summary: pd.DataFrame, hardware: list[str], busy_percent: float, processes: int) -> list[str]:
    found = []
    if not hardware:
        found.append(
            "No step was timed, so costs are FLOPs, which count matrix products and convolutions alone; "
            "`cost` measures seconds."
        )
    elif len(hardware) > 1:
        found.append(f"Steps were timed on {len(hardware)} machines, which are never mixed; the sentences use {hardware[0]}.")
    if busy_percent > BUSY_PERCENT:
        found.append(
            f"Other work used up to {busy_percent:.0f} % of the processor while steps were timed, which makes times longer "
            "and ratios, though taken in turn, less certain; run the cost probe again on an idle machine."
        )
    if processes > 1 and hardware:
        found.append(f"Up to {processes} processes shared out a batch; costs are those of steps that one process takes alone.")
    close: dict[str, None] = {}
    for suffix in ("", "_kd"):
        ratios = zip(summary["label"], summary[f"ratio{suffix}"], summary[f"cost_word{suffix}"], strict=True)
        close |= dict.fromkeys(label for label, value, word in ratios if wants_second_session(value, word))
    if close:
        text = f"Costs of {listed(close)} lie within a tenth of those they are compared to. One session of the probe "
        found.append(f"{text}cannot decide which is lower: measure again (`cost --force`).")
    if (summary["cost_word"] == CostWord.APART).any():
        found.append("Some costs were not timed in turn with what they are compared to; probe the grid's costs anew.")
    return found
