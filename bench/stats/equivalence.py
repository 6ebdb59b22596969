"""Whether a difference is shown to be small."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

MARGIN = 0.5  # points within which two accuracies count as the same


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
