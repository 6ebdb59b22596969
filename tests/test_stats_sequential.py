"""Sequential seeds: bounds against simulated paths, decisions against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bench.stats.designs import behavior
from bench.stats.paired import Word
from bench.stats.sequential import SeedRule, follow, nominal_levels


@pytest.mark.parametrize(("level", "first", "most"), [(0.05, 3, 12), (0.05 / 4, 2, 8)])
def test_levels_spend_the_error_as_planned(level, first, most):
    levels = nominal_levels(level, first, most)
    assert levels[0] == pytest.approx(level * (first / most) ** 2)
    paths = 200_000
    x = np.random.default_rng(11).standard_normal((paths, most))
    rejected = np.zeros(paths, bool)
    for n, nominal in zip(range(first, most + 1), levels, strict=True):
        t = x[:, :n].mean(axis=1) / (x[:, :n].std(axis=1, ddof=1) / math.sqrt(n))
        rejected |= np.abs(t) > scipy_stats.t.isf(nominal / 2, n - 1)
        goal = level * (n / most) ** 2
        assert rejected.mean() == pytest.approx(goal, abs=4 * math.sqrt(goal / paths))


def test_one_look_is_a_plain_t_test():
    assert nominal_levels(0.05, 7, 7) == pytest.approx((0.05,))


def by_hand(values, rule):
    """One comparison, as the rule is worded."""
    low, high = -math.inf, math.inf
    for n in range(rule.first, len(values) + 1):
        seen, level = values[:n], rule.levels[n - rule.first]
        error = seen.std(ddof=1) / math.sqrt(n)
        half = scipy_stats.t.ppf(1 - level / 2, n - 1) * error
        low, high = max(low, seen.mean() - half), min(high, seen.mean() + half)
        short = scipy_stats.t.ppf(1 - level, n - 1) * error
        if low <= high and (low > 0 or high < 0):
            return "shown", n, low, high
        if low <= high and seen.mean() - short > -rule.margin and seen.mean() + short < rule.margin:
            return "equivalent", n, low, high
    return "open", len(values), low if low <= high else math.nan, high if low <= high else math.nan


def test_decisions_are_those_of_a_plain_loop():
    rule = SeedRule(3, 12, 2, 0.4)
    rng = np.random.default_rng(4)
    values = rng.normal(rng.choice([0.0, 0.4, 1.0], (300, 1)), 0.4, (300, 12))
    found = follow(values, rule)
    assert {"shown", "equivalent", "open"} == set(map(str, found.word))
    for row in range(300):
        word, n, low, high = by_hand(values[row], rule)
        assert (str(found.word[row]), found.n[row]) == (word, n)
        assert (found.low[row], found.high[row]) == pytest.approx((low, high), nan_ok=True)
        assert found.mean[row] == pytest.approx(values[row, :n].mean())
    assert found.decided.all()


def test_what_is_not_trained_yet_is_open_and_what_is_constant_decides_nothing():
    rule = SeedRule(3, 10, 1)
    values = np.array([[1.0, 1.1, np.nan, 0.9], [0.1, 0.1, 0.1, 0.1], [0.9, -0.5, 0.3, 0.1]])
    found = follow(values, rule)
    assert list(found.word) == ["unfinished", "open", "open"]
    assert list(found.n) == [2, 4, 4]
    assert np.isnan(found.low[:2]).all()
    assert not found.decided.any()


def test_a_divergence_caps_the_word():
    values = np.array([[1.0, 1.1, 0.9, 1.0, 1.05, 0.95]] * 2)
    found = follow(values, SeedRule(3, 6, 1), diverged=[False, True])
    assert list(found.word) == [Word.SHOWN, Word.SUGGESTED]


@pytest.mark.parametrize("wrong", [(1, 5, 1, 0.3), (6, 5, 1, 0.3), (3, 5, 0, 0.3), (3, 5, 1, 0.0)])
def test_rules_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="seeds"):
        SeedRule(*wrong)


def test_behavior_of_the_default_rule():
    """Power .80 with 14.7 seeds where 18 fixed ones are needed; a true .3 reads .37 when shown; no more than 5 % error."""
    seen = behavior(SeedRule(3, 20, 1), 0.3, 0.42)
    assert seen.shown == pytest.approx(0.80, abs=0.015)
    assert seen.seeds == pytest.approx(14.7, abs=0.3)
    assert seen.fixed_seeds == 18
    assert seen.saving == pytest.approx(0.19, abs=0.03)
    assert seen.mean_where_shown == pytest.approx(0.37, abs=0.01)
    null = behavior(SeedRule(3, 20, 1), 0.0, 0.42)
    assert null.wrong < 0.05 + 3 * math.sqrt(0.05 / 20_000)
    assert null.fixed_seeds is None
    assert math.isnan(null.saving)
