"""Paired differences, and the words that a family of comparisons may use: intervals and words agree by construction.

Every comparison of a family is decided by a single-step rule. With m comparisons and a factor f for looks (see `looks`):
p_adjusted = min(1, f m p), and the interval has the level 1 - 0.05 / (f m). So the interval leaves out 0 exactly where
p_adjusted is below 0.05. Holm's p beside Bonferroni's intervals would not agree in up to 49 % of reports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from bench.stats.intervals import ALPHA, CONSTANT
from bench.stats.looks import look_factor
from bench.stats.planning import detectable

Floats = NDArray[np.float64]

DETECTABLE_MOST = 10.0  # points; a design that needs more than that sees nothing of interest


class Word(StrEnum):
    """What may be claimed of a difference."""

    SHOWN = "shown"  # the simultaneous interval leaves out 0
    SHOWN_EXPLORATORY = "shown, exploratory"  # likewise, in the family of comparisons that were not declared primary
    EQUIVALENT = "equivalent"  # shown to lie within the margin, after correction
    SUGGESTED = "suggested"  # p below 0.05 before correction, not after: among 15 null methods, 42 % of reports have one
    OPEN = "open"  # neither; nothing follows about the size of the difference
    NOT_TESTED = "not tested"  # fewer values than the test takes
    UNFINISHED = "unfinished"  # some seeds that were asked for are missing: no word before they are in


SHOWN = (Word.SHOWN, Word.SHOWN_EXPLORATORY)


class Estimate(NamedTuple):
    """Means with their errors: arrays of one shape, one entry a comparison. What all tests here start from."""

    n: NDArray[Any]  # values behind the mean
    mean: Floats  # points; NaN without values
    spread: Floats  # standard deviation of one value; NaN below two
    error: Floats  # standard error of the mean; NaN where there is no spread: then there is no interval and no p
    df: Floats  # degrees of freedom of the error; NaN where there are too few values for a test


class Decision(NamedTuple):
    """What follows from an `Estimate` within its family; arrays of its shape."""

    p: Floats  # of mean 0, two-sided, before correction
    p_adjusted: Floats  # after correction for the family and the looks
    p_equivalent: Floats  # of |mean| >= margin, after correction; NaN without a margin
    low: Floats  # simultaneous interval: of the level of the word
    high: Floats
    word: NDArray[Any]  # of `Word`


def pairwise(runs: ArrayLike, pairs: Sequence[tuple[int, int]]) -> tuple[Floats, NDArray[np.int64]]:
    """Differences by seed.

    Args:
        runs: (seeds, methods), accuracies in %, NaN where a run is missing.
        pairs: columns (method, baseline) of each comparison.

    Returns:
        (comparisons, seeds) differences in points, NaN where one side is missing; (comparisons,) seeds that only one side has.
    """
    table = np.asarray(runs, float)
    chosen = np.asarray(pairs, int).reshape(-1, 2)
    ours, theirs = table[:, chosen[:, 0]].T, table[:, chosen[:, 1]].T
    return ours - theirs, (np.isnan(ours) ^ np.isnan(theirs)).sum(axis=-1)


def correlation(runs: ArrayLike, pairs: Sequence[tuple[int, int]]) -> Floats:
    """Correlation of both sides over the seeds, one number a comparison; NaN below three seeds or without spread.

    Pairing helps where it is above 0. It is shown only: a test chosen by it would not keep its level.
    """
    table = np.asarray(runs, float)
    found = []
    for i, j in pairs:
        both = table[~np.isnan(table[:, i] + table[:, j])][:, [i, j]]
        usable = len(both) > 2 and (both.std(axis=0) > CONSTANT).all()
        found.append(float(np.corrcoef(both.T)[0, 1]) if usable else math.nan)
    return np.array(found)


def estimate(values: ArrayLike) -> Estimate:
    """Mean over the last axis, with the error of a t-test: s / sqrt(n), n - 1 degrees of freedom. NaN values are left out."""
    array = np.asarray(values, float)
    there = ~np.isnan(array)
    n = there.sum(axis=-1)
    with np.errstate(all="ignore"):
        mean = np.where(n > 0, np.where(there, array, 0.0).sum(axis=-1) / n, np.nan)
        squares = np.where(there, (array - mean[..., None]) ** 2, 0.0).sum(axis=-1)
        spread = np.where(n > 1, np.sqrt(squares / (n - 1)), np.nan)
        error = np.where(spread > CONSTANT, spread / np.sqrt(n), np.nan)
    return Estimate(n, mean, spread, error, np.where(n > 1, n - 1.0, np.nan))


def decide(
    estimates: Estimate,
    comparisons: int | None = None,
    *,
    looks: ArrayLike = 1,
    exploratory: bool = False,
    margin: float | None = None,
    diverged: ArrayLike = False,
    finished: ArrayLike = True,
) -> Decision:
    """Words and simultaneous intervals of one family; its error is at most 5 % in all.

    A comparison makes at most one false claim, whether its true value is 0 (shown), or at the margin or beyond (equivalent).
    So both kinds of claim share the level. What is shown is not also called equivalent.

    Args:
        estimates: of the family, which is the last axis; leading axes, if any, are families of their own.
        comparisons: m, the number that the grid declares, finished or not; by default all that can be tested.
        looks: number of the present look at each comparison, 1 for the first.
        exploratory: whether the family is the one of comparisons that were not declared primary.
        margin: points within which two accuracies count as the same; None asks for no equivalence.
        diverged: whether any training of either side diverged. It caps the word at "suggested": rare collapses break t-tests.
        finished: whether all seeds that were asked for are there.

    Raises:
        ValueError: comparisons is below the number of those that can be tested, or the margin is not above 0.
    """
    testable = np.sum(~np.isnan(estimates.df), axis=-1, keepdims=np.ndim(estimates.df) > 0)
    m = np.maximum(testable, 1) if comparisons is None else comparisons
    if comparisons is not None and np.max(testable, initial=0) > comparisons:
        raise ValueError(f"{np.max(testable)} comparisons were tested, more than the family's {comparisons}")
    if margin is not None and not margin > 0:
        raise ValueError(f"the margin is {margin}, it must be above 0")
    mean, error, df = estimates.mean, estimates.error, estimates.df
    factor = m * look_factor(looks)
    with np.errstate(invalid="ignore"):
        p = 2 * special.stdtr(df, -np.abs(mean / error))
        half = -special.stdtrit(df, ALPHA / factor / 2) * error
        p_equivalent = np.full(np.shape(p), np.nan)
        if margin is not None:
            p_equivalent = np.minimum(1.0, factor * special.stdtr(df, (np.abs(mean) - margin) / error))
        low, high = mean - half, mean + half
        word = np.select(
            [np.isnan(df), ~np.broadcast_to(finished, np.shape(p)), (low > 0) | (high < 0), p_equivalent < ALPHA, p < ALPHA],
            [Word.NOT_TESTED, Word.UNFINISHED, Word.SHOWN, Word.EQUIVALENT, Word.SUGGESTED],
            default=Word.OPEN,
        ).astype(object)
    word = cap(word, diverged)
    if exploratory:
        word = np.where(word == Word.SHOWN, Word.SHOWN_EXPLORATORY, word)
    return Decision(p, np.minimum(1.0, factor * p), p_equivalent, low, high, as_words(word))


def cap(word: NDArray[Any], diverged: ArrayLike) -> NDArray[Any]:
    """The words with "shown" lowered to "suggested" and "equivalent" to "open" where a training diverged."""
    lost = np.broadcast_to(np.asarray(diverged, bool), np.shape(word))
    word = np.where(lost & (word == Word.SHOWN), Word.SUGGESTED, word)
    return np.where(lost & (word == Word.EQUIVALENT), Word.OPEN, word)


def as_words(texts: NDArray[Any]) -> NDArray[Any]:
    return np.array([Word(text) for text in texts.ravel()], dtype=object).reshape(texts.shape)


def pooled_spread(estimates: Estimate, usable: ArrayLike = True) -> float:
    """Spread of one difference, pooled over a family: sqrt(sum df s^2 / sum df); NaN where no comparison has any spread.

    Args:
        usable: False leaves a comparison out, as one with a diverged training.
    """
    keep = ~np.isnan(estimates.error) & np.broadcast_to(np.asarray(usable, bool), np.shape(estimates.error))
    df, spread = estimates.df[keep], estimates.spread[keep]
    return math.sqrt(float((df * spread**2).sum() / df.sum())) if df.size else math.nan


def detectable_gain(estimates: Estimate, comparisons: int | None = None, usable: ArrayLike = True) -> float:
    """One number for a family: the true gain (points) that a comparison in it would have shown with 80 % probability.

    From the pooled spread and the median number of values, by the noncentral t. At most `DETECTABLE_MOST`, which then reads
    "or more". NaN where nothing has any spread.
    """
    spread = pooled_spread(estimates, usable)
    if math.isnan(spread):
        return math.nan
    tested = estimates.n[~np.isnan(estimates.error)]
    m = int((~np.isnan(estimates.df)).sum()) if comparisons is None else comparisons
    return min(DETECTABLE_MOST, spread * detectable(int(np.median(tested)), m))
