"""Our trainings beside published numbers, by the rule that chose those."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from bench.stats.intervals import CONSTANT
from bench.stats.paired import Floats

BEST_MINUS_LAST = 0.32  # points: mean over 54 public trainings of the field
BEST_MINUS_LAST_MEDIAN, BEST_MINUS_LAST_MOST = 0.33, 1.01


def expected_best(values: Sequence[float] | np.ndarray, runs: int) -> float:
    """Mean of the best of `runs` runs over all ways to choose them: sum_i x_(i) C(i-1, runs-1) / C(n, runs); NaN with fewer."""
    ordered = np.sort(np.asarray(values, float))
    n = len(ordered)
    if n < runs:
        return math.nan
    weights = np.array([math.comb(i, runs - 1) for i in range(n)]) / math.comb(n, runs)
    return float(ordered @ weights)


@lru_cache
def normal_best(runs: int) -> tuple[float, float]:
    """Mean and variance of the largest of `runs` standard normal values: 0 and 1, .56 and .68, .85 and .56 for 1, 2, 3.

    Integrates x k phi(x) Phi(x)^(k-1); the best of 3 adds .85 standard deviations to a mean.
    """
    x = np.linspace(-9.0, 9.0, 20_001)
    density = runs * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * special.ndtr(x) ** (runs - 1)
    step = x[1] - x[0]
    mean = float((x * density).sum() * step)
    return mean, float((x**2 * density).sum() * step) - mean**2


def best_minus_last(best: ArrayLike, last: ArrayLike) -> tuple[float, float, float]:
    """Mean, median and largest of what choosing the epoch on the test set adds, points; NaN without values."""
    added: Floats = np.asarray(best, float) - np.asarray(last, float)
    added = added[~np.isnan(added)]
    if not added.size:
        return math.nan, math.nan, math.nan
    return float(added.mean()), float(np.median(added)), float(added.max())


class ClaimWord(StrEnum):
    INSIDE = "inside"  # shown to agree within the margin
    OUTSIDE = "outside"  # shown to differ
    CANNOT_TELL = "cannot tell"


class ClaimCheck(NamedTuple):
    ours: float  # under the claim's rule
    difference: float  # ours - theirs, points
    low: float  # 95 % interval
    high: float
    inner_low: float  # 90 % interval: two one-sided tests at 5 %
    inner_high: float
    word: ClaimWord


def check_claim(
    values: ArrayLike,
    published: float,
    margin: float,
    *,
    runs: int = 1,
    best: bool = False,
    their_spread: float | None = None,
) -> ClaimCheck:
    """Whether a published number agrees with ours, both with their error.

    Inside: the 90 % interval of (ours under its rule - theirs) lies within the margin. Outside: the 95 % interval leaves out 0.
    Both: inside. Else: cannot tell; an interval of ours that holds the published number is no agreement.
    The error is sqrt(s^2 / n + their s^2 / runs). For a best of r runs ours is mean + e_r s, with the variance
    s^2 / n + e_r^2 s^2 / (2 (n - 1)); theirs has v_r s^2; e_r and v_r are those of `normal_best`. Nothing is corrected for the
    number of claims.

    Args:
        values: (seeds,) ours, accuracies (%) or paired gains (points); those of the best epoch where the claim takes it.
        published: the number claimed.
        margin: points within which both count as the same, above 0.
        runs: of theirs, averaged, or chosen from.
        best: whether theirs is the best of its runs.
        their_spread: standard deviation of one of their runs; ours by default.

    Raises:
        ValueError: margin is not above 0, or runs is below 1.
    """
    if not margin > 0 or runs < 1:
        raise ValueError(f"margin {margin} and runs {runs}; a margin above 0 and 1 run or more are needed")
    ours = np.asarray(values, float)
    ours = ours[~np.isnan(ours)]
    n = len(ours)
    spread = float(ours.std(ddof=1)) if n > 1 else math.nan
    shift, chosen = normal_best(runs) if best else (0.0, 1 / runs)
    mean = float(ours.mean()) + (shift * spread if shift else 0.0) if n else math.nan
    if not spread > CONSTANT:
        return ClaimCheck(mean, mean - published, math.nan, math.nan, math.nan, math.nan, ClaimWord.CANNOT_TELL)
    own = spread**2 * (1 / n + shift**2 / (2 * (n - 1)))
    theirs = (spread if their_spread is None else their_spread) ** 2 * chosen
    error, difference = math.sqrt(own + theirs), mean - published
    outer, inner = (float(special.stdtrit(n - 1, q)) * error for q in (0.975, 0.95))
    inside = -margin < difference - inner and difference + inner < margin
    word = ClaimWord.INSIDE if inside else ClaimWord.OUTSIDE if abs(difference) > outer else ClaimWord.CANNOT_TELL
    ends = (difference - outer, difference + outer, difference - inner, difference + inner)
    return ClaimCheck(mean, difference, *ends, word)
