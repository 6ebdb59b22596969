"""Sequential seeds: train a few, look after every further one, stop where the answer is clear, and stay at 5 % error.

Group-sequential t-tests with an error that is spent by a fixed plan. At level alpha / m each, a comparison without a true
difference is rejected by n seeds with probability (alpha / m) (n / most)^2. The bounds are exact: under the null hypothesis
t_n is a Markov chain (the direction of (x_1, ..., x_n) is uniform and independent of its length), so numerical integration
over one variable replaces simulation. With tan(theta_n) = t_n / sqrt(n - 1), sin(theta_n) = sum x / sqrt(n sum x^2).
See Jennison and Turnbull, Group Sequential Methods, 2000 (spending functions: chapter 7).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import interpolate, optimize, special

from bench.stats.intervals import ALPHA, CONSTANT
from bench.stats.paired import Floats, Word, as_words, cap

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)
KNOTS = 100  # of the spline of survival; more change the levels by less than 1e-6 of themselves
MARGIN = 0.3  # points; a margin of .5 calls a third of true gains of .3 equivalent


@dataclass(frozen=True)
class SeedRule:
    """How seeds are spent; fixed before the first result. A changed rule makes the looks unplanned.

    Raises:
        ValueError: not 2 <= first <= most, no comparison, or a margin that is not above 0.
    """

    first: int  # seeds before the first look
    most: int  # seeds at which a comparison stops in any case
    comparisons: int  # m: comparisons of the family
    margin: float = MARGIN  # points within which two accuracies count as the same
    alpha: float = ALPHA  # error of the family

    def __post_init__(self) -> None:
        if not 2 <= self.first <= self.most:
            raise ValueError(f"seeds: first is {self.first} and most {self.most}; 2 <= first <= most is needed")
        if self.comparisons < 1:
            raise ValueError("seeds: there is no comparison to spend seeds on")
        if not self.margin > 0:
            raise ValueError(f"seeds: until is {self.margin}, it must be above 0")

    def as_json(self) -> dict[str, float]:
        """What fixes the rule, for a manifest; `SeedRule(**rule)` reads it."""
        return {name: getattr(self, name) for name in ("first", "most", "comparisons", "margin")}

    @property
    def levels(self) -> tuple[float, ...]:
        """Nominal two-sided levels a_n of the t-tests after n = first, ..., most seeds."""
        return nominal_levels(self.alpha / self.comparisons, self.first, self.most)


class Sequential(NamedTuple):
    """Where comparisons stand; arrays, one entry a comparison."""

    n: NDArray[np.int64]  # seeds that the answer uses: up to the decision, later ones are left out
    mean: Floats  # of those, in points; where shown it is too large on average: a true .3 reads .37
    low: Floats  # interval intersected over the looks so far; NaN where it is empty or there was no spread yet
    high: Floats
    word: NDArray[Any]  # of `Word`
    decided: NDArray[np.bool_]  # no further seed is needed; what reached `most` is decided and may be open


@lru_cache
def nominal_levels(level: float, first: int, most: int) -> tuple[float, ...]:
    """Two-sided levels of t-tests after n = first, ..., most values, such that P(rejection by n) is level (n / most)^2.

    Exact to about 1e-6 of each level; about 10 ms a look. `tests/test_stats_sequential.py` simulates some of them.
    """
    spent = level * (first / most) ** 2
    levels = [spent]
    bound = _angle(spent, first)
    survival = lambda theta: np.ones_like(theta)  # noqa: E731
    for n in range(first + 1, most + 1):
        goal = level * (n / most) ** 2 - spent
        spent += goal
        after = _Survival(n, bound, survival)
        bound = optimize.brentq(lambda theta: math.log(after.beyond(theta) / goal), 1e-3 * after.edge, _inside(after, goal))  # noqa: B023
        levels.append(_level(bound, n))
        survival = after.spline(bound)
    return tuple(levels)


def _inside(after: _Survival, goal: float) -> float:
    """An angle below the edge beyond which less than the goal lies."""
    gap = 0.5
    while gap > 1e-12 and after.beyond(after.edge * (1 - gap)) > goal:
        gap /= 4
    return after.edge * (1 - gap)


def _angle(level: float, n: int) -> float:
    """Angle that |theta_n| exceeds with that probability under the null hypothesis."""
    return math.atan(-float(special.stdtrit(n - 1, level / 2)) / math.sqrt(n - 1))


def _level(angle: float, n: int) -> float:
    return float(2 * special.stdtr(n - 1, -math.tan(angle) * math.sqrt(n - 1)))


class _Survival:
    """P(no rejection before n | theta_n), from the same after n - 1 values and the bound there.

    Given theta_n, the last value's share y = x_n / sqrt(sum x^2) is sin(theta_n) / sqrt(n) + cos(theta_n) sqrt((n - 1) / n) v,
    where v = sin(psi), the density of psi is proportional to cos(psi)^(n - 3), and sin(theta_{n-1}) is
    (sqrt(n) sin(theta_n) - y) / (sqrt(n - 1) sqrt(1 - y^2)). |theta_{n-1}| < bound holds for y between the roots of
    (a - y)^2 = b^2 (1 - y^2), a = sqrt(n) sin(theta_n), b = sqrt(n - 1) sin(bound).
    """

    def __init__(self, n: int, bound: float, before: Any) -> None:
        self.n, self.before = n, before
        self.b = math.sqrt(n - 1) * math.sin(bound)
        # beyond this angle no path has survived
        self.edge = math.asin(min(1.0, math.sqrt((1 + self.b**2) / n)))

    def __call__(self, theta: Floats) -> Floats:
        n, b = self.n, self.b
        a = math.sqrt(n) * np.sin(theta)
        root = b * np.sqrt(np.maximum(0.0, 1 + b**2 - a**2))
        center, scale = np.sin(theta) / math.sqrt(n), np.cos(theta) * math.sqrt((n - 1) / n)
        ends = [np.arcsin(np.clip(((a + sign * root) / (1 + b**2) - center) / scale, -1, 1)) for sign in (-1, 1)]
        middle, half = (ends[0] + ends[1])[..., None] / 2, (ends[1] - ends[0])[..., None] / 2
        psi = middle + half * NODES
        y = center[..., None] + scale[..., None] * np.sin(psi)
        former = np.clip((a[..., None] - y) / (math.sqrt(n - 1) * np.sqrt(1 - y**2)), -1, 1)
        density = np.cos(psi) ** (n - 3) / special.beta(0.5, (n - 2) / 2)
        return np.asarray((half * WEIGHTS * density * self.before(np.abs(np.arcsin(former)))).sum(axis=-1))

    def beyond(self, angle: float) -> float:
        """P(no rejection before n, |theta_n| > angle); theta = edge - (edge - angle) u^2 smooths the edge's square root."""
        u = (NODES + 1) / 2
        theta = self.edge - (self.edge - angle) * u**2
        density = np.cos(theta) ** (self.n - 2) / special.beta(0.5, (self.n - 1) / 2)
        return float((WEIGHTS / 2 * 2 * u * (self.edge - angle) * 2 * density * self(theta)).sum())

    def spline(self, bound: float) -> Any:
        knots = bound * np.sin(np.linspace(0, math.pi / 2, KNOTS))  # denser where survival falls
        return interpolate.CubicSpline(knots, self(knots), bc_type=((1, 0.0), "not-a-knot"))


