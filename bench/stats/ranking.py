"""Ranks of methods over pairs of networks."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from bench.stats.intervals import LEVEL
from bench.stats.paired import Floats

RANKS_FROM = 6  # students


class Ranking(NamedTuple):
    """Mean ranks over students, 1 is best; methods at least the critical difference apart differ."""

    names: tuple[str, ...]  # best first
    mean_ranks: Floats
    critical: float  # Nemenyi, 5 %
    p: float  # Friedman
    students: int  # blocks


def rank_students(means: ArrayLike, students: Sequence[Hashable], names: Sequence[str]) -> Ranking | None:
    """Friedman's test and Nemenyi's critical difference, with each student counted once.

    Accuracies are averaged over the teachers of a student first. Pairs of one student share runs: ranked one by one, some
    methods come out different in .39 (2 students x 3 teachers) to .75 (2 x 6) of reports without a true difference.

    Args:
        means: (pairs, methods), mean accuracies, NaN where a method did not run.
        students: (pairs,), equal for pairs that share runs.
        names: (methods,); only methods that all students have with all their teachers are ranked.

    Returns:
        None below `RANKS_FROM` students or 3 methods.
    """
    table = np.asarray(means, float)
    labels = list(dict.fromkeys(students))
    blocks = np.array([table[[student == label for student in students]].mean(axis=0) for label in labels])
    complete = ~np.isnan(blocks).any(axis=0) if len(blocks) else np.zeros(len(names), bool)
    blocks, kept = blocks[:, complete] if len(blocks) else blocks, [n for n, c in zip(names, complete, strict=True) if c]
    n, k = len(labels), len(kept)
    if n < RANKS_FROM or k < 3:
        return None
    ranked = scipy_stats.rankdata(-blocks, axis=1).mean(axis=0)
    order = np.argsort(ranked, kind="stable")
    _, p = scipy_stats.friedmanchisquare(*blocks.T)
    return Ranking(tuple(kept[i] for i in order), ranked[order], _critical_difference(k, n), float(p), n)


def _critical_difference(methods: int, blocks: int) -> float:
    q = scipy_stats.studentized_range.ppf(LEVEL, methods, math.inf) / math.sqrt(2)
    return float(q * math.sqrt(methods * (methods + 1) / (6 * blocks)))
