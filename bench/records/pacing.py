"""How often many files are looked at again. No torch here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

PATIENCE_S = 10.0  # a reason to wait that stands shorter is not worth a line
SHARE = 0.01  # of the time that looks may take: those at a grid of 20,000 cells take half a second each


class Pacing:
    """Spaces looks, so that looking takes at most a hundredth of the time however much there is to see."""

    def __init__(self, least_s: float = 0.0) -> None:
        """
        Args:
            least_s: seconds from one look's start to the next's, at least.
        """
        self.least_s = least_s
        self._next = 0.0

    @contextlib.contextmanager
    def look(self) -> Iterator[None]:
        """Around a look."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._next = started + max(self.least_s, (time.monotonic() - started) / SHARE)

    @property
    def pause_s(self) -> float:
        """Seconds until the next look; 0 where it is due."""
        return max(0.0, self._next - time.monotonic())
