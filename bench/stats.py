"""Differences judged honestly: paired by seed, with intervals, corrected for the number of comparisons.

A *wide* frame has one row a seed, one column a method, accuracies in %, NaN where a run is missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import optimize, special
from scipy import stats as scipy_stats

LEVEL = 0.95  # of every interval
ALPHA = 1 - LEVEL  # family-wise error of a table
MARGIN = 0.5  # points within which two accuracies count as the same, in a test of equivalence
POWER = 0.8  # of the smallest detectable gain
BASELINES = ("none", "kd")
BOOTSTRAP_FROM = 10  # pairs of runs; below, resampling a handful of values says nothing that t does not
RESAMPLES = 4000
RANKS_FROM = 6  # pairs of networks


def wide(rows: pd.DataFrame, value: str = "top1") -> pd.DataFrame:
    """One row a seed, one column a method, from rows of one pair; (method, seed) must be unique."""
    return rows.pivot(index="seed", columns="method", values=value)


def half_interval(values: pd.Series | np.ndarray) -> float:
    """Half of the 95 % t-interval of a mean; NaN below two values."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    n = len(values)
    return t_quantile(n - 1) * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan


def equivalence_p(differences: pd.Series | np.ndarray, margin: float = MARGIN) -> float:
    """Whether paired differences are shown to be small: the p-value of two one-sided t-tests against +/- `margin` points.

    Below 5 % the mean difference lies within the margin; a large value shows nothing. NaN below two values.
    """
    values = np.asarray(differences, float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return math.nan
    if values.std() == 0:  # a t-test of constants has no answer
        return 0.0 if abs(values[0]) < margin else 1.0
    above = scipy_stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = scipy_stats.ttest_1samp(values, margin, alternative="less").pvalue
    return float(max(above, below))


def gains(accuracies: pd.DataFrame, baselines: Sequence[str] = BASELINES) -> pd.DataFrame:
    """Every method against every baseline, paired by seed; one family for Holm's correction.

    Args:
        accuracies: wide frame of one pair.
        baselines: methods to compare with; those that did not run are left out, as is what has been compared before.

    Returns:
        One row a comparison: method, baseline, n (seeds that both have), unpaired (seeds that only one has), gain (points),
        low and high (95 % t-interval), p (paired t), p_holm, verdict, detectable (the true gain that this design, with this
        spread and this many comparisons, would have found with 80 % probability), boot_low, boot_high (from 10 seeds up).
    """
    runs = accuracies.to_numpy(float)
    column = {name: index for index, name in enumerate(accuracies.columns)}
    present = [name for name in baselines if name in column]
    pairs = [
        (name, base) for index, base in enumerate(present) for name in column if name != base and name not in present[:index]
    ]
    if not pairs:
        return pd.DataFrame(columns=GAIN_COLUMNS)
    methods, bases = (runs[:, [column[pair[side]] for pair in pairs]] for side in (0, 1))
    differences = methods - bases
    both = ~np.isnan(differences)
    n = both.sum(axis=0)
    counted = np.where(both, differences, 0.0)
    with np.errstate(all="ignore"):
        gain = np.where(n > 0, counted.sum(axis=0) / n, np.nan)
        spread = np.sqrt(np.where(both, (counted - gain) ** 2, 0.0).sum(axis=0) / (n - 1))
        spread = np.where(n > 1, spread, np.nan)
        constant = spread <= 1e-9  # identical differences: t would be infinite, the exact sign test is not fooled
        error = spread / np.sqrt(n)
        p = 2 * special.stdtr(np.maximum(n - 1, 1), -np.abs(gain / error))
        p = np.where(constant, np.where(np.abs(gain) <= 1e-9, 1.0, 2.0 ** (1 - n)), p)
    half = np.array([t_quantile(k - 1) if k > 1 else math.nan for k in n]) * error
    p_holm = holm(p)
    tested = int((n > 1).sum())
    bootstrap = [_bootstrap(differences[both[:, i], i]) for i in range(len(pairs))]
    return pd.DataFrame(
        {
            "method": [pair[0] for pair in pairs],
            "baseline": [pair[1] for pair in pairs],
            "n": n,
            "unpaired": (~np.isnan(methods) ^ ~np.isnan(bases)).sum(axis=0),
            "gain": gain,
            "low": gain - half,
            "high": gain + half,
            "p": p,
            "p_holm": p_holm,
            "verdict": [verdict(*values) for values in zip(gain, p_holm, strict=True)],
            "detectable": [s * _detectable(int(k), tested) if k > 1 else math.nan for s, k in zip(spread, n, strict=True)],
            "boot_low": [low for low, _ in bootstrap],
            "boot_high": [high for _, high in bootstrap],
        },
        columns=GAIN_COLUMNS,
    )


GAIN_COLUMNS = [
    *(
        "method",
        "baseline",
        "n",
        "unpaired",
        "gain",
        "low",
        "high",
        "p",
        "p_holm",
        "verdict",
        "detectable",
        "boot_low",
        "boot_high",
    )
]


def verdict(gain: float, p_holm: float) -> str:
    """What may be said of a difference, given the corrected p."""
    if math.isnan(p_holm):
        return "not tested"
    return "no difference shown" if p_holm > ALPHA else "better" if gain > 0 else "worse"


def holm(p: np.ndarray | Sequence[float]) -> np.ndarray:
    """Holm's step-down correction; NaN stays NaN and does not count as a comparison."""
    p = np.asarray(p, float)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p)  # NaN last
    order = order[: int((~np.isnan(p)).sum())]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted


