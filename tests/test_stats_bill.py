"""Break-even, prices, cost ratios, published claims: against brute force and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bench.stats.bill import price, students_to_share, with_search
from bench.stats.claims import ClaimWord, best_minus_last, check_claim, normal_best
from bench.stats.ratios import CostWord, apart_ratio, flops_ratio, time_ratio, wants_second_session

rng = np.random.default_rng(0)
K = rng.normal(2.0, 0.2, 8)  # gains of the method with a teacher
F = rng.normal(1.0, 0.1, 8)
TURNS = np.random.default_rng(1).normal(0.0, 0.2, 25)


def test_break_even_is_the_smallest_number_by_brute_force():
    a, b, teacher = 4.0, 10.0, 300.0
    found = students_to_share(K, F, a, b, teacher, True)
    smallest = next(n for n in range(1, 10_000) if (a + teacher / n) / K.mean() < b / F.mean())
    assert found.students == smallest
    assert found.determined
    assert found.low <= found.students <= found.high
    inside = []
    for n in range(1, 2000):  # the interval by its definition, one number at a time
        d = F * (a + teacher / n) - K * b
        if abs(d.mean()) <= scipy_stats.t.ppf(0.975, 7) * scipy_stats.sem(d):
            inside.append(n)
    assert found.low - 1 <= inside[0] <= found.low + 1
    assert found.high - 1 <= inside[-1] <= found.high + 1


def test_incremental_costs_decide_not_average_ones():
    """The student's own training, which all need, is not charged to the gain: 21 by increments where averages gave 1."""
    seeds = np.array([-0.1, 0.0, 0.1])
    # none costs 100; kd 104 and gains 2, tfd 110 and gains 1; the teacher costs 320
    found = students_to_share(2 + seeds, 1 - seeds, 104.0 - 100, 110.0 - 100, 320.0, True)
    assert found.students == 21  # (4 + 320 / N) / 2 < 10 / 1 for N > 20
    assert students_to_share(2 + seeds, 1 - seeds, 24.0, 10.0, 320.0, True).students == math.inf  # 24 / 2 > 10 already


def test_turns_widen_the_interval():
    exact = students_to_share(K, F, 4.0, 10.0, 300.0, True)
    timed = students_to_share(K, F, 4.0 + 20 * TURNS, 10.0 + 20 * TURNS[::-1], 300.0, True)
    assert timed.determined
    assert timed.high > exact.high
    assert students_to_share(K, F, 4.0 + TURNS[:5], 10.0 + TURNS[:5], 300.0, True).reason.endswith("fewer than six turns")
    with pytest.raises(ValueError, match="turns"):
        students_to_share(K, F, TURNS, TURNS[:7], 300.0, True)


def test_what_is_not_determined_says_why():
    reasons = {
        students_to_share(K, F, 4.0, 10.0, 300.0, False).reason,
        students_to_share(K, F, 4.0, -1.0, 300.0, True).reason,
        students_to_share(K[:1], F[:1], 4.0, 10.0, 300.0, True).reason,
        students_to_share(K, F, 4.0, 10.0, math.nan, True).reason,
        students_to_share(K, F, 4.0, 10.0 + 500 * TURNS, 300.0, True).reason,
    }
    assert len(reasons) == 4
    assert "" not in reasons
    unclear = students_to_share(K, rng.normal(0.2, 1.0, 8), 4.0, 10.0, 300.0, False)
    assert (unclear.low, unclear.high) == (1, math.inf)  # a rival's gain that may be 0: any number is possible
    assert math.isnan(students_to_share(K, -F, 4.0, 10.0, 300.0, False).students)
    constant = students_to_share([2.0] * 3, [1.0] * 3, 4.0, 10.0, 300.0, True)
    assert constant.students == 19  # (4 + 300 / N) / 2 < 10 for N > 18.75
    assert math.isnan(constant.low)
    assert not constant.determined
    assert students_to_share(K, F, 4.0, 10.0, 0.0, True)[:3] == (1, 1, 1)  # a free teacher


