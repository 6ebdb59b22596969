"""What a design can see before it is run: power, seeds that a gain takes, and what a spread guess is worth."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy import optimize, special
from scipy import stats as scipy_stats

from bench.stats.intervals import ALPHA, LEVEL

POWER = 0.8  # of the smallest detectable gain
FIELD_GAIN = 0.3  # points: the smaller gains that the field reports
SPREAD = 0.42  # points: of a paired difference in the reference records; a guess where there are no records
SEEDS_MOST = 2000  # beyond it no number of seeds is named
_QUANTILES, _WEIGHTS = np.polynomial.legendre.leggauss(400)


@lru_cache
def detectable(n: int, comparisons: int) -> float:
    """Smallest true gain, in standard deviations of a difference, found with 80 % power; two-sided, at ALPHA / comparisons.

    That level is what a lone gain must pass under the single-step rule. From the noncentral t distribution.
    """
    critical = special.stdtrit(n - 1, 1 - ALPHA / comparisons / 2)
    missed = lambda shift: scipy_stats.nct.cdf(critical, n - 1, shift) - (1 - POWER)  # noqa: E731
    return float(optimize.brentq(missed, 0.0, 3 * critical + 10, xtol=1e-3)) / math.sqrt(n)


@lru_cache
def power(n: int, gain: float, spread: float, comparisons: int = 1) -> float:
    """Probability that a true gain is shown: P(t' > t_{n-1, 1 - .05 / 2m}), t' noncentral by gain sqrt(n) / spread.

    Args:
        n: seeds; below two the power is 0.
        gain: true gain, points.
        spread: standard deviation of a paired difference, points, above 0.
        comparisons: m of the family.
    """
    if n < 2:
        return 0.0
    critical = special.stdtrit(n - 1, 1 - ALPHA / comparisons / 2)
    return float(scipy_stats.nct.sf(critical, n - 1, abs(gain) * math.sqrt(n) / spread))


def seeds_needed(gain: float, spread: float, comparisons: int = 1, wanted: float = POWER) -> int | None:
    """Smallest number of seeds that shows a true gain with the wanted power; None above `SEEDS_MOST`.

    Raises:
        ValueError: gain is 0, or spread is not above 0.
    """
    if gain == 0 or not spread > 0:
        raise ValueError(f"a gain other than 0 and a spread above 0 are needed, not {gain} and {spread}")
    return _smallest(lambda n: power(n, gain, spread, comparisons) >= wanted)


@lru_cache
def equivalence_power(n: int, margin: float, spread: float, comparisons: int = 1, gain: float = 0.0) -> float:
    """Probability that a true difference `gain` is shown to lie within the margin.

    P(|mean| < margin - t_{n-1, 1 - .05 / m} s / sqrt(n)), integrated over the distribution of s.
    """
    if n < 2:
        return 0.0
    share = (_QUANTILES + 1) / 2
    s = spread * np.sqrt(2 * special.gammaincinv((n - 1) / 2, share) / (n - 1))
    error = spread / math.sqrt(n)
    room = margin - special.stdtrit(n - 1, 1 - ALPHA / comparisons) * s / math.sqrt(n)
    inside = np.where(room > 0, special.ndtr((room - gain) / error) - special.ndtr((-room - gain) / error), 0.0)
    return float((_WEIGHTS / 2 * inside).sum())


def seeds_for_equivalence(margin: float, spread: float, comparisons: int = 1, wanted: float = POWER) -> int | None:
    """Smallest number of seeds that shows a true difference of 0 to lie within the margin; None above `SEEDS_MOST`."""
    return _smallest(lambda n: equivalence_power(n, margin, spread, comparisons) >= wanted)


def _smallest(enough: Callable[[int], bool]) -> int | None:
    if not enough(SEEDS_MOST):
        return None
    low, high = 1, SEEDS_MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def spread_interval(spread: float, df: float) -> tuple[float, float]:
    """95 % interval of a standard deviation that was estimated with df degrees of freedom (chi-squared, normal values).

    A spread from two differences of two seeds each says little: with df 2 the interval reaches to 6.3 times the estimate.
    """
    if not df > 0:
        return math.nan, math.nan
    low, high = (special.chdtri(df, tail) for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return spread * math.sqrt(df / low), spread * math.sqrt(df / high)