def follow(differences: ArrayLike, rule: SeedRule, diverged: ArrayLike = False) -> Sequential:
    """Look after each seed from the first look on, and stop at the first decision.

    Shown: the interval, intersected over the looks, leaves out 0. Equivalent: the interval of level 1 - 2 a_n of the present
    look lies within the margin. A look without spread gives no interval; where the intersection is empty the word is open.

    Args:
        differences: (..., seeds) in the order of the seeds, points; from the first NaN on they are taken as not trained yet.
        diverged: (...), whether a training of either side diverged; it caps the word at "suggested".

    Returns:
        Arrays of the shape (...). The word is "unfinished" below `first` seeds. Mean and interval are those at the decision.
    """
    values = np.asarray(differences, float)[..., : rule.most]
    shape = values.shape[:-1]
    word = np.full(shape, Word.UNFINISHED, dtype=object)
    count = np.zeros(shape, int)
    mean, squares, final = np.zeros(shape), np.zeros(shape), np.full(shape, np.nan)
    low, high = np.full(shape, -np.inf), np.full(shape, np.inf)
    there, decided = np.ones(shape, bool), np.zeros(shape, bool)
    for n in range(1, values.shape[-1] + 1):
        value = values[..., n - 1]
        there &= ~np.isnan(value)
        going = there & ~decided
        step = np.where(going, value - mean, 0.0)
        mean = mean + step / n
        squares = squares + step * np.where(going, value - mean, 0.0)
        count, final = np.where(going, n, count), np.where(going, mean, final)
        if n < rule.first:
            continue
        level = rule.levels[n - rule.first]
        spread = np.sqrt(squares / (n - 1))
        some = going & (spread > CONSTANT)
        error = spread / math.sqrt(n)
        half, short = (-float(special.stdtrit(n - 1, tail)) * error for tail in (level / 2, level))
        low, high = np.where(some, np.maximum(low, mean - half), low), np.where(some, np.minimum(high, mean + half), high)
        possible = some & (low <= high)
        shown = possible & ((low > 0) | (high < 0))
        equivalent = possible & ~shown & (mean - short > -rule.margin) & (mean + short < rule.margin)
        word = np.where(going, np.where(shown, Word.SHOWN, np.where(equivalent, Word.EQUIVALENT, Word.OPEN)), word)
        decided |= shown | equivalent | (going & (n == rule.most))
    word = cap(word, diverged)
    known = (low <= high) & np.isfinite(low)
    return Sequential(count, final, np.where(known, low, np.nan), np.where(known, high, np.nan), as_words(word), decided)
