"""What a comparison shows, as values that reports decide by; their text is what readers see."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """Of a difference in accuracy."""

    BETTER = "better"
    WORSE = "worse"
    OPEN = "no difference shown"
    UNTESTED = "not tested"  # fewer than two seeds in common


class CostVerdict(StrEnum):
    """Of a ratio of training costs."""

    MORE = "more"
    LESS = "less"
    OPEN = "no difference shown"
    APART = "not timed in turn"  # so that a drift of the machine may have moved the ratio


SHOWN = (Verdict.BETTER, Verdict.WORSE)
