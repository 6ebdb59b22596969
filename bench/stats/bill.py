"""What a point of accuracy costs, and how many students must share a teacher."""

from __future__ import annotations

import math


def break_even(own_s: float, gain: float, teacher_s: float, rival_s: float, rival_gain: float) -> float:
    """How many students must share a teacher before a method with one costs less per point gained than a rival without.

    The smallest whole N with (own_s + teacher_s / N) / gain < rival_s / rival_gain; inf where no number is enough, NaN where a
    gain is not above zero or a cost is unknown.
    """
    if not (gain > 0 and rival_gain > 0) or any(map(math.isnan, (own_s, teacher_s, rival_s))):
        return math.nan
    left = gain * rival_s / rival_gain - own_s
    return math.inf if left <= 0 else max(1, math.floor(teacher_s / left) + 1)
