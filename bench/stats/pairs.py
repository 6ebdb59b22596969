"""One gain over several pairs of networks: about these pairs, or about pairs like these.

Rows must be distinct sets of runs. A method without a teacher has one row a student, not one row a pair.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.stats.intervals import CONSTANT
from bench.stats.paired import Estimate, Floats, estimate

COMPONENTS_FROM = 3  # independent groups of pairs; below, nothing is claimed of pairs like these


def over_these(differences: ArrayLike, students: Sequence[Hashable]) -> Estimate:
    """Mean gain over these pairs, with these teachers; the error is that of the seeds alone.

    Pairs of one student share the runs of the plain student, so their gains covary:
    V = sum over p, q of one student: w^2 s_pq n_pq / (n_p n_q), where w = 1 / pairs, s_pq is the covariance over common seeds.
    Degrees of freedom after Satterthwaite (1946): V^2 / sum over students V_b^2 / (n_b - 1).

    Args:
        differences: (..., pairs, seeds), points, NaN where a run is missing; pairs with fewer than two seeds are left out.
        students: (pairs,), equal for pairs that share runs.

    Returns:
        Arrays of the shape (...); n counts the pairs, spread is sqrt(V pairs), and df is NaN where no pair is left.
    """
    values = np.asarray(differences, float)
    there = ~np.isnan(values)
    n = there.sum(axis=-1)
    used = n > 1
    pairs = used.sum(axis=-1)
    with np.errstate(all="ignore"):
        gains = np.where(there, values, 0.0).sum(axis=-1) / n
        mean = np.where(used, gains, 0.0).sum(axis=-1) / pairs
        centered = np.where(there & used[..., None], values - gains[..., None], 0.0)
        variance, shrunk = np.zeros(mean.shape), np.zeros(mean.shape)
        for label in dict.fromkeys(students):
            rows = [index for index, student in enumerate(students) if student == label]
            own, seen, some = centered[..., rows, :], there[..., rows, :].astype(float), used[..., rows]
            common = seen @ seen.swapaxes(-1, -2)
            counts = n[..., rows].astype(float)
            shared = own @ own.swapaxes(-1, -2) / np.maximum(common - 1, 1)
            part = shared * common / (counts[..., :, None] * counts[..., None, :])
            part = np.where(some[..., :, None] & some[..., None, :], part, 0.0).sum(axis=(-1, -2)) / pairs**2
            part = np.maximum(part, 0.0)  # missing runs can turn a small covariance matrix negative
            df = np.where(some, counts, np.inf).min(axis=-1) - 1
            variance += part
            shrunk += np.where(np.isfinite(df), part**2 / np.maximum(df, 1), 0.0)
        error = np.sqrt(variance)
        error = np.where(error > CONSTANT, error, np.nan)
        df = np.where(pairs > 0, np.where(shrunk > 0, variance**2 / shrunk, 1.0), np.nan)
    return Estimate(pairs, mean, error * np.sqrt(pairs), error, df)


def components(students: Sequence[Hashable], teachers: Sequence[Hashable] | None = None) -> NDArray[np.int64]:
    """Number of the connected component of each pair: two pairs that share a student or a teacher are in one.

    Args:
        students, teachers: (pairs,); without teachers, or where one is None, only students connect.
    """
    names = [{("student", student)} for student in students]
    for nodes, teacher in zip(names, teachers or [None] * len(names), strict=True):
        nodes |= {("teacher", teacher)} if teacher is not None else set()
    groups: list[set[tuple[str, Hashable]]] = []
    for nodes in names:
        touching = [group for group in groups if group & nodes]
        groups = [group for group in groups if not group & nodes] + [nodes.union(*touching)]
    order = {id(group): index for index, group in enumerate(groups)}
    found = [next(order[id(group)] for group in groups if nodes <= group) for nodes in names]
    return np.array([list(dict.fromkeys(found)).index(index) for index in found], dtype=np.int64)


def like_these(gains: ArrayLike, students: Sequence[Hashable], teachers: Sequence[Hashable] | None = None) -> Estimate:
    """Mean gain over pairs like these: an unweighted t-test over independent groups of pairs.

    Pairs are averaged within a student, students within a connected component (see `components`). Weights by inverse variance
    would err after sequential seeds (.086 instead of .05).

    Args:
        gains: (..., pairs), the mean gain of each pair over its seeds; all finite.

    Returns:
        n counts the components; df is NaN, which is not tested, below `COMPONENTS_FROM` of them.

    Raises:
        ValueError: a gain is not finite.
    """
    values = np.asarray(gains, float)
    if not np.isfinite(values).all():
        raise ValueError("a gain is missing; leave its pair out")
    group = components(students, teachers)
    weights = np.zeros((int(group.max(initial=-1)) + 1, len(students)))
    for row, label in enumerate(students):
        of_group = {name for name, index in zip(students, group, strict=True) if index == group[row]}
        weights[group[row], row] = 1 / list(students).count(label) / len(of_group)
    found = estimate(values @ weights.T)
    if len(weights) >= COMPONENTS_FROM:
        return found
    nothing = np.full(np.shape(found.mean), math.nan)
    return found._replace(spread=nothing, error=nothing, df=nothing)


def profile(gains: ArrayLike, thresholds: ArrayLike) -> Floats:
    """Performance profile: the share of pairs whose mean gain is at least each threshold (points); Dolan and More, 2002."""
    values = np.asarray(gains, float)
    return np.asarray((values[~np.isnan(values)] >= np.asarray(thresholds, float)[..., None]).mean(axis=-1))
