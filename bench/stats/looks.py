"""Looks: whoever adds seeds after seeing results has more than one chance to be wrong, and pays for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def look_factor(look: ArrayLike) -> NDArray[Any]:
    """What p is multiplied by at an unplanned look: 1 at the first, k (k + 1) at look k from the second on.

    The levels sum to 3/2 alpha at most, since the sum of 1 / (k (k + 1)) over k >= 2 is 1/2. As looks share their data, the
    error is .049 to .061 in `tests/simulate_claims.py`. A factor of k gives .065 to .089.

    Raises:
        ValueError: a look below 1.
    """
    k = np.asarray(look, int)
    if (k < 1).any():
        raise ValueError("looks are counted from 1")
    return np.where(k > 1, k * (k + 1), 1)


def look_number(requests: Sequence[Collection[int]], complete: Sequence[bool]) -> int:
    """Number of the present look at a comparison.

    A look is a complete set of seeds when more were asked for afterwards. The last request makes the present look.

    Args:
        requests: seeds that were asked for, request by request, in order of time.
        complete: whether all seeds of that request were trained when the next request was made; the last one is ignored.

    Raises:
        ValueError: there is no request, or both lists differ in length.
    """
    if not requests or len(requests) != len(complete):
        raise ValueError("looks need one or more requests, each with a mark whether it was complete")
    seen: set[int] = set()
    looks = 1
    for index, request in enumerate(requests):
        later = set().union(*requests[index + 1 :])
        seen |= set(request)
        looks += bool(index < len(requests) - 1 and complete[index] and later - seen)
    return looks
