"""Every method of a pair of networks against every baseline, paired by seed, as a table.

A *wide* frame has one row a seed, one column a method, accuracies in %, NaN where a run is missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import special

from bench.stats.intervals import ALPHA, t_quantile
from bench.stats.planning import detectable
from bench.stats.verdicts import Verdict

BASELINES = ("none", "kd")
BOOTSTRAP_FROM = 10  # pairs of runs; below, resampling a handful of values says nothing that t does not
RESAMPLES = 4000


def wide(rows: pd.DataFrame, value: str = "top1") -> pd.DataFrame:
    """One row a seed, one column a `method_id`, from rows of one pair; (method_id, seed) must be unique."""
    return rows.pivot(index="seed", columns="method_id", values=value)


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
            "detectable": [s * detectable(int(k), tested) if k > 1 else math.nan for s, k in zip(spread, n, strict=True)],
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


def verdict(gain: float, p_holm: float) -> Verdict:
    """What a difference shows, given the corrected p."""
    if math.isnan(p_holm):
        return Verdict.UNTESTED
    return Verdict.OPEN if p_holm > ALPHA else Verdict.BETTER if gain > 0 else Verdict.WORSE


def holm(p: np.ndarray | Sequence[float]) -> np.ndarray:
    """Holm's step-down correction; NaN stays NaN and does not count as a comparison."""
    p = np.asarray(p, float)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p)  # NaN last
    order = order[: int((~np.isnan(p)).sum())]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted


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