def test_price():
    assert price(30.0, 1.5, 1.0, 2.0)[:3] == pytest.approx((20, 15, 30))
    assert price(-30.0, 1.5, 1.0, 2.0)[:3] == pytest.approx((-20, -30, -15))
    assert not price(30.0, 1.5, -0.1, 3.1).determined
    assert math.isnan(price(30.0, -1.0, -2.0, 0.5).value)
    assert with_search(10.0, 40.0, 20.0) == 70.0
    assert with_search(10.0, 40.0, 20.0, students=6) == 20.0
    with pytest.raises(ValueError, match="shared"):
        with_search(1.0, 1.0, 1.0, 0)


def test_ratios_of_few_turns_are_not_tested():
    assert time_ratio([6.0] * 5, [1.0] * 5).word == CostWord.NOT_TESTED
    assert math.isnan(time_ratio([6.0] * 5, [1.0] * 5).low)
    assert time_ratio([6.0] * 6, [1.0] * 5 + [0.0]).word == time_ratio([0.0] * 6, [1.0] * 6).word == CostWord.UNKNOWN
    assert time_ratio([6.0] * 6, [1.0] * 6).word == CostWord.MORE
    assert time_ratio([0.5] * 6, [1.0] * 6)[:4] == (0.5, 0.5, 0.5, CostWord.LESS)
    assert time_ratio([0.9, 1.1] * 5, [1.0] * 10).word == CostWord.OPEN
    close, apart = (time_ratio([value] * 6, [1.0] * 6) for value in (1.05, 1.2))
    assert wants_second_session(close.value, close.word)
    assert not wants_second_session(apart.value, apart.word)
    with pytest.raises(ValueError, match="turns"):
        time_ratio([1.0], [1.0, 2.0])
    assert time_ratio([], []).word == CostWord.UNKNOWN


def test_ratios_name_what_they_are_of():
    assert flops_ratio(3.0, 2.0)[::2] == (1.5, pytest.approx(math.nan, nan_ok=True), "FLOPs")
    assert flops_ratio(3.0, 2.0).word == CostWord.COUNTED
    assert apart_ratio(3.0, 2.0).word == CostWord.APART
    assert apart_ratio(math.nan, 2.0).word == CostWord.UNKNOWN


def test_the_best_of_several_normal_runs():
    assert normal_best(1) == pytest.approx((0, 1), abs=1e-6)
    assert normal_best(2) == pytest.approx((1 / math.sqrt(math.pi), 1 - 1 / math.pi), abs=1e-6)
    assert normal_best(3)[0] == pytest.approx(3 / (2 * math.sqrt(math.pi)), abs=1e-6)  # .846


def test_claims_are_inside_outside_or_neither():
    ours = np.array([70.0, 70.2, 69.8, 70.1, 69.9])  # mean 70, s = .158
    error = ours.std(ddof=1) * math.sqrt(1 / 5 + 1 / 3)
    near = check_claim(ours, 70.1, 0.5, runs=3)
    assert near.word == ClaimWord.INSIDE
    assert near.high - near.difference == pytest.approx(scipy_stats.t.ppf(0.975, 4) * error)
    assert near.inner_high - near.difference == pytest.approx(scipy_stats.t.ppf(0.95, 4) * error)
    assert check_claim(ours, 71.0, 0.5, runs=3).word == ClaimWord.OUTSIDE
    assert check_claim(ours, 70.6, 1.5, runs=3).word == ClaimWord.INSIDE  # differs, and by less than the margin
    assert check_claim(ours, 70.3, 0.3, runs=3).word == ClaimWord.CANNOT_TELL
    assert check_claim(ours[:1], 70.0, 0.5).word == ClaimWord.CANNOT_TELL
    assert check_claim([70.0] * 4, 70.0, 0.5).word == ClaimWord.CANNOT_TELL
    assert check_claim(ours, 70.0, 0.5, their_spread=0.0).high == pytest.approx(
        scipy_stats.t.ppf(0.975, 4) * ours.std(ddof=1) / math.sqrt(5)
    )
    best = check_claim(ours, 70.0, 0.5, runs=3, best=True)
    assert best.ours == pytest.approx(70 + 0.8463 * ours.std(ddof=1), abs=1e-3)
    with pytest.raises(ValueError, match="margin"):
        check_claim(ours, 70.0, 0.0)


def test_best_minus_last():
    assert best_minus_last([71.0, 70.5, np.nan], [70.0, 70.4, 60.0]) == pytest.approx((0.55, 0.55, 1.0))
    assert math.isnan(best_minus_last([], [])[0])
