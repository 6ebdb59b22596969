"""How cells are run on this machine: plain values that travel to workers. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from bench.errors import UserError

MOST_THREADS = 1024  # of a process: where the system gives no more, OpenMP ends it with a segmentation fault
COST_MINUTES = 60.0  # for measuring the costs of a run, unless another limit is given


@dataclass(frozen=True)
class Options:
    """How cells are run on this machine. None of it is part of a cell's identity.

    Raises:
        UserError: more threads than a process can have, or options that contradict each other.
    """

    device: str = "auto"
    threads: int = 0  # 0: all cores
    data_root: str | None = None
    checkpoint_s: float = 30.0
    visualize: tuple[str, ...] = ()  # mmengine's visualizer backends, such as TensorboardVisBackend
    hooks: tuple[str, ...] = ()  # the user's own mmengine hooks, as module.Class
    neighbours: int = 0
    imports: tuple[str, ...] = ()  # the user's own plug-ins
    code: tuple[tuple[str, str], ...] | None = None  # the run's `bench.records.source.Code`; None: whatever is imported
    together: bool = False  # train cells in lock-step where that is the same, on a CPU too: see `bench.engine.lockstep`
    apart: bool = False  # and never so, not even on a GPU
    check: bool = True  # try each method out on each pair before anything is trained: see `bench.jobs.check`
    eager: bool = False  # on a GPU, take steps one by one even where they could be replayed: see `bench.engine.capture`

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= MOST_THREADS:
            raise UserError(f"--threads: 0 for all cores, or at most {MOST_THREADS:,}, not {self.threads}")
        if self.together and self.apart:
            raise UserError("--together and --apart contradict each other; leave one of them out")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """The options among these values; lists become tuples."""
        known = {field.name for field in fields(cls)} & given.keys()
        values: dict[str, Any] = {name: tuple(given[name]) if isinstance(given[name], list) else given[name] for name in known}
        return cls(**values)
