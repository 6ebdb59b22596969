"""Trainees of a step side by side on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Work = Callable[[], None]
MOST = 16  # branches of a step: torch has 32 streams a GPU, and gives the same ones out again


class Streams:
    """Each on a stream of its own, the same one in every step. In a recorded graph these become parallel branches."""

    def __init__(self, device: torch.device, count: int) -> None:
        self.device = device
        self.streams = [torch.cuda.Stream(device) for _ in range(count)]

    def run(self, works: Sequence[Work]) -> None:
        """Do all of them; what follows on the current stream sees what they did."""
        before = torch.cuda.current_stream(self.device)
        for stream, work in zip(self.streams, works, strict=True):
            stream.wait_stream(before)
            with torch.cuda.stream(stream):
                work()
        for stream in self.streams:
            before.wait_stream(stream)
