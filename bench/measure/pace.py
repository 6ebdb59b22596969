"""How long measuring goes on: until what it is for is known well enough, or until its time is used up. No torch here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from bench.stats import median_interval, time_ratio

FEWEST = 10  # turns of each group, however little time there is; the sign test has an interval from six on
TIGHT = 0.01  # of a ratio: width of its 95 % interval from which on no further turn is taken


def tight(turns: Sequence[Sequence[float]]) -> bool:
    """Whether all ratios to the first method are known to one percent; of a single method, whether its own median is.

    The rule looks at how wide the intervals are, never at where they lie, so that stopping early favors no method. Simulated,
    the intervals then cover .93 to .98.

    Args:
        turns: of each method, what it took in each turn.
    """
    first, *others = turns
    if not others:
        middle, low, high = median_interval(np.asarray(first))
        return bool(high - low <= TIGHT * middle)
    ratios = [time_ratio(each, first) for each in others]
    return all(ratio.high - ratio.low <= TIGHT * ratio.value for ratio in ratios)


class Pace:
    """Shares the time for measuring among groups of methods, and estimates what is left of it.

    Args:
        seconds: for all groups; 0: no limit.
        show: called between turns with a line about how far it is.
    """

    def __init__(self, seconds: float = 0.0, show: Callable[[str], object] = lambda line: None) -> None:
        self.seconds, self.show = seconds, show
        self.sizes: list[int] = []  # probes of each group
        self._start = self._group_start = time.monotonic()
        self._group, self._share = -1, 0.0
        self._rounds, self._most = 0, 1

    def begin(self, sizes: Sequence[int]) -> None:
        """Start, with so many probes in each group."""
        self.sizes = list(sizes)
        self._start = time.monotonic()

    @property
    def left_s(self) -> float:
        """Seconds of the limit that are left; inf without one."""
        return self.seconds - (time.monotonic() - self._start) if self.seconds else float("inf")

    def enter_group(self, rounds: int) -> bool:
        """Go on to the next group, which takes at most so many rounds; False where no time is left for it."""
        self._group += 1
        if self.left_s <= 0:
            return False
        rest = self.sizes[self._group :]
        self._group_start, self._share = time.monotonic(), self.left_s * rest[0] / sum(rest)
        self._rounds, self._most = 0, rounds
        self._show()
        return True

    def over(self, part: float = 1.0) -> bool:
        """Whether this part of the group's share of the time is used up."""
        return time.monotonic() - self._group_start > part * self._share

    def count(self, rounds: int = 1, most: int | None = None) -> None:
        """Note that so many rounds of the group are done; `most`: a new bound of its rounds."""
        self._rounds += rounds
        self._most = self._most if most is None else most
        self._show()

    def estimate_s(self) -> float:
        """Seconds that are left at most, by the time of a round of this group; inf where none is done."""
        if not self._rounds:
            return float("inf")
        spent = time.monotonic() - self._group_start
        group_s = spent / self._rounds * self._most
        later = sum(self.sizes[self._group + 1 :]) / self.sizes[self._group] * group_s
        return min(group_s - spent + later, max(0.0, self.left_s))

    def _show(self) -> None:
        left = self.estimate_s()
        text = f"group {self._group + 1} of {len(self.sizes)}, round {self._rounds} of {self._most} at most"
        self.show(text + (f"; {left:.0f} s left at most" if left < float("inf") else ""))
