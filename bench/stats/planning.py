"""What a design can see before it is run."""

from __future__ import annotations

import math
from functools import lru_cache

from scipy import optimize, special
from scipy import stats as scipy_stats

from bench.stats.intervals import ALPHA

POWER = 0.8  # of the smallest detectable gain


@lru_cache
def detectable(n: int, comparisons: int) -> float:
    """Smallest true gain, in standard deviations of a difference, found with 80 % power; two-sided, at ALPHA / comparisons.

    That level is Holm's for the smallest p, so it is what a lone gain must pass. From the noncentral t distribution.
    """
    critical = special.stdtrit(n - 1, 1 - ALPHA / comparisons / 2)
    missed = lambda shift: scipy_stats.nct.cdf(critical, n - 1, shift) - (1 - POWER)  # noqa: E731
    return float(optimize.brentq(missed, 0.0, 3 * critical + 10, xtol=1e-3)) / math.sqrt(n)
