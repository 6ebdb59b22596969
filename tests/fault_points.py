"""Faults at every operation on files of results: the gate's `os` becomes one that counts, and fails at the n-th call.

A case: a verb runs in a forked process and meets one fault; then it runs again, undisturbed, until it has succeeded. What is
there in the end must equal what an undisturbed run leaves: accuracies, weights bit for bit, nothing trained twice.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parent.parent))

from small import results, trainings, write_grid

from bench.records import batch, files, handles, upkeep
from bench.records.folders import ResultsFolder
from run_bench import main as bench_main

LIMIT_S = 120.0  # of one run
MEMORY = 12 * 2**30  # bytes of address space: a flood would need more
TRIES = 4  # undisturbed runs after which all must be well
READS = ("open", "stat", "fstat", "read", "scandir")
WRITES = ("create", "write", "pwrite", "ftruncate", "fsync", "rename", "unlink", "mkdir", "makedirs")
CODES = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "ESTALE": errno.ESTALE, "ENOLCK": errno.ENOLCK}
GATE = (files.__file__, handles.__file__, batch.__file__, contextlib.__file__, __file__)
GRID: dict[str, Any] = {
    "data": {"type": "digits", "train_images": 20, "test_images": 20},
    "recipe": {"name": "digits", "epochs": 2},
    "methods": ["none", "kd"],
    "pairs": [{"student": "resnet8", "teacher": "resnet14"}],
}


class Point(NamedTuple):
    """A call of the gate to the system."""

    number: int  # from 0
    call: str
    caller: str  # the function that has passed the gate

    def kinds(self) -> tuple[str, ...]:
        """What may go wrong there."""
        if self.call == "flock":
            return ("kill", "ENOLCK")
        if self.call in WRITES:
            return ("kill", "kill after", "ENOSPC", "EIO", *["torn"] * (self.call == "write"))
        return ("kill", "EIO", "ESTALE")


@dataclass
class Tap:
    """Counts the calls, and lets one of them fail."""

    at: int = -1
    kind: str = ""
    points: list[Point] = field(default_factory=list)
    done: Callable[[], None] = lambda: None  # called before a fault

    def over(self, module: Any) -> Tapped:
        return Tapped(self, module)

    def install(self) -> None:
        for module in (files, handles, batch):
            module.os = self.over(os)  # type: ignore[attr-defined]
        for module in (files, handles):
            module.fcntl = self.over(fcntl)  # type: ignore[attr-defined]

    def call(self, name: str, real: Callable[..., Any], arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        creates = name == "open" and bool(arguments[1] & os.O_CREAT)
        point = Point(len(self.points), "create" if creates else name, caller())
        self.points.append(point)
        if point.number != self.at:
            return real(*arguments, **options)
        self.done()
        if self.kind in CODES:
            raise OSError(CODES[self.kind], os.strerror(CODES[self.kind]))
        if self.kind == "torn":
            real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
        elif self.kind == "kill after":
            real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Tapped:
    """A module whose calls are counted."""

    def __init__(self, tap: Tap, module: Any) -> None:
        self._tap, self._module = tap, module

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._module, name)
        if name not in (*READS, *WRITES, "flock"):
            return real
        return lambda *arguments, **options: self._tap.call(name, real, arguments, options)


def caller() -> str:
    frame: Any = sys._getframe(2)
    while frame and frame.f_code.co_filename in GATE:
        frame = frame.f_back
    return frame.f_code.co_qualname if frame else "?"


class Ended(NamedTuple):
    """How a run has ended."""

    code: int  # negative: the signal; 999: it was ended after its time
    printed: str
    points: list[Point]


def warm() -> None:
    """Import once, here, what every verb needs, and keep the collector of garbage away from it."""
    for name in ("submitit", "torch._dynamo", "bench.engine.train", "bench.plan.expand", "reports.terminal"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def run(arguments: list[str], folder: Path, tap: Tap | None = None, in_worker: bool = False, memory: bool = False) -> Ended:
    """A verb in a forked process; what it prints and the operations that it makes.

    Args:
        in_worker: the fault is met by the process that trains, not by this one.
        memory: whether the process gets only some GiB, and may write no large file.
    """
    printed, operations, mark = folder / "printed", folder / "operations", folder / "mark"
    operations.unlink(missing_ok=True)
    mark.unlink(missing_ok=True)
    process_id = os.fork()
    if process_id == 0:
        handle = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        code = 1
        try:
            counting = tap or Tap()
            if memory:
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                resource.setrlimit(resource.RLIMIT_FSIZE, (2**28, 2**28))
            if in_worker:
                here = Path(__file__).parent
                os.environ["PYTHONPATH"] = f"{here / 'faulty'}{os.pathsep}{here}"
                os.environ["FAULT_POINT"] = f"{counting.at}|{counting.kind}|{mark}|{operations}"
            else:
                counting.install()
            code = bench_main(arguments)
            if not in_worker:
                operations.write_text(json.dumps(counting.points))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code, end = 999, time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        ended, status = os.waitpid(process_id, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.01)
    else:
        os.kill(process_id, signal.SIGKILL)
        os.waitpid(process_id, 0)
    points = [Point(*point) for point in json.loads(operations.read_text())] if operations.exists() else []
    return Ended(code, printed.read_text(errors="replace"), points)


@dataclass
class Figures:
    """What came of a campaign."""

    injected: Counter[str] = field(default_factory=Counter)
    survived: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    escapes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)

    @property
    def bad(self) -> list[str]:
        return [*self.lost, *self.doubled, *self.tracebacks, *self.escapes, *self.hangs]

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.injected.items()))
        counts = ", ".join(
            f"{len(getattr(self, name))} {name}" for name in ("lost", "doubled", "tracebacks", "escapes", "hangs")
        )
        head = f"{sum(self.injected.values())} injected ({kinds}): {self.survived} survived, {counts}"
        return "\n".join([head, *self.bad])

    def add(self, other: Figures) -> None:
        self.injected += other.injected
        self.survived += other.survived
        for name in ("lost", "doubled", "tracebacks", "escapes", "hangs"):
            getattr(self, name).extend(getattr(other, name))


class Scenario:
    """A verb on a folder; `cases` are the faults that it may meet."""

    def __init__(self, name: str, folder: Path, verb: list[str], before: Path | None = None, in_worker: bool = False) -> None:
        """
        Args:
            verb: its words; RESULTS stands for the results folder.
            before: what lies there before; None: nothing.
        """
        self.name, self.folder, self.verb, self.before = name, folder, verb, before
        self.in_worker = in_worker
        self.figures = Figures()
        folder.mkdir()
        self.undisturbed = folder / "undisturbed"
        self._prepare(self.undisturbed)
        first = run(self._words(self.undisturbed), folder, in_worker=in_worker)
        if first.code:
            raise RuntimeError(f"{name}: the undisturbed run ends with {first.code}: {first.printed}")
        self.points = first.points
        self.expected = self._state(self.undisturbed)

    def _words(self, root: Path) -> list[str]:
        return [word.replace("RESULTS", str(root)) for word in self.verb]

    def _prepare(self, root: Path) -> None:
        if self.before:
            shutil.copytree(self.before, root)

    def _state(self, root: Path) -> dict[str, Any]:
        return {"records": results(root), "page": (root / "small/report/report.html").exists()}

    def cases(self, each_once: bool) -> Iterator[tuple[Point, str]]:
        """Every operation with all that may go wrong there; or one for each (caller, call, kind)."""
        seen = set()
        for point in self.points:
            for kind in point.kinds():
                key = (point.caller, point.call, kind)
                if not each_once or key not in seen:
                    seen.add(key)
                    yield point, kind

    def inject(self, point: Point, kind: str) -> None:
        """One case: the fault, then runs that are left alone."""
        where = f"{self.name}: {kind} at {point.number} ({point.call} in {point.caller})"
        root = self.folder / "results"
        shutil.rmtree(root, ignore_errors=True)
        self._prepare(root)
        self.figures.injected[kind] += 1
        bad = len(self.figures.bad)
        ended = run(self._words(root), self.folder, Tap(point.number, kind), self.in_worker)
        self._look(ended, where)
        for _ in range(TRIES):
            ended = run(self._words(root), self.folder)
            self._look(ended, f"{where}, run again")
            if ended.code == 0:
                break
        self._compare(root, ended, where)
        self.figures.survived += len(self.figures.bad) == bad

    def _look(self, ended: Ended, where: str) -> None:
        if "Traceback" in ended.printed:
            self.figures.tracebacks.append(f"{where}: {ended.printed[-1500:]}")
        if ended.code == 999:
            self.figures.hangs.append(where)

    def _compare(self, root: Path, ended: Ended, where: str) -> None:
        if ended.code:
            self.figures.lost.append(f"{where}: it ends with {ended.code}: {ended.printed[-500:]}")
            return
        try:
            found = self._state(root)
        except AssertionError as error:
            self.figures.lost.append(f"{where}: {str(error)[:500]}")
            return
        if found != self.expected:
            self.figures.lost.append(f"{where}: other results")
        self.figures.doubled += [f"{where}: {cell}" for cell, count in trainings(root).items() if count > 1]
        problems = upkeep.verify(ResultsFolder(root).grid("small"))
        self.figures.lost += [f"{where}: {each}" for each in problems if "was set aside" not in each.reason]


OPTIONS = ["--device", "cpu", "--no-cost", "--threads", "1"]


def grid_file(folder: Path) -> str:
    return write_grid(folder, **GRID)


def reported(folder: Path) -> Path:
    """A results folder with the finished grid and its report."""
    root = folder / "reported"
    if not root.exists():
        warm()
        ended = run(["run", grid_file(folder), "--results", str(root), *OPTIONS, "--cluster", "debug"], folder)
        assert ended.code == 0, ended.printed
    return root


def scenarios(folder: Path, names: Sequence[str]) -> Iterator[Scenario]:
    """Those that are asked for, of: run, together, worker, dispatcher, report, merge, clean, status, verify.

    "worker" and "dispatcher" meet the faults of the engine `local`, all others those of `debug`.
    """
    warm()
    at = ["--results", "RESULTS"]
    training = ["run", grid_file(folder), *at, *OPTIONS, "--no-report", "--checkpoint-s", "0"]
    ways = {
        "run": [*training, "--cluster", "debug"],
        "together": [*training, "--cluster", "debug", "--together"],
        "worker": [*training, "--jobs", "1"],
        "dispatcher": [*training, "--jobs", "1"],
    }
    for name, words in ways.items():
        if name in names:
            yield Scenario(name, folder / name, words, in_worker=name == "worker")
    for name in ("status", "verify", "clean", "report"):
        if name in names:
            yield Scenario(name, folder / name, [name, "small", *at], reported(folder))
    if "merge" in names:
        yield Scenario("merge", folder / "merge", ["merge", str(reported(folder)), *at])
