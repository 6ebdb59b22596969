"""Sequential seeds: further seeds are spent on comparisons that are still open, and on no others.

    seeds: {first: 3, most: 20, until: 0.3}

All methods get the first seeds. From then on each round trains one seed more of both sides of every open comparison, until it
is shown, or equivalent within `until` points, or `most` seeds are spent. Where a grid declares primary comparisons, these alone
are followed. The test keeps its error of 5 % although it is made after every seed: see `bench.stats.sequential`.

Everything is read from records and manifest, so a run that was stopped goes on where it was. No torch here.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.records.cell import Cell, digest
from bench.records.comparisons import Comparison, comparisons, governed
from bench.records.folders import GridFolder
from bench.records.naming import describe
from bench.stats import SeedRule, Word, follow
from bench.stats.designs import behavior
from bench.stats.planning import FIELD_GAIN, SPREAD

if TYPE_CHECKING:
    from bench.plan.grid import Grid
    from bench.screen import Screen

Result = Callable[[Cell], float | None]  # accuracy in %; None where a cell is not trained yet, NaN where that failed


class Standing(NamedTuple):
    """Where a comparison stands."""

    comparison: Comparison
    seeds: int  # that both sides have, in order; up to the decision
    word: Word
    gain: float  # points, NaN where there is none yet; low and high likewise
    low: float
    high: float
    decided: bool  # shown, equivalent, or open at the most seeds
    failed: bool  # a training failed, so that further seeds are of no use

    @property
    def ended(self) -> bool:
        """Whether no seed is spent on it any more."""
        return self.decided or self.failed

    @property
    def wants(self) -> int:
        """How many seeds are asked for by now; with one that failed."""
        return self.seeds if self.decided else self.seeds + 1

    def __str__(self) -> str:
        method, baseline = next(iter(self.comparison.method.values())), self.comparison.against
        word = "the first seeds are not complete" if self.word == Word.UNFINISHED else self.word
        text = f"{method.label} against {baseline} on {describe(method.student)}: {word}"
        if self.seeds:
            text += f" after {self.seeds} seed{'s' * (self.seeds != 1)}, {self.gain:+.2f}"
        if not math.isnan(self.low):
            text += f" [{self.low:+.2f}, {self.high:+.2f}]"
        return text + (", no further seed: a training failed" if self.failed else "")


def standings(found: Iterable[Comparison], rule: SeedRule, result: Result) -> list[Standing]:
    """Where comparisons stand under a rule.

    Args:
        result: of a cell; asked once for each.
    """
    known: dict[str, float | None] = {}

    def top1(cell: Cell | None) -> float | None:
        if cell is None:
            return None
        cell_id = cell.id
        if cell_id not in known:
            known[cell_id] = result(cell)
        return known[cell_id]

    return [_standing(each, rule, top1) for each in found]


def _standing(each: Comparison, rule: SeedRule, top1: Callable[[Cell | None], float | None]) -> Standing:
    differences, failed = np.full(rule.most, np.nan), False
    for seed in range(rule.most):
        ours, theirs = top1(each.method.get(seed)), top1(each.baseline.get(seed))
        failed |= any(value is not None and math.isnan(value) for value in (ours, theirs))
        if ours is None or theirs is None or failed:
            break
        differences[seed] = ours - theirs
    found = follow(differences, rule, failed)
    return Standing(
        each,
        seeds=int(found.n),
        word=Word(str(found.word)),
        gain=float(found.mean),
        low=float(found.low),
        high=float(found.high),
        decided=bool(found.decided),
        failed=failed,
    )


def result_in(folder: GridFolder) -> Result:
    """What a folder's records hold."""

    def result(cell: Cell) -> float | None:
        place = folder.cell(cell.id)
        try:
            if record := place.record():
                return record.accuracies.last.top1 if math.isfinite(record.accuracies.last.top1) else math.nan
        except (ValueError, OSError):
            pass
        return math.nan if place.settled() else None

    return result


def spend(grid: Grid, folder: GridFolder) -> Grid:
    """The grid with the cells for which the results so far ask; unchanged where its seeds are a list."""
    if grid.rule is None:
        return grid
    asked = {cell.id for cell in grid.cells if cell.id in grid.declared.students}
    for each in look(grid, folder):
        for side in (each.comparison.method, each.comparison.baseline):
            asked |= {cell.id for seed, cell in side.items() if seed < each.wants}
    return grid.asking_for(asked)


def worst_case(grid: Grid, found: Sequence[Standing]) -> list[Cell]:
    """The cells of the grid where all comparisons that have not ended go on to the most seeds."""
    asked = {cell.id for cell in grid.cells if cell.id in grid.declared.students}
    sides = (side for each in found if not each.ended for side in (each.comparison.method, each.comparison.baseline))
    return grid.asking_for(asked | {cell.id for side in sides for cell in side.values()}).cells


def look(grid: Grid, folder: GridFolder) -> list[Standing]:
    """Where the comparisons stand on which the grid spends its seeds; empty where they are a list."""
    rule = grid.rule
    return standings(governed(grid.comparisons), rule, result_in(folder)) if rule else []


