"""What a rule for sequential seeds does on average: how often it shows a gain, what it costs, and by how much it overstates."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bench.stats.paired import DETECTABLE_MOST, Word
from bench.stats.planning import POWER, seeds_needed
from bench.stats.sequential import SeedRule, follow


class Behavior(NamedTuple):
    """Of one comparison under a rule, for one true gain and spread; shares of all draws."""

    shown: float  # and of the right sign
    wrong: float  # shown with the other sign, or shown at all where the gain is 0
    equivalent: float
    seeds: float  # mean number of seeds
    mean_where_shown: float  # points; NaN where nothing is shown
    fixed_seeds: int | None  # fixed number of seeds with the same power; None where there is none, as for a gain of 0

    @property
    def saving(self) -> float:
        """Share of trainings saved against fixed seeds of equal power; negative where the rule costs more."""
        return math.nan if self.fixed_seeds is None else 1 - self.seeds / self.fixed_seeds


@lru_cache(maxsize=64)
def behavior(rule: SeedRule, gain: float, spread: float, draws: int = 20_000, seed: int = 0) -> Behavior:
    """Simulate a rule with normal differences; the same draws every time.

    Its errors are about 0.5 / sqrt(draws). 20,000 draws of 20 seeds take some 50 ms.
    """
    values = np.random.default_rng(seed).normal(gain, spread, (draws, rule.most))
    result = follow(values, rule)
    shown = result.word == Word.SHOWN
    right = shown & (np.sign(result.mean) == np.sign(gain)) & (gain != 0)
    share = float(right.mean())
    needs = seeds_needed(gain, spread, rule.comparisons, share) if gain and 0.01 < share < 1 else None
    return Behavior(
        shown=share,
        wrong=float((shown & ~right).mean()),
        equivalent=float((result.word == Word.EQUIVALENT).mean()),
        seeds=float(result.n.mean()),
        mean_where_shown=float(result.mean[right].mean()) if right.any() else math.nan,
        fixed_seeds=needs,
    )


@lru_cache(maxsize=64)
def detectable_under(rule: SeedRule, spread: float) -> float:
    """Smallest true gain (points) that a comparison under a rule shows with 80 % probability, to 0.01 of itself.

    At most `DETECTABLE_MOST`, which then reads "or more". NaN where there is no spread.
    """
    if not spread > 0:
        return math.nan
    low, high = 0.0, DETECTABLE_MOST
    if behavior(rule, high, spread, 4000).shown < POWER:
        return high
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if behavior(rule, middle, spread, 4000).shown >= POWER else (middle, high)
    return high
