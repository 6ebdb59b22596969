"""Our trainings beside published numbers, by the rule that chose those."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def expected_best(values: Sequence[float] | np.ndarray, runs: int) -> float:
    """Mean of the best of `runs` runs over all ways to choose them: sum_i x_(i) C(i-1, runs-1) / C(n, runs); NaN with fewer."""
    ordered = np.sort(np.asarray(values, float))
    n = len(ordered)
    if n < runs:
        return math.nan
    weights = np.array([math.comb(i, runs - 1) for i in range(n)]) / math.comb(n, runs)
    return float(ordered @ weights)