@lru_cache
def t_quantile(df: int) -> float:
    """How many standard errors a 95 % t-interval reaches to each side."""
    return float(special.stdtrit(df, 0.5 + LEVEL / 2))


@lru_cache
def _detectable(n: int, comparisons: int) -> float:
    """Smallest true gain, in standard deviations of a difference, found with 80 % power; two-sided, at ALPHA / comparisons.

    That level is Holm's for the smallest p, so it is what a lone gain must pass. From the noncentral t distribution.
    """
    critical = special.stdtrit(n - 1, 1 - ALPHA / comparisons / 2)
    missed = lambda shift: scipy_stats.nct.cdf(critical, n - 1, shift) - (1 - POWER)  # noqa: E731
    return float(optimize.brentq(missed, 0.0, 3 * critical + 10, xtol=1e-3)) / math.sqrt(n)


def _bootstrap(differences: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the mean; the same draws every time."""
    n = len(differences)
    if n < BOOTSTRAP_FROM:
        return math.nan, math.nan
    means = differences[_draws(n)].mean(axis=1)
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _draws(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(n, size=(RESAMPLES, n))


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


def expected_best(values: Sequence[float] | np.ndarray, runs: int) -> float:
    """Mean of the best of `runs` runs over all ways to choose them: sum_i x_(i) C(i-1, runs-1) / C(n, runs); NaN with fewer."""
    ordered = np.sort(np.asarray(values, float))
    n = len(ordered)
    if n < runs:
        return math.nan
    weights = np.array([math.comb(i, runs - 1) for i in range(n)]) / math.comb(n, runs)
    return float(ordered @ weights)


def break_even(own_s: float, gain: float, teacher_s: float, rival_s: float, rival_gain: float) -> float:
    """How many students must share a teacher before a method with one costs less per point gained than a rival without.

    The smallest whole N with (own_s + teacher_s / N) / gain < rival_s / rival_gain; inf where no number is enough, NaN where a
    gain is not above zero or a cost is unknown.
    """
    if not (gain > 0 and rival_gain > 0) or any(map(math.isnan, (own_s, teacher_s, rival_s))):
        return math.nan
    left = gain * rival_s / rival_gain - own_s
    return math.inf if left <= 0 else max(1, math.floor(teacher_s / left) + 1)


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
