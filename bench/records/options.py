"""How cells are run on this machine: plain values that travel to workers. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How cells are run on this machine. None of it is part of a cell's identity."""

    device: str = "auto"
    threads: int = 0  # 0: all cores
    data_root: str | None = None
    checkpoint_s: float = 30.0
    visualise: tuple[str, ...] = ()  # mmengine's visualizer backends, such as TensorboardVisBackend
    neighbours: int = 0
    imports: tuple[str, ...] = ()  # the user's own plug-ins
    together: bool = False  # train cells in lock-step where that is the same: see `bench.engine.lockstep`
