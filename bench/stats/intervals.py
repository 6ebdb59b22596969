"""Intervals of a mean and of a median."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import special
from scipy import stats as scipy_stats

LEVEL = 0.95  # of every interval
CONSTANT = 1e-9  # points of spread; below it values are constant up to rounding, and a t-test has no answer
ALPHA = 1 - LEVEL  # family-wise error of a family of comparisons


def half_interval(values: pd.Series | np.ndarray) -> float:
    """Half of the 95 % t-interval of a mean; NaN below two values, and where they do not differ."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    n = len(values)
    spread = float(values.std(ddof=1)) if n > 1 else 0.0
    return t_quantile(n - 1) * spread / math.sqrt(n) if spread > CONSTANT else math.nan


@lru_cache
def t_quantile(df: int) -> float:
    """How many standard errors a 95 % t-interval reaches to each side."""
    return float(special.stdtrit(df, 0.5 + LEVEL / 2))


def median_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Median and a 95 % interval for it between two of the values (the sign test's), whatever their distribution.

    The interval's limits are NaN below six values.
    """
    ordered = np.sort(np.asarray(values, float))
    rank = _outermost(len(ordered))
    low, high = (ordered[rank - 1], ordered[-rank]) if rank else (math.nan, math.nan)
    return float(np.median(ordered)), float(low), float(high)


@lru_cache
def _outermost(n: int) -> int:
    """Largest k with P(Binomial(n, 1/2) < k) <= 2.5 %: the k-th value from below and from above enclose the median."""
    return int(scipy_stats.binom.ppf(ALPHA / 2, n, 0.5))
