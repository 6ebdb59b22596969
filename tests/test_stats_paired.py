"""Paired comparisons, their words, looks, planning: against scipy, direct simulation, and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bench.stats.looks import look_factor, look_number
from bench.stats.paired import Word, correlation, decide, detectable_gain, estimate, pairwise, pooled_spread
from bench.stats.planning import (
    detectable,
    equivalence_power,
    power,
    seeds_for_equivalence,
    seeds_needed,
    spread_interval,
)
from bench.stats.teachers import over_teachers, teacher_spread


def test_a_family_agrees_with_scipy_and_with_bonferroni():
    rng = np.random.default_rng(3)
    values = rng.normal([[0.5], [0.0], [-1.0]], 0.4, (3, 5))
    values[1, 4] = np.nan
    decision = decide(estimate(values), comparisons=7)
    for row, d in enumerate(values):
        seen = d[~np.isnan(d)]
        test = scipy_stats.ttest_1samp(seen, 0.0)
        interval = test.confidence_interval(1 - 0.05 / 7)
        assert decision.p[row] == pytest.approx(test.pvalue)
        assert decision.p_adjusted[row] == pytest.approx(min(1, 7 * test.pvalue))
        assert (decision.low[row], decision.high[row]) == pytest.approx((interval.low, interval.high))


def test_words_agree_with_intervals_in_every_draw():
    values = np.random.default_rng(5).normal(0.5, 0.4, (2000, 5))
    decision = decide(estimate(values[:, None]), comparisons=6)
    shown = decision.word == Word.SHOWN
    assert 0.05 < shown.mean() < 0.95
    np.testing.assert_array_equal(shown, (decision.low > 0) | (decision.high < 0))
    np.testing.assert_array_equal(shown, decision.p_adjusted < 0.05)
    np.testing.assert_array_equal(decision.word == Word.SUGGESTED, (decision.p < 0.05) & ~shown)


def test_what_cannot_be_tested_has_no_numbers():
    values = np.array([[1.0, 1.0, 1.0], [1.0, np.nan, np.nan], [np.nan] * 3, [0.1 + 0.2, 0.3, 0.3], [1.0, 2.0, 3.0]])
    estimates = estimate(values)
    decision = decide(estimates, margin=5.0)
    assert list(decision.word) == ["open", "not tested", "not tested", "open", "open"]
    for row in range(4):  # constants are neither shown nor equivalent, up to rounding noise
        assert np.isnan([decision.p[row], decision.low[row], decision.high[row], decision.p_equivalent[row]]).all()
    assert estimates.mean[0] == 1.0
    assert math.isnan(detectable_gain(estimate(values[:4])))
    assert detectable_gain(estimate(values[4:])) == pytest.approx(detectable(3, 1), abs=1e-9)


def test_equivalence_is_two_one_sided_tests_corrected_for_the_family():
    d = np.array([0.1, -0.05, 0.02, 0.08])
    error, mean = d.std(ddof=1) / 2, d.mean()
    expected = max(scipy_stats.t.sf((mean + 0.3) / error, 3), scipy_stats.t.cdf((mean - 0.3) / error, 3))
    decision = decide(estimate(d[None]), 5, margin=0.3)
    assert decision.p_equivalent[0] == pytest.approx(5 * expected)
    assert decision.word[0] == Word.EQUIVALENT
    assert decide(estimate(d[None]), 500, margin=0.3).word[0] == Word.OPEN


def test_divergence_caps_the_word_and_unfinished_seeds_have_none():
    values = np.array([[1.0, 1.1, 0.9, 1.0], [0.01, -0.01, 0.02, 0.0]])
    words = lambda **options: [str(word) for word in decide(estimate(values), margin=0.5, **options).word]  # noqa: E731
    assert words() == ["shown", "equivalent"]
    assert words(exploratory=True) == ["shown, exploratory", "equivalent"]
    assert words(diverged=[True, True]) == ["suggested", "open"]
    assert words(finished=[False, True]) == ["unfinished", "equivalent"]
    with pytest.raises(ValueError, match="more than the family's 1"):
        decide(estimate(values), 1)
    with pytest.raises(ValueError, match="margin"):
        decide(estimate(values), margin=0.0)


def test_pairs_are_by_seed():
    runs = np.array([[60.0, 61.0], [61.0, np.nan], [62.0, 64.0], [np.nan, 65.0]])
    differences, unpaired = pairwise(runs, [(1, 0)])
    np.testing.assert_array_equal(differences, [[1.0, np.nan, 2.0, np.nan]])
    assert unpaired == [2]
    runs = np.array([[1.0, 2.0], [2.0, 3.0], [4.0, 3.5], [3.0, 9.0]])
    assert correlation(runs, [(0, 1)]) == pytest.approx(scipy_stats.pearsonr(*runs.T).statistic)
    assert np.isnan(correlation(np.ones((5, 2)), [(0, 1)])).all()


def test_one_detectable_size_from_the_pooled_spread():
    values = np.array([[0.0, 2.0, np.nan], [0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])  # s^2 = 2 with 1 df, 1 with 2; a constant
    assert pooled_spread(estimate(values)) == pytest.approx(math.sqrt(4 / 3))
    assert detectable_gain(estimate(values * 1000)) == 10.0  # capped


def test_looks_cost():
    assert list(look_factor([1, 2, 3, 4])) == [1, 6, 12, 20]
    with pytest.raises(ValueError, match="from 1"):
        look_factor(0)
    assert look_number([range(3)], [True]) == 1
    assert look_number([range(3), range(5)], [True, True]) == 2
    assert look_number([range(3), range(5)], [False, True]) == 1  # more were asked for before the first were in
    assert look_number([range(3), range(3)], [True, True]) == 1  # nothing was added
    assert look_number([range(3), range(5), range(10)], [True, True, False]) == 3
    values = np.random.default_rng(0).normal(0.6, 0.4, (1, 5))
    first, second = decide(estimate(values), 2), decide(estimate(values), 2, looks=[2])
    assert second.p_adjusted[0] == pytest.approx(min(1.0, 6 * first.p_adjusted[0]))
    np.testing.assert_allclose(
        [second.low[0], second.high[0]], scipy_stats.ttest_1samp(values[0], 0).confidence_interval(1 - 0.05 / 12)
    )


def test_power_is_what_a_simulation_counts():
    draws = np.random.default_rng(7).normal(0.5, 0.42, (20_000, 5))
    counted = float((decide(estimate(draws[:, None]), comparisons=4).word == Word.SHOWN).mean())
    assert power(5, 0.5, 0.42, 4) == pytest.approx(counted, abs=0.012)
    assert power(1, 0.5, 0.42) == 0.0


def test_seeds_for_the_gains_that_the_field_reports():
    spread = 0.3 * math.sqrt(2)
    assert [seeds_needed(0.3, spread, m) for m in (1, 13, 57)] == [18, 33, 41]
    assert [seeds_needed(0.8, spread, m) for m in (1, 13, 57)] == [5, 9, 11]
    assert power(3, 0.3, 0.42, 16) == pytest.approx(0.01, abs=0.003)
    n = seeds_needed(0.3, 0.42, 1)
    assert n is not None
    assert power(n - 1, 0.3, 0.42) < 0.8 <= power(n, 0.3, 0.42)
    assert seeds_needed(0.001, 1.0) is None
    with pytest.raises(ValueError, match="gain"):
        seeds_needed(0.0, 1.0)


def test_power_of_equivalence_is_what_a_simulation_counts():
    draws = np.random.default_rng(8).normal(0.05, 0.42, (20_000, 12))
    mean, error = draws.mean(axis=1), draws.std(axis=1, ddof=1) / math.sqrt(12)
    counted = float((np.abs(mean) + scipy_stats.t.ppf(1 - 0.05 / 2, 11) * error < 0.4).mean())
    assert equivalence_power(12, 0.4, 0.42, 2, 0.05) == pytest.approx(counted, abs=0.012)
    n = seeds_for_equivalence(0.3, 0.42)
    assert n is not None
    assert equivalence_power(n - 1, 0.3, 0.42) < 0.8 <= equivalence_power(n, 0.3, 0.42)


def test_a_spread_guess_from_few_seeds_is_wide():
    low, high = spread_interval(1.0, 2)
    assert (low, high) == pytest.approx((1 / math.sqrt(7.3778 / 2), 1 / math.sqrt(0.050636 / 2)), rel=1e-4)
    assert math.isnan(spread_interval(1.0, 0)[0])


def test_teachers_count_where_there_are_several():
    d = np.array([1.0, 1.2, 0.8, 2.0, 2.2, 1.8])
    teachers = [0, 0, 0, 1, 1, 1]
    spread = teacher_spread(d, teachers)
    f = scipy_stats.f_oneway(d[:3], d[3:])
    # MS_between = 3 (0.5^2 + 0.5^2) = 1.5, MS_within = 0.04, n0 = 3
    assert spread.separable
    assert (spread.between, spread.within, spread.p) == pytest.approx((math.sqrt((1.5 - 0.04) / 3), 0.2, f.pvalue))
    means = over_teachers(d, teachers)
    assert (int(means.n), float(means.mean), float(means.df)) == pytest.approx((2, 1.5, 1))
    assert decide(over_teachers(d, ["only"] * 6)).word == Word.NOT_TESTED
    each = over_teachers(d, range(6))
    assert float(each.error) == pytest.approx(scipy_stats.sem(d))
    assert not teacher_spread(d, range(6)).separable
    assert not teacher_spread(d, [0] * 6).separable


def test_teacher_spread_is_right_on_average():
    rng = np.random.default_rng(2)
    teachers = [0, 0, 0, 0, 1, 1, 2, 2, 2]  # uneven
    found = [
        teacher_spread(rng.normal(0, 1.0, 3)[teachers] + rng.normal(0, 0.5, 9), teachers).between ** 2 for _ in range(3000)
    ]
    assert np.mean(found) == pytest.approx(1.0, abs=0.1)
