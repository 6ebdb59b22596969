"""What a point of accuracy costs, and how many students must share a teacher before it pays.

Costs are incremental: over those of the plain student, which everybody pays. Any unit, the same throughout.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from bench.stats.intervals import CONSTANT, LEVEL, median_interval
from bench.stats.paired import Floats
from bench.stats.ratios import TURNS_FROM


def break_even(own_s: float, gain: float, teacher_s: float, rival_s: float, rival_gain: float) -> float:
    """How many students must share a teacher before a method with one costs less per point gained than a rival without.

    The smallest whole N with (own_s + teacher_s / N) / gain < rival_s / rival_gain; inf where no number is enough, NaN where a
    gain is not above zero or a cost is unknown. With incremental costs it is the estimate of `students_to_share`.
    """
    if not (gain > 0 and rival_gain > 0) or any(map(math.isnan, (own_s, teacher_s, rival_s))):
        return math.nan
    left = gain * rival_s / rival_gain - own_s
    return math.inf if left <= 0 else max(1, math.floor(teacher_s / left) + 1)


class BreakEven(NamedTuple):
    """Students that must share a teacher: whole numbers from 1, inf is never, NaN is unknown."""

    students: float  # estimate
    low: float  # 95 % interval
    high: float
    determined: bool  # else the numbers are guesses: write "not determined (estimate N)"
    reason: str  # why it is not determined


def students_to_share(
    taught_gains: ArrayLike,
    free_gains: ArrayLike,
    taught_cost: ArrayLike,
    free_cost: ArrayLike,
    teacher_cost: float,
    both_shown: bool,
) -> BreakEven:
    """From how many students on a method with a teacher costs less per point than one without, with a 95 % interval.

    With x = 1 / N, D_s(x) = f_s (a + T x) - k_s b has mean 0 where both cost the same per point. The interval keeps each x with
    |mean D| <= t_{n-1} sqrt(var D / n + V), V the variance that the turns of the probe give f a - k b. Solved as a
    quadratic equation in a + T x (Fieller, 1954). Covers .95; a bootstrap covers .87 to .90.

    Args:
        taught_gains: k, (seeds,) gains over the plain student of the method with a teacher, points, paired by seed with:
        free_gains: f, likewise of the rival without a teacher; seeds with a NaN in either are left out.
        taught_cost: a, (turns,) training cost beyond the plain student's, without the teacher's training; or one exact number.
            Their median is used, so that a busy turn moves the width only; its variance is pi / 2 times the mean's.
        free_cost: b, likewise of the rival, the same turns.
        teacher_cost: T, of the teacher's training.
        both_shown: whether the adjusted intervals of both gains lie above 0.

    Raises:
        ValueError: both costs are turns, and differ in number.
    """
    k, f = np.asarray(taught_gains, float), np.asarray(free_gains, float)
    both = ~np.isnan(k + f)
    k, f = k[both], f[both]
    a, b, noise, exact = _costs(taught_cost, free_cost, float(k.mean()) if k.size else 0.0, float(f.mean()) if f.size else 0.0)
    if not k.size or any(map(math.isnan, (a, b, teacher_cost))):
        return BreakEven(math.nan, math.nan, math.nan, False, "a cost or a gain is unknown")
    students = break_even(a, float(k.mean()), teacher_cost, b, float(f.mean()))
    low, high = _fieller(k, f, b, noise)
    if math.isnan(low):
        fewest = most = math.nan
    elif teacher_cost > 0:
        shares = [(limit - a) / teacher_cost for limit in (low, high)]
        fewest, most = _students(shares[1]), _students(shares[0])
    else:  # a free teacher is shared by any number at the same price: pays at once, or never
        fewest, most = 1.0 if high > a else math.inf, 1.0 if low > a else math.inf
    reason = ""
    if not both_shown:
        reason = "the two gains are not both shown"
    elif not exact and np.size(free_cost) < TURNS_FROM:
        reason = "the probe took fewer than six turns"
    elif not _above_zero(free_cost):
        reason = "the rival is not shown to cost more than the plain student"
    elif math.isnan(low):
        reason = "the gains have no spread, or there is one seed"
    return BreakEven(students, fewest, most, not reason, reason)


def _costs(taught: ArrayLike, free: ArrayLike, k: float, f: float) -> tuple[float, float, float, bool]:
    """Medians of both incremental costs, the variance of f a - k b, and whether both are exact."""
    ours, rival = np.asarray(taught, float), np.asarray(free, float)
    if ours.ndim and rival.ndim and ours.shape != rival.shape:
        raise ValueError(f"{ours.size} and {rival.size} turns; both costs need the same turns")
    if not (ours.size and rival.size):
        return math.nan, math.nan, math.nan, False
    mixed: Floats = f * ours - k * rival
    noise = math.pi / 2 * float(mixed.var(ddof=1)) / mixed.size if mixed.ndim and mixed.size > 1 else 0.0
    return float(np.median(ours)), float(np.median(rival)), noise, not mixed.ndim


def _above_zero(cost: ArrayLike) -> bool:
    values = np.asarray(cost, float)
    return bool(values > 0) if not values.ndim else bool(median_interval(values)[1] > 0)


def _fieller(k: Floats, f: Floats, b: float, noise: float) -> tuple[float, float]:
    """Interval of c in which f c - k b may have mean 0; unbounded where f is not clear of 0, NaN without spread."""
    n = len(k)
    if n < 2 or max(k.std(), f.std()) <= CONSTANT:
        return math.nan, math.nan
    t = float(special.stdtrit(n - 1, 0.5 + LEVEL / 2)) ** 2
    (s_ff, s_fk), (_, s_kk) = np.cov(f, k) / n
    mean_f, mean_k = f.mean(), k.mean()
    square, linear = t * s_ff - mean_f**2, 2 * b * (mean_f * mean_k - t * s_fk)
    rest = t * (s_kk * b**2 + noise) - (mean_k * b) ** 2
    if square >= 0:
        return -math.inf, math.inf
    root = math.sqrt(max(0.0, linear**2 - 4 * square * rest))
    return float((-linear + root) / (2 * square)), float((-linear - root) / (2 * square))


def _students(share: float) -> float:
    """Smallest whole N with 1 / N below a share; inf where it is not above 0."""
    return math.inf if share <= 0 else 1.0 if math.isinf(share) else float(math.floor(1 / share) + 1)


class Price(NamedTuple):
    """Cost per point gained; a negative one means that the gain comes with a saving."""

    value: float
    low: float
    high: float
    determined: bool  # the gain's interval lies above 0; else there is no interval


def price(extra_cost: float, gain: float, gain_low: float, gain_high: float) -> Price:
    """What an extra point costs: `extra_cost` / `gain`, with the interval that the gain's own (adjusted) interval gives.

    Over the plain student, or of kd over tfd: extra_cost = a + T / N - b, and the gain of kd over tfd, paired by seed.
    The costs' own error is left out; it is small beside the gain's.
    """
    if not gain > 0 or math.isnan(extra_cost):
        return Price(math.nan, math.nan, math.nan, False)
    if not gain_low > 0:
        return Price(extra_cost / gain, math.nan, math.nan, False)
    low, high = sorted((extra_cost / gain_low, extra_cost / gain_high))
    return Price(extra_cost / gain, low, high, True)


def with_search(shared_cost: float, other_values: float, their_teachers: float, students: int = 1) -> float:
    """The fourth price: the third, and what the search cost, divided by the students that share the search.

    Args:
        shared_cost: third price: own training with a share of the teacher's.
        other_values: trainings of the other declared values, failed ones included.
        their_teachers: trainings of teachers that only those values used.
        students: that share the search.

    Raises:
        ValueError: students is below 1.
    """
    if students < 1:
        raise ValueError(f"a search is shared by 1 student or more, not {students}")
    return shared_cost + (other_values + their_teachers) / students
