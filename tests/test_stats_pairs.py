"""Gains over pairs, ranks, images: against direct formulas and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bench.stats.images import agreement, mcnemar, two_way
from bench.stats.paired import Word, decide, estimate
from bench.stats.pairs import components, like_these, over_these, profile
from bench.stats.ranking import rank_students


def test_one_pair_is_a_paired_t_test():
    d = np.random.default_rng(0).normal(0.3, 0.4, 6)
    found = over_these(d[None], ["a"])
    assert (float(found.mean), float(found.error), float(found.df)) == pytest.approx((d.mean(), scipy_stats.sem(d), 5))


def test_two_students_are_welchs_formula():
    a, b = np.array([0.1, 0.5, 0.9]), np.array([1.0, 1.1, 1.2, 0.9, 0.8])
    d = np.array([[*a, np.nan, np.nan], b])
    found = over_these(d, ["a", "b"])
    va, vb = a.var(ddof=1) / 3, b.var(ddof=1) / 5
    assert float(found.mean) == pytest.approx((a.mean() + b.mean()) / 2)
    assert float(found.error) == pytest.approx(math.sqrt(va + vb) / 2)
    assert float(found.df) == pytest.approx((va + vb) ** 2 / (va**2 / 2 + vb**2 / 4))


def test_pairs_that_share_runs_are_not_independent():
    """Two teachers of one student: the mean of both gains by seed holds the shared baseline once, with n - 1 df."""
    d = np.random.default_rng(1).normal(0.3, 0.4, (2, 5)) + np.random.default_rng(2).normal(0, 1, 5)
    shared = over_these(d, ["a", "a"])
    assert float(shared.error) == pytest.approx(scipy_stats.sem(d.mean(axis=0)))
    assert float(shared.df) == pytest.approx(4)
    assert float(over_these(d, ["a", "b"]).error) < float(shared.error)


def test_pairs_without_two_seeds_are_left_out():
    d = np.array([[0.1, 0.2, 0.3], [5.0, np.nan, np.nan]])
    found = over_these(d, ["a", "b"])
    assert (int(found.n), float(found.mean)) == (1, pytest.approx(0.2))
    nothing = over_these(d[1:], ["b"])
    assert int(nothing.n) == 0
    assert decide(nothing).word == Word.NOT_TESTED
    assert decide(over_these(np.ones((2, 3)), ["a", "b"])).word == Word.OPEN  # no spread


def test_covariance_with_missing_runs():
    """Where two gains of a student have different seeds, only the common ones tie them."""
    rng = np.random.default_rng(3)
    reps = 20_000
    base = rng.normal(0, 1, (reps, 1, 6))
    d = rng.normal(0, 0.5, (reps, 2, 6)) - base
    d[:, 1, :2] = np.nan  # the second pair misses two seeds
    found = over_these(d, ["a", "a"])
    assert float((found.error**2).mean()) == pytest.approx(float(found.mean.var()), rel=0.05)


def test_components():
    assert list(components(["a", "b", "c", "d"], ["T", "T", "U", None])) == [0, 0, 1, 2]
    assert list(components(["a", "b", "a", "c"], ["T", "U", "U", "V"])) == [0, 0, 0, 1]  # linked through a's two teachers
    assert list(components(["a", "a", "b"])) == [0, 0, 1]
    assert list(components([], [])) == []


def test_pairs_like_these():
    gains = [1.0, 2.0, 5.0, 0.5, 0.7]
    students, teachers = ["a", "a", "b", "c", "d"], ["T", "U", "U", "V", "W"]
    # a: 1.5, b: 5, linked: (1.5 + 5) / 2 = 3.25; c: .5; d: .7
    found = like_these(gains, students, teachers)
    expected = scipy_stats.ttest_1samp([3.25, 0.5, 0.7], 0)
    decision = decide(found)
    assert (int(found.n), float(decision.p)) == (3, pytest.approx(expected.pvalue))
    assert decide(like_these(gains[:4], students[:4], teachers[:4])).word == Word.NOT_TESTED  # two components
    assert int(like_these(gains, students).n) == 4  # students alone connect
    with pytest.raises(ValueError, match="missing"):
        like_these([1.0, np.nan], ["a", "b"])


def test_profile():
    assert list(profile([0.1, 0.5, -0.2, np.nan], [-1, 0.1, 0.3, 1])) == pytest.approx([1, 2 / 3, 1 / 3, 0])


def test_ranks_count_a_student_once():
    rng = np.random.default_rng(4)
    means = rng.normal(70, 1, (12, 4))
    students = [f"s{i // 2}" for i in range(12)]  # two teachers each
    found = rank_students(means, students, ["a", "b", "c", "d"])
    assert found is not None
    blocks = means.reshape(6, 2, 4).mean(axis=1)
    expected = scipy_stats.rankdata(-blocks, axis=1).mean(axis=0)
    assert dict(zip(found.names, found.mean_ranks, strict=True)) == pytest.approx(dict(zip("abcd", expected, strict=True)))
    assert found.p == pytest.approx(scipy_stats.friedmanchisquare(*blocks.T).pvalue)
    assert found.critical == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 6)), rel=1e-3)  # q_.05 of Demsar 2006, table 5
    assert rank_students(means[:10], students[:10], ["a", "b", "c", "d"]) is None  # five students
    means[0, :2] = np.nan
    assert rank_students(means, students, ["a", "b", "c", "d"]) is None  # two methods are left


def test_two_way_error_is_what_other_seeds_and_images_give():
    """Truth: image effects that hold for all seeds, and noise of each seed and image; compared with the spread of the mean."""
    rng = np.random.default_rng(5)
    n, images, reps = 5, 400, 400
    means, errors, stays = [], [], []
    for _ in range(reps):
        ease = rng.normal(0, 1.0, images)
        edge = rng.normal(0, 0.7, images)  # where the methods differ by image
        ours = ease + edge + 0.2 * rng.normal(0, 1, (n, 1)) + rng.normal(0, 0.7, (n, images)) > 0
        theirs = ease + rng.normal(0, 0.7, (n, images)) > 0
        found = two_way(ours, theirs)
        means.append(found.mean)
        errors.append(found.error)
        stays.append(found.images)
    assert np.mean(np.square(errors)) == pytest.approx(np.var(means), rel=0.2)
    assert 0 < np.mean(stays) < np.mean(errors)


@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_two_way_intervals_keep_a_higher_level(spread):
    """As of one comparison among thirteen, with three seeds; with a spread between seeds, and without."""
    rng, level, missed, reps = np.random.default_rng(6), 1 - 0.05 / 13, 0, 2000
    for _ in range(reps):
        ease, edge = rng.normal(0, 1.0, 200), rng.normal(0, 0.5, 200)
        ours, theirs = (
            ease + sign * edge + spread * rng.normal(0, 1, (3, 1)) + rng.normal(0, 0.5, (3, 200)) > 0 for sign in (1, -1)
        )
        found = two_way(ours, theirs, level)
        missed += not found.low <= 0 <= found.high
        alone = 100.0 * (ours.mean(axis=1) - theirs.mean(axis=1))
        assert found.high - found.mean >= 0.999 * 16.08 * alone.std(ddof=1) / math.sqrt(3)  # t of 2 df at that level
    assert missed / reps <= 0.05 / 13 + 3 * math.sqrt(0.05 / 13 / reps)


def test_two_way_by_hand():
    ours = np.array([[1, 1, 0, 1], [1, 0, 1, 1]], bool)
    theirs = np.array([[0, 1, 0, 1], [1, 0, 0, 1]], bool)
    x = 100 * (ours.astype(float) - theirs)  # [[100, 0, 0, 0], [0, 0, 100, 0]]
    found = two_way(ours, theirs)
    # seed means 25, 25: V_seed = 0. Image means 50, 0, 50, 0: var 833.3, V_image 208.3. Residuals: +-50 at two images.
    v_rest = 4 * 50.0**2 / (1 * 3) / 8
    assert (found.mean, found.seeds) == (x.mean(), 0)
    assert found.images == pytest.approx(0.0)  # 208.33 - 416.67 < 0
    assert found.error == pytest.approx(math.sqrt(v_rest))
    assert math.isnan(two_way(ours[:1], theirs[:1]).error)
    with pytest.raises(ValueError, match="shapes"):
        two_way(ours, theirs[:1])


def test_mcnemar_and_agreement():
    ours, theirs = np.array([1, 1, 1, 1, 1, 0, 1, 0], bool), np.array([0, 0, 0, 0, 0, 1, 1, 0], bool)
    assert mcnemar(ours, theirs) == (5, 1, pytest.approx(2 * (1 + 6) / 2**6))
    assert mcnemar(ours, ours) == (0, 0, 1.0)
    assert agreement(ours, theirs) == pytest.approx(100 * 2 / 8)


def test_estimates_hold_for_stacks():
    d = np.random.default_rng(6).normal(0, 1, (7, 3, 4))
    stacked = over_these(d, ["a", "a", "b"])
    alone = [over_these(one, ["a", "a", "b"]) for one in d]
    np.testing.assert_allclose(stacked.error, [one.error for one in alone])
    np.testing.assert_allclose(estimate(d).mean, d.mean(axis=-1))
