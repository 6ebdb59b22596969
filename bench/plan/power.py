"""What a grid's design can see: the seeds that a gain takes, and a warning where the gains of the field are out of sight.

The spread of a paired difference comes from records: of this grid, else of others in the results folder on the same data and
student. Where there are none it is stated by the user, or a guess.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from bench.plan import seeds
from bench.plan.grid import Grid
from bench.records.cell import Cell
from bench.records.comparisons import Baseline, Comparison, comparisons
from bench.records.folders import GridFolder
from bench.records.naming import data_name, model_name
from bench.screen import Screen
from bench.stats import DETECTABLE_MOST, POWER, Estimate, estimate, pooled_spread
from bench.stats.designs import behavior
from bench.stats.planning import FIELD_GAIN, SEEDS_MOST, SPREAD, power, seeds_for_equivalence, seeds_needed, spread_interval

WEAK = 0.5  # power below which a design is warned of
SHARED = 0.25  # correlation of the variances of two differences that have the plain student's runs in common


class Spread(NamedTuple):
    """Standard deviation of a paired difference, in points."""

    value: float
    source: str  # 'from records of quick'
    df: float = math.nan  # degrees of freedom behind it; NaN where it is stated or guessed

    def __str__(self) -> str:
        low, high = spread_interval(self.value, self.df)
        interval = "" if math.isnan(low) else f", 95 % interval {low:.2f} to {high:.2f}"
        return f"{self.value:.2f} points ({self.source}{interval})"


def show(grid: Grid, folder: GridFolder, detect: float | None, stated: float | None, console: Screen) -> None:
    """Print the seeds that a gain takes, where one is asked for; else a warning where the design cannot see the field's gains.

    Args:
        detect: a true gain, points.
        stated: the user's own guess of the spread, points.
    """
    compared = grid.comparisons
    if not compared:
        return
    spread = Spread(stated, "as stated") if stated else spread_of(grid, folder, elsewhere=detect is not None)
    lines = _detection(grid, compared, detect, spread) if detect else _warning(grid, compared, spread)
    for line in lines:
        console.print(line, soft_wrap=True, style=None if detect else "yellow")


def _detection(grid: Grid, compared: Sequence[Comparison], gain: float, spread: Spread) -> list[str]:
    lines = [f"to show a true gain of {gain:g} points with probability {POWER}, at a spread of {spread}:"]
    for name, family in _families(compared):
        lines.append(f"  {name}: {_seeds(seeds_needed(gain, spread.value, len(family)))}; {_has(grid, family, gain, spread)}")
    if not any(each.primary for each in compared) and len(compared) > 1:
        lines.append(f"  one comparison alone, declared `primary`: {_seeds(seeds_needed(gain, spread.value))}")
    name, family = _families(compared)[0]
    same = _seeds(seeds_for_equivalence(grid.until, spread.value, len(family)))
    lines.append(f"  to show that no difference of {name} exceeds {grid.until:g} points, where all are truly 0: {same}")
    return lines


def _warning(grid: Grid, compared: Sequence[Comparison], spread: Spread) -> list[str]:
    name, family = _families(compared)[0]
    if _power(grid, family, FIELD_GAIN, spread) >= WEAK:
        return []
    needed = _seeds(seeds_needed(FIELD_GAIN, spread.value, len(family)))
    line = f"warning: gains of {FIELD_GAIN} points, which the field reports, are out of sight of {name}: "
    line += f"{_has(grid, family, FIELD_GAIN, spread)}, at a spread of {spread}; a probability of {POWER} takes {needed}. "
    return [f"{line}See `plan --detect`"]


def _families(compared: Sequence[Comparison]) -> list[tuple[str, list[Comparison]]]:
    """(name, comparisons) of those that share an error of 5 %; the primary ones first."""
    primary = [each for each in compared if each.primary]
    if not primary:
        return [(f"all {len(compared)} comparisons" if len(compared) > 1 else "the comparison", list(compared))]
    others = [each for each in compared if not each.primary]
    named = [(f"{len(primary)} primary comparison{'s' * (len(primary) > 1)}", primary)]
    return named + ([(f"{len(others)} exploratory comparison{'s' * (len(others) > 1)}", others)] if others else [])


def _seeds(count: int | None) -> str:
    return f"more than {SEEDS_MOST} seeds" if count is None else f"{count} seeds"


def _has(grid: Grid, family: Sequence[Comparison], gain: float, spread: Spread) -> str:
    """'this grid has 3, with probability 0.05'."""
    found = _power(grid, family, gain, spread)
    probability = f"with probability {found:.2f}" if found >= 0.005 else "with probability below 0.01"
    if _followed(grid, family) and grid.rule:
        return f"this grid spends {grid.rule.first} to {grid.rule.most}, {probability}"
    return f"this grid has {_fewest(grid, family)}, {probability}"


def _power(grid: Grid, family: Sequence[Comparison], gain: float, spread: Spread) -> float:
    """Probability that one comparison of a family shows a true gain."""
    if _followed(grid, family) and grid.rule:
        return behavior(grid.rule, gain, spread.value).shown
    return power(_fewest(grid, family), gain, spread.value, len(family))


def _followed(grid: Grid, family: Sequence[Comparison]) -> bool:
    """Whether sequential seeds are spent on this family."""
    return grid.rule is not None and len(family) == grid.rule.comparisons


def _fewest(grid: Grid, family: Sequence[Comparison]) -> int:
    """Seeds of the comparison that has the fewest; of sequential seeds the first."""
    most = grid.seeds.first if grid.seeds else math.inf
    return int(min(most, *(len(each.method.keys() & each.baseline.keys()) for each in family)))


def spread_of(grid: Grid, folder: GridFolder, elsewhere: bool = True) -> Spread:
    """The spread of differences from the plain student.

    Args:
        elsewhere: also look at other grids of the results folder.
    """
    if found := _measured(grid.comparisons, seeds.result_in(folder)):
        return Spread(found[0], f"from records of {folder.name}", found[1])
    wanted = {_place(cell) for cell in grid.cells if cell.id in grid.declared.students}
    for name in folder.results.grids() if elsewhere else []:
        records = [record for record in folder.results.grid(name).records()[0] if _place(record.cell) in wanted]
        top1 = {record.id: record.accuracies.last.top1 for record in records}
        if found := _measured(comparisons(record.cell for record in records), _known(top1)):
            return Spread(found[0], f"from records of {name}", found[1])
    return Spread(SPREAD, "a guess; --spread states another")


def _place(cell: Cell) -> tuple[str, str]:
    return data_name(cell.data), model_name(cell.student)


def _known(top1: dict[str, float]) -> Callable[[Cell], float | None]:
    return lambda cell: top1.get(cell.id)


def _measured(compared: Iterable[Comparison], result: seeds.Result) -> tuple[float, float] | None:
    """(spread, degrees of freedom) of the differences from `none`, over all methods; None where nothing has two seeds.

    Differences of k methods share the runs of `none`: k (n - 1) / (1 + (k - 1) / 4) degrees of freedom are left.
    """
    by_student: dict[str, list[Estimate]] = defaultdict(list)
    for each in compared:
        if each.against == Baseline.NONE:
            common = sorted(each.method.keys() & each.baseline.keys())
            both = [[result(side[seed]) for side in (each.method, each.baseline)] for seed in common]
            values = np.array(both, float).reshape(-1, 2)
            found = estimate(values[:, 0] - values[:, 1])
            if not math.isnan(found.error) and found.mean > -DETECTABLE_MOST:
                by_student[next(iter(each.baseline.values())).cost_key].append(found)
    if not by_student:
        return None
    every = [found for own in by_student.values() for found in own]
    together = Estimate(*(np.array([float(value) for value in column]) for column in zip(*every, strict=True)))
    df = sum(sum(float(found.df) for found in own) / (1 + SHARED * (len(own) - 1)) for own in by_student.values())
    return pooled_spread(together), df
