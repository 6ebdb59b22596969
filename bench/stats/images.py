"""The test set's share of the error, from which images each training classified correctly."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from bench.stats.intervals import LEVEL


class TwoWay(NamedTuple):
    """A mean difference with the error of seeds and of test images; points."""

    mean: float
    seeds: float  # standard error over seeds alone: sqrt(V_seed)
    images: float  # what seeds do not remove: sqrt(max(0, V_image - V_residual))
    error: float  # both: sqrt(V)
    df: float  # Satterthwaite
    low: float  # interval about other seeds and other test images; NaN below two seeds
    high: float


def two_way(ours: ArrayLike, theirs: ArrayLike, level: float = LEVEL) -> TwoWay:
    """Gain with the error of seeds and images: V = V_seed + V_image - V_residual, each part at least 0.

    V_seed = variance of seed means / n, V_image = variance of image means / N, V_residual = residual variance / (n N).
    The images' error averages out over seeds in part only: what stays is sqrt(max(0, V_image - V_residual)). The interval is
    never narrower than that of seeds alone, whose few degrees of freedom weigh more the higher the level.

    Args:
        ours, theirs: (seeds, images) of bool, classified correctly; rows paired by seed.
        level: of the interval.

    Raises:
        ValueError: the shapes differ, or there are fewer than two images.
    """
    a, b = _bits(ours), _bits(theirs)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] < 2:
        raise ValueError(f"shapes {a.shape} and {b.shape}; both must be (seeds, images), with two images or more")
    x = 100.0 * (a.astype(np.float64) - b)
    n, images = x.shape
    mean = float(x.mean())
    if n < 2:
        return TwoWay(mean, *[math.nan] * 6)
    by_seed, by_image = x.mean(axis=1), x.mean(axis=0)
    v_seed, v_image = float(by_seed.var(ddof=1)) / n, float(by_image.var(ddof=1)) / images
    rest = x - by_seed[:, None] - by_image + mean
    v_rest = float((rest**2).sum()) / ((n - 1) * (images - 1)) / (n * images)
    own = max(0.0, v_image - v_rest)
    v = v_rest + max(0.0, v_seed - v_rest) + own
    parts = v_seed**2 / (n - 1) + v_image**2 / (images - 1) + v_rest**2 / ((n - 1) * (images - 1))
    df = v**2 / parts if parts > 0 else math.nan
    alone = float(scipy_stats.t.ppf(0.5 + level / 2, n - 1)) * math.sqrt(v_seed)
    half = max(alone, float(scipy_stats.t.ppf(0.5 + level / 2, df)) * math.sqrt(v)) if v > 0 else math.nan
    return TwoWay(mean, math.sqrt(v_seed), math.sqrt(own), math.sqrt(v), df, mean - half, mean + half)


class McNemar(NamedTuple):
    only_ours: int  # images that only ours has right
    only_theirs: int
    p: float  # of equal accuracy on images like these, two-sided, exact


def mcnemar(ours: ArrayLike, theirs: ArrayLike) -> McNemar:
    """Two trained networks on one test set: the sign test over the images that one of them has right (McNemar, 1947).

    It is about these two networks, not about their methods, whose trainings differ by seed.

    Args:
        ours, theirs: (images,) of bool.
    """
    a, b = _bits(ours), _bits(theirs)
    plus, minus = int((a & ~b).sum()), int((b & ~a).sum())
    p = float(scipy_stats.binomtest(plus, plus + minus).pvalue) if plus + minus else 1.0
    return McNemar(plus, minus, p)


def agreement(ours: ArrayLike, theirs: ArrayLike) -> float:
    """% of images that both have right or both have wrong, as a student and its teacher; over all leading axes."""
    return float(100.0 * (_bits(ours) == _bits(theirs)).mean())


def _bits(values: ArrayLike) -> NDArray[np.bool_]:
    return np.asarray(values, dtype=bool)
