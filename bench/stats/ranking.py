"""Ranks of methods over pairs of networks."""

from __future__ import annotations

import math

import pandas as pd
from scipy import stats as scipy_stats

from bench.stats.intervals import LEVEL

RANKS_FROM = 6  # pairs of networks


def ranks(means: pd.DataFrame) -> tuple[pd.Series, float, float] | None:
    """Friedman's test and Nemenyi's critical difference over pairs of networks.

    Args:
        means: one row a pair, one column a method, mean accuracies; only methods present in every row are ranked.

    Returns:
        Mean ranks (1 is best, ties shared), critical difference at 5 %, Friedman's p; None below 6 rows or 3 methods.
    """
    complete = means.dropna(axis="columns")
    n, k = complete.shape
    if n < RANKS_FROM or k < 3:
        return None
    mean_rank = complete.rank(axis="columns", ascending=False).mean().sort_values()
    q = scipy_stats.studentized_range.ppf(LEVEL, k, math.inf) / math.sqrt(2)
    _, p = scipy_stats.friedmanchisquare(*(complete[name] for name in complete))
    return mean_rank, float(q * math.sqrt(k * (k + 1) / (6 * n))), float(p)
