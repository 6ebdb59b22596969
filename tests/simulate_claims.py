"""What each kind of claim is worth: error, coverage and power under truth models that are written for this script alone.

`python tests/simulate_claims.py` prints them (a minute or two); `--quick` draws less. Every draw is seeded.
Error: share of draws in which any comparison of the family makes a false claim. Where the statistics promise 5 %, a row that
exceeds it by more than three standard errors is marked; rows that promise nothing show why, and are never marked.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import synthetic

from bench.stats import SHOWN
from bench.stats.bill import students_to_share
from bench.stats.claims import ClaimWord, check_claim
from bench.stats.images import two_way
from bench.stats.paired import Decision, Estimate, Word, decide, estimate
from bench.stats.pairs import like_these, over_these
from bench.stats.planning import seeds_needed
from bench.stats.ranking import rank_students
from bench.stats.sequential import SeedRule, follow
from bench.stats.teachers import over_teachers
from reports.design import Design
from reports.frame import by_pair
from reports.gains import compare
from reports.over_pairs import over_pairs
from reports.summary import summary

SPREAD = 0.3  # points, of one run beyond what its seed shares with the others; of a difference .42
MARGIN = 0.5


class Row(NamedTuple):
    claim: str
    truth: str
    error: float = math.nan
    coverage: float = math.nan  # of intervals, at their nominal .95 or above
    power: float = math.nan
    note: str = ""
    promised: bool = True  # whether the error is promised to be at most 5 %


# Truths: (draws, seeds, methods) of accuracies around 0, without any true difference; column 0 is the plain student

Truth = Callable[[np.random.Generator, tuple[int, int, int]], np.ndarray]


def shared(rng, shape):
    return rng.normal(0, 0.25, (*shape[:2], 1)) + rng.normal(0, SPREAD, shape)


def independent(rng, shape):
    return rng.normal(0, SPREAD, shape)


def heavy_tails(rng, shape):
    return rng.standard_t(3, shape) * SPREAD / math.sqrt(3)


def skewed(rng, shape):
    return rng.exponential(SPREAD, shape) - SPREAD


def unequal(rng, shape):
    return rng.normal(0, 1, shape) * np.geomspace(0.1, 1.0, shape[2])


def outliers(rng, shape):
    return rng.normal(0, SPREAD, shape) - 3.0 * (rng.random(shape) < 0.05)


def loading(rng, shape):
    return rng.normal(0, 0.4, (*shape[:2], 1)) * np.linspace(0.2, 1.8, shape[2]) + rng.normal(0, SPREAD, shape)


def ties(rng, shape):
    return np.round(rng.normal(0, SPREAD, shape) * 2) / 2  # 200 images: steps of half a point


def missing(rng, shape):
    return np.where(rng.random(shape) < 0.2, np.nan, shared(rng, shape))


def collapses(rng, shape):
    """Rare collapses of one method alone, which break any t-test: why a divergence caps the word."""
    values = rng.normal(0, SPREAD, shape)
    values[:, :, -1] -= 3.0 * (rng.random(shape[:2]) < 0.05) - 0.15  # its true mean is that of the others
    return values


TRUTHS: tuple[Truth, ...] = (shared, independent, heavy_tails, skewed, unequal, outliers, loading, ties, missing)


def gains_of(runs: np.ndarray) -> np.ndarray:
    """(draws, methods - 1, seeds) differences to the plain student."""
    return (runs[:, :, 1:] - runs[:, :, :1]).swapaxes(1, 2)


def any_shown(decision: Decision) -> float:
    return float((decision.word == Word.SHOWN).any(axis=-1).mean())


def holds(decision: Decision, truth: float | np.ndarray) -> float:
    """Share of draws in which all intervals of the family hold the truth; families without any interval do not count."""
    known = ~np.isnan(decision.low)
    inside = ((decision.low <= truth) & (truth <= decision.high)) | ~known
    return float(inside.all(axis=-1)[known.any(axis=-1)].mean())


# Claims


def single_table(rng: np.random.Generator, draws: int) -> Iterator[Row]:
    """Eight methods against the plain student and against kd, one family of 13."""
    for truth in (*TRUTHS, collapses):
        for n in (3, 5, 10):
            runs = truth(rng, (draws, n, 8))
            pairs = [(i, 0) for i in range(1, 8)] + [(i, 1) for i in range(2, 8)]
            d = np.stack([runs[:, :, i] - runs[:, :, j] for i, j in pairs], axis=1)
            null, real = decide(estimate(d), 13), decide(estimate(d + 0.8), 13)
            power = float((real.word == Word.SHOWN).mean())
            suggested = float((null.word == Word.SUGGESTED).any(axis=-1).mean())
            note = f"some suggestion in {suggested:.2f}"
            yield Row(f"table, {n} seeds", truth.__name__, any_shown(null), holds(null, 0.0), power, note, truth != collapses)
    for n in (5, 10, 20):
        last = decide(estimate(gains_of(collapses(rng, (draws, n, 2)))), 1)
        note = "shown by luck: no collapse yet, or none in time; a divergence caps the word"
        yield Row(f"one comparison, {n} seeds", "collapses", any_shown(last), holds(last, 0.0), note=note, promised=False)


def equivalence(rng: np.random.Generator, draws: int) -> Iterator[Row]:
    """True differences on the margin; the power is at a true 0."""
    for truth in TRUTHS:
        for n, m in ((3, 1), (5, 15), (20, 15)):
            d = gains_of(truth(rng, (draws, n, m + 1)))
            edge, same = (decide(estimate(d + shift), m, margin=MARGIN) for shift in (MARGIN, 0.0))
            wrong = float((edge.word == Word.EQUIVALENT).any(axis=-1).mean())
            yield Row(
                f"equivalence, {n} seeds of {m}", truth.__name__, wrong, power=float((same.word == Word.EQUIVALENT).mean())
            )


def looks(rng: np.random.Generator, draws: int) -> Iterator[Row]:
    """Seeds are added while nothing is shown; the error is that of the report in which somebody stops."""
    for schedule in ((3, 5), (3, 5, 10), tuple(range(3, 11))):
        for corrected in (True, False):
            d = gains_of(shared(rng, (draws, schedule[-1], 16)))
            found = np.zeros(draws, bool)
            for look, n in enumerate(schedule, 1):
                decision = decide(estimate(d[:, :, :n]), 15, looks=look if corrected else 1)
                found |= (decision.word == Word.SHOWN).any(axis=-1)
            name = f"looks at {', '.join(map(str, schedule))}" + ("" if corrected else ", uncorrected")
            # the ruling's factor allows alpha (1 + 1/2) at worst; .057 was seen
            yield Row(name, "shared", float(found.mean()), note="bounded by .075", promised=corrected)


def sequential(rng: np.random.Generator, draws: int) -> Iterator[Row]:
    """A look after every seed; the saving is against fixed seeds of the same power."""
    for truth in (t for t in TRUTHS if t is not missing):
        for m in (1, 8):
            rule = SeedRule(3, 20, m)
            d = gains_of(truth(rng, (draws, rule.most, m + 1)))
            null, real, edge = (follow(d + shift, rule) for shift in (0.0, 0.3, rule.margin))
            wrong = float((null.word == Word.SHOWN).any(axis=-1).mean())
            wrong_same = float((edge.word == Word.EQUIVALENT).any(axis=-1).mean())
            empty = np.isnan(real.low)
            inside = (real.low <= 0.3) & (real.high >= 0.3)
            power = float((real.word == Word.SHOWN).mean())
            note = f"{real.n.mean():.1f} seeds"
            spread = float((d[:, 0] - d[:, 0].mean()).std())
            if truth in (shared, independent) and (fixed := seeds_needed(0.3, spread, m, power)):
                note += f", fixed {fixed}, saving {1 - real.n.mean() / fixed:+.0%}"
            if (real.word == Word.SHOWN).any():
                note += f"; a true .3 reads {real.mean[real.word == Word.SHOWN].mean():.2f} when shown"
            coverage = float((inside | empty).all(axis=-1).mean())
            yield Row(f"sequential seeds, {m}", truth.__name__, wrong, coverage, power, note)
            yield Row(
                f"sequential, equivalence, {m}", truth.__name__, wrong_same, power=float((null.word == Word.EQUIVALENT).mean())
            )


def savings(rng: np.random.Generator, draws: int) -> Iterator[Row]:
    """Trainings that sequential seeds take, against fixed seeds of the same power; the plain student goes on with the last."""
    for m in (1, 2, 8, 15):
        rule = SeedRule(3, 20, m)
        for gain in (0.3, 0.5, 0.8):
            found = follow(gains_of(shared(rng, (draws, rule.most, m + 1))) + gain, rule)
            power = float((found.word == Word.SHOWN).mean())
            trainings = float((found.n.sum(axis=-1) + found.n.max(axis=-1)).mean())
            fixed = seeds_needed(gain, math.sqrt(2) * SPREAD, m, power) if power < 1 else None
            note = f"a gain of {gain}: {trainings:.1f} trainings"
            note += (
                f", {fixed} fixed seeds take {fixed * (m + 1)}: saving {1 - trainings / fixed / (m + 1):+.0%}" if fixed else ""
            )
            yield Row(f"sequential seeds, {m} gains of {gain}", "shared", power=power, note=note, promised=False)


def several_pairs(rng: np.random.Generator, draws: int) -> Iterator[Row]:
    """Seven pairs, four students, some teachers shared; the mean gain of one method."""
    students, teachers = list("aabbccd"), list("TUVWXYZ")
    at = [list("abcd").index(student) for student in students]
    for truth in TRUTHS:
        for n in (3, 5):
            runs = truth(rng, (draws * 4, n, 1)).reshape(draws, 4, n)
            ours = truth(rng, (draws * 7, n, 2)).reshape(draws, 7, n, 2)[..., 1]
            d = ours - runs[:, at]
            null, real = (decide(_alone(over_these(d + shift, students))) for shift in (0.0, 0.8))
            power = float((real.word == Word.SHOWN).mean())
            yield Row(f"these pairs, {n} seeds", truth.__name__, any_shown(null), holds(null, 0.0), power)
    for between in (0.0, 0.3):
        d = rng.normal(0, SPREAD, (draws, 7, 5)) - rng.normal(0, SPREAD, (draws, 4, 5))[:, at]
        d += rng.normal(0, between, (draws, 4))[:, at, None]
        naive = decide(_alone(over_these(d, students)))
        null, real = (decide(_alone(like_these(d.mean(axis=-1) + shift, students, teachers))) for shift in (0.0, 0.8))
        name = f"students differ by {between}"
        power = float((real.word == Word.SHOWN).mean())
        yield Row("pairs like these", name, any_shown(null), holds(null, 0.0), power)
        yield Row("these pairs, read as pairs like these", name, any_shown(naive), holds(naive, 0.0), promised=between == 0)


def _alone(found: Estimate) -> Estimate:
    """Each draw as a family of one."""
    return Estimate(*(np.asarray(value)[..., None] for value in found))


def over_several_teachers(rng: np.random.Generator, draws: int) -> Iterator[Row]:
    """Seven methods, none of which gains; teachers move all of them by .2 and each by .15 (standard deviations)."""
    for n, design in ((5, "one"), (10, "one"), (5, "each"), (10, "each"), (9, "three"), (18, "three")):
        count = {"one": 1, "each": n, "three": 3}[design]
        use = np.arange(n) % count
        effect = rng.normal(0, 0.2, (draws, 1, count)) + rng.normal(0, 0.15, (draws, 7, count))
        d = gains_of(shared(rng, (draws, n, 8))) + effect[..., use]
        found = estimate(d) if design == "one" else over_teachers(d, list(use))
        null, real = decide(found, 7), decide(found._replace(mean=found.mean + 0.8), 7)
        power = float((real.word == Word.SHOWN).mean())
        note = "conditional on its teacher, read as a claim about the method" if design == "one" else ""
        yield Row(f"teachers: {design}, {n} seeds", "shared", any_shown(null), holds(null, 0.0), power, note, design != "one")


def break_even(rng: np.random.Generator, draws: int) -> Iterator[Row]:
    """True number 18: (a + T / 18) / k = b / f with k = 2, f = 1, a = 4, b = 10, T = 288."""
    for name, spread, drift in (("exact costs", 0.3, 0.0), ("timed costs", 0.3, 2.0), ("mostly timing", 0.03, 4.0)):
        for n in (3, 5, 10):
            inside = determined = 0
            for _ in range(draws):
                plain, taught, free = rng.normal(0, spread, (3, n))
                turns = rng.normal(0, drift, (2, 25)) if drift else np.zeros((2, 25))
                k, f = 2 + taught - plain, 1 + free - plain
                found = students_to_share(k, f, 4 + turns[0], 10 + turns[1], 288.0, True)
                inside += found.low <= 19 <= found.high  # with 18 both cost the same: 19 is the first that pays
                determined += bool(np.isfinite(found.high))
            yield Row(f"break-even, {n} seeds", name, coverage=inside / draws, note=f"bounded in {determined / draws:.2f}")


def rankings(rng: np.random.Generator, draws: int) -> Iterator[Row]:
    """Ten methods that do not differ, four without a teacher; the error is that any two are found to differ."""
    for students, teachers in ((6, 1), (6, 3), (8, 2)):
        wrong = each = 0
        for _ in range(draws):
            free = np.repeat(rng.normal(0, 1, (students, 1, 4)), teachers, axis=1)
            means = np.concatenate([free, rng.normal(0, 1, (students, teachers, 6))], axis=2).reshape(-1, 10)
            labels = [f"{index // teachers}" for index in range(students * teachers)]
            names = [str(index) for index in range(10)]
            found = rank_students(means, labels, names)
            every = rank_students(means, range(len(means)), names)
            assert found is not None
            assert every is not None
            wrong += bool(np.ptp(found.mean_ranks) >= found.critical)
            each += bool(np.ptp(every.mean_ranks) >= every.critical)
        truth = f"{students} students x {teachers} teachers"
        yield Row("critical difference", truth, wrong / draws, note=f"{each / draws:.2f} where each pair is ranked")


def test_set(rng: np.random.Generator, draws: int) -> Iterator[Row]:
    """Coverage of the true gain over other seeds and other images."""
    for n, images in ((3, 500), (10, 500)):
        inside = seeds_only = 0
        for _ in range(draws):
            ease, edge = rng.normal(0, 1.0, images), rng.normal(0, 0.5, images)
            ours = ease + edge + rng.normal(0, 0.03, (n, 1)) + rng.normal(0, 0.5, (n, images)) > 0
            theirs = ease - edge + rng.normal(0, 0.03, (n, 1)) + rng.normal(0, 0.5, (n, images)) > 0
            found = two_way(ours, theirs)  # both are right as often, by symmetry
            inside += found.low <= 0 <= found.high
            alone = decide(_alone(estimate(100.0 * (ours.mean(axis=1) - theirs.mean(axis=1)))))
            seeds_only += bool(alone.low[0] <= 0 <= alone.high[0])
        note = f"{seeds_only / draws:.2f} by the interval of seeds alone"
        yield Row(f"test-set error, {n} seeds", f"{images} images", coverage=inside / draws, note=note)


def published(rng: np.random.Generator, draws: int) -> Iterator[Row]:
    """A published mean of three runs; error of "outside" where it is true, of "inside" where it is off by the margin."""
    for n in (3, 5, 10):
        words: dict[float, list[ClaimWord]] = {0.0: [], MARGIN: [], 1.5: []}
        best = []
        for _ in range(draws):
            theirs, ours = rng.normal(0, SPREAD, 3), rng.normal(0, SPREAD, n)
            for shift, found in words.items():
                found.append(check_claim(ours + shift, theirs.mean(), MARGIN, runs=3).word)
            best.append(check_claim(ours, theirs.max(), MARGIN, runs=3, best=True).word)
        share = lambda found, word: float(np.mean([each == word for each in found]))  # noqa: E731
        inside = share(words[0.0], ClaimWord.INSIDE)
        yield Row(
            f"claim outside, {n} seeds",
            "it is true",
            share(words[0.0], ClaimWord.OUTSIDE),
            power=share(words[1.5], ClaimWord.OUTSIDE),
        )
        yield Row(f"claim inside, {n} seeds", "it is off by .5", share(words[MARGIN], ClaimWord.INSIDE), power=inside)
        yield Row(f"claim outside, {n} seeds", "true, best of 3", share(best, ClaimWord.OUTSIDE), promised=False)


def page(rng: np.random.Generator, draws: int) -> Iterator[Row]:
    """The report's own way from records to words: two students, two teachers, no gain, tfd is primary."""
    pairs = [(student, teacher) for student in ("resnet20", "resnet32") for teacher in ("resnet56", "resnet110")]
    methods = dict.fromkeys(("none", "ls", "tfd", "kd", "at"), 0.0)
    frame = synthetic.frame(synthetic.draw(methods, 5, rng, pairs=pairs))
    table = summary(frame)
    names = dict(zip(frame["id"], frame["label"], strict=True))
    design = Design(primary=frozenset(name for name, label in names.items() if label == "tfd"))
    seeds = frame["student"] + frame["seed"].astype(str)
    found: dict[str, list[bool]] = {name: [] for name in ("primary", "exploratory", "over the pairs")}
    held, power = [], []
    for _ in range(draws):
        common = dict(zip(seeds.unique(), rng.normal(0, 0.25, seeds.nunique()), strict=True))
        frame["top1"] = 69 + seeds.map(common) + rng.normal(0, SPREAD, len(frame))
        decided = [*compare(table, by_pair(frame), design).values()]
        for name, primary in (("primary", True), ("exploratory", False)):
            found[name].append(any(each["word"] in SHOWN for each in decided if each["primary"] == primary))
        held.append(all(each["low"] <= 0 <= each["high"] for each in decided if not each["primary"]))
        over = over_pairs(frame, table, design)
        found["over the pairs"].append(bool(over["word"][~over["primary"]].isin(SHOWN).any()))
        better = frame.assign(top1=frame["top1"] + 0.8 * (frame["label"] == "at"))
        over = over_pairs(better, table, design).set_index("label")
        power.append(over.loc["at", "word"] in SHOWN)
    for name, wrong in found.items():
        coverage = float(np.mean(held)) if name == "exploratory" else math.nan
        strength = float(np.mean(power)) if name == "over the pairs" else math.nan
        yield Row(f"the report: {name}", "shared", float(np.mean(wrong)), coverage, strength)


