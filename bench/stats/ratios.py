"""Ratios of two costs, and what may be claimed of them."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bench.stats.intervals import median_interval

TURNS_FROM = 6  # turns of the probe; below, the sign test has no 95 % interval
CLOSE = 0.1  # of a ratio: costs this near to each other ask for a second session of the probe


class CostWord(StrEnum):
    MORE = "more"  # the interval lies above 1
    LESS = "less"
    OPEN = "open"  # it holds 1
    NOT_TESTED = "not tested"  # fewer than six turns
    APART = "not timed in turn"  # two medians from different sessions; a drift of the machine may have moved them
    COUNTED = "counted"  # FLOPs: exact, but blind to all that is no matrix product
    UNKNOWN = ""


class CostRatio(NamedTuple):
    value: float  # ours / theirs
    low: float  # 95 % interval; NaN without one
    high: float
    word: CostWord
    unit: str  # "training time", or "FLOPs": a ratio of FLOPs is called that


def time_ratio(ours: ArrayLike, theirs: ArrayLike) -> CostRatio:
    """Median over the turns of the ratio within a turn, with the sign test's 95 % interval.

    Args:
        ours, theirs: (turns,), times of the same turns of one session, in order; unknown where one is 0.

    Raises:
        ValueError: the turns differ in number.
    """
    a, b = np.asarray(ours, float), np.asarray(theirs, float)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} and {b.size} turns; a ratio needs the same turns of both")
    if not (a.size and a.all() and b.all()):
        return CostRatio(math.nan, math.nan, math.nan, CostWord.UNKNOWN, "training time")
    value, low, high = median_interval(a / b)
    if len(a) < TURNS_FROM:
        return CostRatio(value, math.nan, math.nan, CostWord.NOT_TESTED, "training time")
    word = CostWord.MORE if low > 1 else CostWord.LESS if high < 1 else CostWord.OPEN
    return CostRatio(value, low, high, word, "training time")


def apart_ratio(ours: float, theirs: float) -> CostRatio:
    """Of two medians that were not timed in turn: a number without an interval; NaN where a cost is unknown."""
    value = ours / theirs if theirs else math.nan
    return CostRatio(value, math.nan, math.nan, CostWord.UNKNOWN if math.isnan(value) else CostWord.APART, "training time")


def flops_ratio(ours: float, theirs: float) -> CostRatio:
    """Of two counts of FLOPs, which leave out all that is no matrix product or convolution."""
    value = ours / theirs if theirs else math.nan
    return CostRatio(value, math.nan, math.nan, CostWord.UNKNOWN if math.isnan(value) else CostWord.COUNTED, "FLOPs")


def wants_second_session(value: float, word: CostWord) -> bool:
    """Whether a claim is about costs so close that one session of measuring does not decide: its interval covers that alone.

    Args:
        value, word: of a `CostRatio`.
    """
    return word in (CostWord.MORE, CostWord.LESS) and abs(value - 1) < CLOSE
