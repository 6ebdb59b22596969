"""The statistics against hand calculations, scipy and a known truth."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import synthetic
from scipy import stats as scipy_stats

from bench import stats
from bench.stats import SHOWN, Verdict
from reports.frame import by_pair


def test_gains_equal_scipys_paired_test_on_common_seeds():
    rng = np.random.default_rng(3)
    runs = pd.DataFrame(rng.normal(70, 0.4, (6, 3)), columns=["none", "kd", "tfd"])
    runs.loc[4, "kd"] = np.nan
    gains = stats.gains(runs, ("none", "kd")).set_index(["method", "baseline"])
    assert list(gains.index) == [("kd", "none"), ("tfd", "none"), ("tfd", "kd")]
    for method, base in gains.index:
        both = runs[[method, base]].dropna()
        expected = scipy_stats.ttest_rel(both[method], both[base])
        row, interval = gains.loc[(method, base)], expected.confidence_interval()
        assert row["n"] == len(both)
        assert row["p"] == pytest.approx(expected.pvalue)
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert list(gains["unpaired"]) == [1, 0, 1]


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, np.nan]) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)


def test_identical_differences_take_the_exact_sign_test_and_one_seed_none():
    runs = pd.DataFrame({"none": [60.0, 61.0, 62.0], "kd": [61.0, 62.0, 63.0], "ls": [60.0, 61.0, 62.0]})
    gains = stats.gains(runs, ["none"]).set_index("method")
    assert gains.loc["kd", "p"] == pytest.approx(2 * 0.5**3)
    assert gains.loc["ls", "p"] == 1
    single = stats.gains(runs[:1], ["none"])
    assert set(single["verdict"]) == {Verdict.UNTESTED}
    assert single["low"].isna().all()


def test_detectable_gain_is_found_with_eighty_percent_power():
    n, comparisons, spread = 5, 4, 0.5
    gain = stats._detectable(n, comparisons) * spread
    draws = np.random.default_rng(4).normal(gain, spread, (20000, n))
    p = scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue
    assert (p < 0.05 / comparisons).mean() == pytest.approx(0.8, abs=0.012)


def test_bootstrap_appears_from_ten_seeds_and_is_near_the_t_interval():
    runs = pd.DataFrame(np.random.default_rng(5).normal(70, 0.4, (40, 2)), columns=["none", "kd"])
    assert stats.gains(runs[:9], ("none",))["boot_low"].isna().all()
    row = stats.gains(runs, ("none",)).iloc[0]
    assert (row["boot_low"], row["boot_high"]) == pytest.approx((row["low"], row["high"]), abs=0.03)


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


def test_ranks_from_six_pairs_up_with_nemenyis_critical_difference():
    rng = np.random.default_rng(6)
    means = pd.DataFrame(rng.normal((3, 2, 1, 0), 0.1, (10, 4)), columns=list("abcd"))
    mean_rank, difference, p = stats.ranks(means)
    assert mean_rank.to_dict() == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 10)), abs=1e-3)  # q of Demšar 2006, table 5a
    assert p < 1e-4
    assert stats.ranks(means[:5]) is None


@pytest.mark.slow
def test_family_wise_error_on_planted_nulls_and_power_on_the_planted_gain():
    """1,000 draws with unequal n, a missing seed and a failed cell: errors at most 5 % plus three standard errors."""
    missing = [("kd", 3), ("tfd", 0), *(("tffd", seed) for seed in range(4, 8))]
    frame = synthetic.frame(synthetic.draw(synthetic.TRUTH, 8, np.random.default_rng(0), missing=missing))
    rows = by_pair(frame)
    gain = rows["label"].map(synthetic.TRUTH | {"kd": 0.8}).to_numpy()
    labels = dict(zip(rows["method_id"], rows["label"], strict=True))
    ids = {label: method_id for method_id, label in labels.items()}
    rng = np.random.default_rng(7)
    errors, found, draws = 0, 0, 1000
    for _ in range(draws):
        shared = rng.normal(0, 0.3, 8)[rows["seed"]]
        rows["top1"] = 69 + gain + shared + rng.normal(0, 0.3, len(rows))
        gains = stats.gains(stats.wide(rows), [ids["none"], ids["kd"]])
        gains = gains[gains["baseline"] == ids["none"]]
        shown = {labels[method_id] for method_id in gains["method"][gains["verdict"].isin(SHOWN)]}
        errors += bool(shown - {"kd"})
        found += "kd" in shown
    print(f"family-wise error {errors / draws:.3f}, power for a gain of 0.8 points, 7 seeds {found / draws:.3f}")
    assert errors / draws <= 0.071
    assert found / draws >= 0.6


def test_equivalence_is_shown_by_small_differences_alone():
    # by hand: mean .1, standard error .05, so t = .4 / .05 = 8 against +.5, with 3 degrees of freedom
    differences = np.array([0.0, 0.1, 0.1, 0.2]) + 0.0
    standard_error = differences.std(ddof=1) / 2
    expected = 1 - scipy_stats.t.cdf(0.4 / standard_error, 3)
    assert stats.equivalence_p(differences) == pytest.approx(expected)
    assert stats.equivalence_p(differences + 0.4) == pytest.approx(0.5)  # the mean on the margin
    assert stats.equivalence_p(np.array([-3.0, 3.0, -2.0, 2.0])) > 0.05  # no difference, but nothing shown
    assert stats.equivalence_p(np.zeros(3)) == 0.0
    assert math.isnan(stats.equivalence_p(np.array([0.1])))