def look_at(folder: GridFolder) -> tuple[SeedRule | None, list[Standing]]:
    """The same from a folder alone: the rule of the last request, and the comparisons of which both sides have a record."""
    manifest = folder.manifest()
    if not manifest.get("rule"):
        return None, []
    rule = SeedRule(**manifest["rule"])
    primary = {cell["id"] for cell in manifest["cells"] if cell.get("primary")}
    known = {cell["id"] for cell in manifest["cells"] if not cell.get("equal_cost")}
    cells = [record.cell for record in folder.records()[0] if record.id in known]
    found = comparisons(cells, primary)
    followed = [each for each in found if each.primary] if primary else found
    return rule, standings(followed, rule, result_in(folder))


def explained(rule: SeedRule) -> list[str]:
    """The rule in words, and what it does on average where the true gain is one of those that the field reports."""
    count = "1 comparison has" if rule.comparisons == 1 else f"{rule.comparisons} comparisons share"
    lines = [
        f"sequential seeds: {rule.first} first, then one at a time up to {rule.most}, until a comparison is shown, "
        f"or equivalent within {rule.margin:g} points; {count} an error of 5 %"
    ]
    seen = behavior(rule, FIELD_GAIN, SPREAD)
    text = f"for a true gain of {FIELD_GAIN} points and a spread of {SPREAD} (a guess): shown with probability "
    text += f"{seen.shown:.2f}, called equivalent {seen.equivalent:.2f}, {seen.seeds:.1f} seeds on average"
    if seen.fixed_seeds:
        more = "fewer" if seen.saving >= 0 else "more"
        text += f": {abs(seen.saving):.0%} {more} than the {seen.fixed_seeds} fixed ones of that power"
    if not math.isnan(seen.mean_where_shown):
        text += f"; where it is shown, it reads {seen.mean_where_shown:.2f}"
    return [*lines, text]


def summed_up(rule: SeedRule, found: Sequence[Standing]) -> str:
    """'sequential seeds: 2 of 3 comparisons have ended (1 shown, 1 equivalent); the others have 7 of at most 20 seeds'."""
    words = Counter(str(each.word) for each in found if each.ended)
    text = f"sequential seeds: {words.total()} of {rule.comparisons} comparisons have ended"
    text += f" ({', '.join(f'{count} {word}' for word, count in words.items())})" if words else ""
    if going := [each.seeds for each in found if not each.ended]:
        span = f"{min(going)}" if min(going) == max(going) else f"{min(going)} to {max(going)}"
        text += f"; the others have {span} of at most {rule.most} seeds"
    return text


def late_rule(grid: Grid, folder: GridFolder) -> list[str]:
    """A warning where results were there before the rule: a report then counts every look, as if it were unplanned."""
    rule, known = grid.rule, folder.name in folder.results.grids()
    if rule is None or not known:
        return []
    history = folder.manifest().get("requests", [])
    under_it = list(itertools.takewhile(lambda request: request.get("rule") == rule.as_json(), reversed(history)))
    if len(under_it) == len(history):
        return []
    if under_it:
        seen = max(map(len, under_it[-1]["done"].values()), default=0)
    else:
        seen = max((each.seeds for each in look(grid, folder)), default=0)
    if seen < 2:
        return []
    return ["warning: there were results before this rule for seeds; the report counts every look, which makes p larger"]


def lines(folder: GridFolder) -> list[str]:
    """Where the comparisons of a folder stand, a line each, and one for all; empty where its seeds are a list."""
    rule, found = look_at(folder)
    return [*map(str, found), summed_up(rule, found)] if rule else []


def go_on(folder: GridFolder) -> bool:
    """Whether a run of this folder's grid will ask for further seeds."""
    return any(not each.ended for each in look_at(folder)[1])


class Looks:
    """The looks of one run: written down, and named where they find anything new."""

    def __init__(self, folder: GridFolder, commit: str | None) -> None:
        self.folder, self.commit = folder, commit
        self.seen: dict[str, None] | None = None  # before the first look

    def show(self, grid: Grid, console: Screen) -> None:
        """Take a look, and print a line for each comparison that is newly decided, and one for all."""
        rule = grid.rule
        if rule is None:
            return
        if self.seen is None:
            self.seen = {}
            for line in late_rule(grid, self.folder):
                console.print(line, soft_wrap=True, style="yellow")
        found = look(grid, self.folder)
        if any(each.seeds >= rule.first for each in found):
            self.folder.add_look(rule.as_json(), [_entry(each) for each in found], self.commit)
        lines = [str(each) for each in found if each.ended]
        new = [line for line in lines if line not in self.seen]
        self.seen |= dict.fromkeys(new)
        for line in [*new, summed_up(rule, found)]:
            console.print(line, soft_wrap=True)


def _entry(each: Standing) -> Mapping[str, Any]:
    """A standing as a manifest keeps it."""
    sides = (each.comparison.method, each.comparison.baseline)
    first = [next(iter(side.values())) for side in sides]
    numbers = {name: None if math.isnan(value := getattr(each, name)) else round(value, 6) for name in ("gain", "low", "high")}
    cells = [cell.id for side in sides for seed, cell in sorted(side.items()) if seed < each.seeds]
    return {
        "method": first[0].cost_key,
        "baseline": first[1].cost_key,
        "label": first[0].label,
        "against": str(each.comparison.against),
        "seeds": each.seeds,
        "word": str(each.word),
        **numbers,
        "decided": each.decided,
        "failed": each.failed,
        "cells": digest(cells)[:12],
    }
