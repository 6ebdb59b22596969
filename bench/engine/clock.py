"""Wall seconds by what they were spent on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


class Clock:
    """Adds up wall seconds by name. Waits for the device where a span begins and where it ends.

    Args:
        seconds: where the sums go, in place.
    """

    def __init__(self, device: torch.device, seconds: dict[str, float]) -> None:
        self.device, self.seconds = device, seconds

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time that the block takes; nothing where it raises."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class SilentClock:
    """Measures nothing and never waits: a block costs some 0.1 microseconds."""

    def measure(self, name: str) -> AbstractContextManager[None]:
        return _NOTHING


_NOTHING = nullcontext()
SILENT = SilentClock()