KINDS = (
    single_table,
    equivalence,
    looks,
    sequential,
    several_pairs,
    over_several_teachers,
    break_even,
    rankings,
    test_set,
    published,
    page,
    savings,
)
PYTHON_LOOPS = (break_even, rankings, test_set, published, page)  # a draw at a time: a tenth of the draws


def exceeds(row: Row, draws: int) -> bool:
    """Whether a promised error is above 5 % by more than three standard errors. Looks may have .06; .075 bounds them."""
    most = 0.06 if row.claim.startswith("looks") else 0.05
    return row.promised and row.error > most + 3 * math.sqrt(0.05 * 0.95 / draws)


def simulate(draws: int) -> Iterator[tuple[Row, bool]]:
    """Rows, and whether each breaks its promise."""
    for index, kind in enumerate(KINDS):
        count = max(draws // 10, 100) if kind in PYTHON_LOOPS else draws
        for row in kind(np.random.default_rng([14, index]), count):
            yield row, exceeds(row, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="400 draws instead of 10,000")
    draws = 400 if parser.parse_args().quick else 10_000
    start, broken = time.perf_counter(), 0
    print(f"{'claim':40} {'truth':28} {'error':>6} {'covers':>6} {'power':>6}")
    for row, worse in simulate(draws):
        numbers = " ".join("     –" if math.isnan(value) else f"{value:6.3f}" for value in row[2:5])
        mark = "ABOVE 5 %" if worse else "" if row.promised else "(not promised)"
        broken += worse
        print(f"{row.claim:40} {row.truth:28} {numbers}  {' '.join(filter(None, (row.note, mark)))}", flush=True)
    print(f"{draws:,} draws, {time.perf_counter() - start:.0f} s; promises broken: {broken}")


if __name__ == "__main__":
    main()
