"""Runs a step: on a CPU by calling it, on a GPU by replaying a graph that was recorded once, where that is the same.

A small network's step on a GPU is hundreds of short kernels, and launching them one by one takes longer than they do. A graph
launches all of them at once. Before one is used it is checked against eager steps; what is refused trains eagerly, and the
record has the reason. Nothing else in the project knows graphs.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from bench.data import Dataset
from bench.data.files import Files
from bench.engine.distributed import Team
from bench.engine.snapshot import Snapshot
from bench.engine.step import Step
from methods.base import Batch

log = logging.getLogger("bench.records.cell")

WARM_UP = 3  # eager steps of a kind before it is recorded: libraries choose their kernels, methods fill their memories
NOISE = 1e-3  # of an update: where two eager steps differ by more, nothing can be compared with them
NOISE_FACTOR = 4  # a replay may differ from an eager step by so many times what two eager steps differ by
TENSORS = ("image", "target", "index", "partner", "other", "kept", "soft")  # of a batch

Work = Callable[[], None]


class RefusedError(Exception):
    """A step cannot be recorded; the message says why."""


class CaptureError(RuntimeError):
    """Recording failed half-way: this process must not go on with the device."""


class Graphs(Protocol):
    """What records work and replays it; `CudaGraphs` is the one on a GPU."""

    def beside(self) -> AbstractContextManager[object]:
        """Inside, steps run where they are recorded, too: on a stream of their own."""

    def refusing_syncs(self) -> AbstractContextManager[object]:
        """Inside, what waits for the device raises an error."""

    def record(self, work: Work) -> Work:
        """Record without leaving a trace in tensors; returns the replay."""


class CudaGraphs:
    """CUDA graphs of one step, which share a pool of memory: never two of them run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        before = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(before)
        with torch.cuda.stream(self.stream):
            yield
        before.wait_stream(self.stream)

    @contextlib.contextmanager
    def refusing_syncs(self) -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread that pins memory meanwhile breaks nothing
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


@dataclass
class Kind:
    """Steps of one phase and batch size."""

    static: list[Batch]  # what its steps read; always the same memory
    seen: int = 0
    previous: list[Batch] | None = None  # batches before those at which the recording is checked
    replay: Work | None = None


@dataclass
class StepRunner:
    """Takes steps the fastest way that is known to be the same.

    Attributes:
        graphs: what records; None on a CPU, and where steps are eager.
        reason: why steps are eager, or how the recorded ones were found to be the same; None on a CPU.
        kinds: by whether they prepare, and the size of a batch.
    """

    step: Step
    graphs: Graphs | None = None
    reason: str | None = None
    kinds: dict[tuple[bool, int], Kind] = field(default_factory=dict)

    def __call__(self, *batches: Batch, preparing: bool = False) -> None:
        """Take a step; see `Step`.

        Raises:
            CaptureError: the next attempt needs a fresh process, and `reason` at its start.
        """
        if self.graphs is None:
            self.step(*batches, preparing=preparing)
            return
        with self.graphs.beside():
            self._take(self.graphs, [self.step.static(batch) for batch in batches], preparing)

    @property
    def path(self) -> str | None:
        """'graph' or 'eager'; None on a CPU, which knows no other way than eager steps."""
        if self.reason is None and self.graphs is None:
            return None
        return "graph" if any(kind.replay for kind in self.kinds.values()) else "eager"

    @property
    def path_reason(self) -> str | None:
        """Why so."""
        return self.reason or (f"no more than {WARM_UP} steps of one kind" if self.path else None)

    def _take(self, graphs: Graphs, batches: list[Batch], preparing: bool) -> None:
        kind = self.kinds.get(key := (preparing, len(batches[0].target)))
        if kind is None:
            kind = self.kinds[key] = Kind(_copied(batches))
        kind.seen += 1
        if kind.replay is None and kind.seen > WARM_UP and kind.previous is not None:
            try:
                self._record(graphs, kind, batches, preparing)
            except RefusedError as error:
                log.info("steps are eager: %s", error)
                self.graphs, self.reason = None, str(error)
                self.kinds.clear()
                self.step(*batches, preparing=preparing)
                return
        _fill(kind.static, batches)
        if kind.replay is not None:
            kind.replay()
            return
        self.step(*kind.static, preparing=preparing)
        kind.previous = _copied(kind.static) if kind.seen == WARM_UP else None

    def _record(self, graphs: Graphs, kind: Kind, batches: list[Batch], preparing: bool) -> None:
        """Record a step, and compare its replay with eager steps at two moments: here, and with another batch, epoch and lr."""
        assert kind.previous is not None
        here = Snapshot(self.step)
        moments = [lambda: _fill(kind.static, batches), lambda: self._elsewhere(kind, batches)]

        def work() -> None:
            self.step(*kind.static, preparing=preparing)

        try:
            eager = [_Eager(here, set_up, work, graphs) for set_up in moments]
            replay = _recorded(graphs, work)
            here.restore()
            findings = [moment.compare(here, replay) for moment in eager]
        finally:
            here.restore()
        kind.replay, kind.previous = replay, None
        self.reason = f"checked at {len(findings)} moments: {max(findings, key=len)}"
        log.info("steps of %d images%s are replayed; %s", len(batches[0].target), " (preparation)" * preparing, self.reason)

    def _elsewhere(self, kind: Kind, batches: list[Batch]) -> None:
        """Another moment of the training: what was taken for constant shows."""
        assert kind.previous is not None
        _fill(kind.static, kind.previous)
        last = batches[0].epochs - 1
        self.step.epoch.copy_(torch.where(self.step.epoch * 2 < last, last, 0))
        self.step.progress.copy_(torch.where(self.step.progress < 0.5, 0.95, 0.05))
        for member in self.step.members.values():
            for rate in member.optimizer.rates:
                rate.mul_(0.5).add_(1e-3)


