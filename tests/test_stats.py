"""The statistics against hand calculations, scipy and a known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import synthetic
from scipy import stats as scipy_stats

from bench import stats
from bench.records.comparisons import Baseline
from bench.stats import SHOWN
from bench.stats.planning import detectable
from reports.design import Design
from reports.frame import by_pair
from reports.gains import compare
from reports.summary import summary


def test_detectable_gain_is_found_with_eighty_percent_power():
    n, comparisons, spread = 5, 4, 0.5
    gain = detectable(n, comparisons) * spread
    draws = np.random.default_rng(4).normal(gain, spread, (20000, n))
    p = scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue
    assert (p < 0.05 / comparisons).mean() == pytest.approx(0.8, abs=0.012)


def test_expected_best_over_all_choices_of_runs():
    assert stats.expected_best([1.0, 2.0, 3.0, 4.0], 3) == pytest.approx((3 + 4 + 4 + 4) / 4)
    assert math.isnan(stats.expected_best([1.0, 2.0], 3))


def test_median_interval_lies_between_the_values_of_the_sign_test():
    # P(Binomial(25, 1/2) <= 7) = 2.16 %, P(... <= 8) = 5.39 %: the 8th values from both ends
    assert stats.median_interval([*range(25, 0, -1)]) == (13, 8, 18)
    assert stats.median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == (3.5, 1, 6)
    assert stats.median_interval([1.0, 2.0, 3.0])[0] == 2
    assert math.isnan(stats.median_interval([1.0, 2.0, 3.0, 4.0, 5.0])[1])


def test_break_even_by_hand():
    # kd: 40 s for 2 points beside a teacher of 120 s; tfd: 25 s for 1 point. (40 + 120/N) / 2 < 25 from N = 13 on.
    assert stats.break_even(40, 2, 120, 25, 1) == 13
    assert stats.break_even(60, 2, 120, 25, 1) == math.inf
    assert math.isnan(stats.break_even(40, 2, 120, 25, -1))


@pytest.mark.slow
def test_family_wise_error_on_planted_nulls_and_power_on_the_planted_gain():
    """1,000 draws with unequal n, a missing seed and a failed cell: errors at most 5 % plus three standard errors."""
    missing = [("kd", 3), ("tfd", 0), *(("tffd", seed) for seed in range(4, 8))]
    frame = synthetic.frame(synthetic.draw(synthetic.TRUTH, 8, np.random.default_rng(0), missing=missing))
    rows, table = by_pair(frame), summary(frame)
    gain = rows["label"].map(synthetic.TRUTH | {"kd": 0.8}).to_numpy()
    labels = dict(zip(rows["method_id"], rows["label"], strict=True))
    plain = table.loc[table["baseline"] == Baseline.NONE, "method_id"].item()
    rng = np.random.default_rng(7)
    errors, found, draws = 0, 0, 1000
    for _ in range(draws):
        shared = rng.normal(0, 0.3, 8)[rows["seed"]]
        rows["top1"] = 69 + gain + shared + rng.normal(0, 0.3, len(rows))
        decided = compare(table, rows, Design())
        shown = {labels[key[3]] for key, each in decided.items() if key[4] == plain and each["word"] in SHOWN}
        errors += bool(shown - {"kd"})
        found += "kd" in shown
    print(f"family-wise error {errors / draws:.3f}, power for a gain of 0.8 points, 7 seeds {found / draws:.3f}")
    assert errors / draws <= 0.071
    assert found / draws >= 0.6