class _Eager:
    """What an eager step does at a moment, twice: the second time shows its own noise."""

    def __init__(self, here: Snapshot, set_up: Work, work: Work, graphs: Graphs) -> None:
        self.set_up = set_up
        set_up()
        try:
            with graphs.refusing_syncs():
                work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RefusedError(f"{str(error).splitlines()[0]}{_place(error)}") from error
        if reason := here.unrepeatable():
            raise RefusedError(reason)
        self.result = here.now()
        here.restore()
        set_up()
        work()
        self.noise, where = here.difference(self.result, here.now())
        here.restore()
        if self.noise > NOISE:
            raise RefusedError(f"two eager steps from the same state differ, in {where} by {self.noise:.1e} of the update")

    def compare(self, here: Snapshot, replay: Work) -> str:
        """How a replay compares.

        Raises:
            RefusedError: it differs.
        """
        self.set_up()
        replay()
        apart, where = here.difference(self.result, here.now())
        here.restore()
        if apart > NOISE_FACTOR * self.noise:
            raise RefusedError(f"a replay differs from an eager step, in {where} by {apart:.1e} of the update")
        return "bit for bit" if apart == 0 else f"within an eager step's own noise, {self.noise:.0e} of an update"


def _recorded(graphs: Graphs, work: Work) -> Work:
    try:
        return graphs.record(work)
    except torch.OutOfMemoryError:  # fewer cells at a time may fit
        raise
    except Exception as error:
        raise CaptureError(f"a step could not be recorded: {str(error).splitlines()[0]}{_place(error)}") from error


def _copied(batches: list[Batch]) -> list[Batch]:
    return [
        batch._replace(**{name: value.clone() for name in TENSORS if (value := getattr(batch, name)) is not None})
        for batch in batches
    ]


def _fill(static: list[Batch], batches: list[Batch]) -> None:
    """Write batches' tensors into static memory; epoch and progress are the step's own tensors."""
    for kept, batch in zip(static, batches, strict=True):
        for name in TENSORS:
            value = getattr(batch, name)
            if isinstance(value, Tensor):
                getattr(kept, name).copy_(value, non_blocking=True)


def _place(error: BaseException) -> str:
    """' at file:line' of the innermost line outside of installed packages."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    return f" at {'/'.join(frames[-1].filename.split('/')[-2:])}:{frames[-1].lineno}" if frames else ""


def runner(step: Step, dataset: Dataset, team: Team, eager: str | None) -> StepRunner:
    """What takes a group's steps on its device.

    Args:
        eager: why steps are to be eager on a GPU, where that is settled.
    """
    if step.device.type != "cuda":
        return StepRunner(step)
    if team.size > 1:
        eager = eager or "several processes average gradients"
    if isinstance(dataset.train.images, Files):
        eager = eager or "images come from files"
    return StepRunner(step, None if eager else CudaGraphs(step.device), eager)
