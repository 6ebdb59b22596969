"""Verbs, and the workers that they start, in forks of a process that has imported everything: a case costs no start."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import matplotlib.figure
import submitit.local.local
import torch
from fault_tap import Point, Tap

from bench.jobs import local, worker
from run_bench import main as bench_main

LIMIT_S = 300.0  # of one run, on a machine that is busy with other things
CPU_S = 60.0  # of one run: it takes a few
MEMORY = 12 * 2**30  # bytes of address space: a flood would need more
POLL_S = 0.02  # where people wait for trainings, half a second is enough


class Ended(NamedTuple):
    """How a run has ended."""

    code: int  # negative: the signal; 999: it was ended after its time
    printed: str
    points: list[Point]
    cpu_s: float = 0.0


class Forked:
    """What stands for subprocess.Popen: a fork of this process runs the module that the command names."""

    planned: tuple[Tap, Path, Path] | None = None  # the fault of the first worker, its mark, and where its calls are listed

    def __init__(self, command: list[str], env: dict[str, str], **streams: Any) -> None:
        sys.stdout.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                code = self._run(command, env, streams)
            finally:
                os._exit(code)

    def _run(self, command: list[str], env: dict[str, str], streams: dict[str, Any]) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, name in ((1, "stdout"), (2, "stderr")):
            if streams.get(name):
                os.dup2(streams[name].fileno(), number)
        os.environ.clear()
        os.environ.update(env)
        module = command[command.index("-m") + 1]
        sys.argv = [module, *command[command.index("-m") + 2 :]]
        Tap.remove()
        tap = listing = None
        if module == "submitit.core._submit" and self.planned and not self.planned[1].exists():
            tap, mark, listing = self.planned
            tap.done = mark.touch
            tap.install()
        code = ending(lambda: runpy.run_module(module, run_name="__main__"))
        if tap and listing:
            listing.write_text(json.dumps(tap.points))
        return code

    def poll(self) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                if ended:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def ending(call: Any) -> int:
    """The exit code of what runs as a program."""
    code = 1
    try:
        code = call()
        code = code if isinstance(code, int) else 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1 if error.code else 0
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    return code


@contextlib.contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """What this process prints goes to a file."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(handle, number)
    os.close(handle)
    try:
        yield
    finally:
        sys.stdout.flush()
        for number, former in zip((1, 2), kept, strict=True):
            os.dup2(former, number)
            os.close(former)


def warm(folder: Path, verbs: list[list[str]]) -> None:
    """Make of this process what every case is a fork of: all is imported, and what is computed once has been.

    Args:
        verbs: to be run here, once.
    """
    for name in ("torch._dynamo", "bench.engine.train", "bench.plan.expand", "reports.terminal"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    former = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    with printing_to(folder / "printed"):
        codes = [ending(lambda words=words: bench_main(words)) for words in verbs]  # type: ignore[misc]
    for number, handler in former:
        signal.signal(number, handler)
    if any(codes):
        raise RuntimeError(f"{verbs}: {codes}: {(folder / 'printed').read_text()[-2000:]}")
    submitit.local.local.subprocess = SimpleNamespace(Popen=Forked)  # type: ignore[attr-defined]
    local.POLL_S = worker.POLL_S = POLL_S  # type: ignore[attr-defined]
    matplotlib.figure.Figure.savefig = _drawn_quickly  # type: ignore[method-assign]
    matplotlib.figure.Figure.draw_without_rendering = lambda figure: None  # type: ignore[method-assign]
    gc.collect()
    gc.freeze()


def _drawn_quickly(figure: matplotlib.figure.Figure, buffer: Any, format: str = "png", **options: Any) -> None:
    """What is drawn does not matter here, only that it is written."""
    buffer.write("<svg viewBox='0 0 1 1'></svg>" if format == "svg" else b"drawn " * 1000)


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
        code = 1
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            with printing_to(printed):
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  (a test's own may lead elsewhere)
                sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
                counting = tap or Tap()
                if memory:
                    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                    resource.setrlimit(resource.RLIMIT_FSIZE, (2**28, 2**28))
                if in_worker:
                    Forked.planned = counting, mark, operations
                else:
                    counting.install()
                code = ending(lambda: bench_main(arguments))
                if not in_worker:
                    operations.write_text(json.dumps(counting.points))
        finally:
            os._exit(code)
    code, cpu_s, end = 999, 0.0, time.monotonic() + LIMIT_S
    try:
        while time.monotonic() < end:
            ended, status, used = os.wait4(process_id, os.WNOHANG)
            if ended:
                code, cpu_s = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
                process_id = 0
                break
            time.sleep(0.005)
    finally:
        if process_id:
            _end_session(process_id)
    points = [Point(*point) for point in json.loads(operations.read_text())] if operations.exists() else []
    return Ended(999 if cpu_s > CPU_S else code, printed.read_text(errors="replace"), points, cpu_s)


def _end_session(process_id: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process_id, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process_id, 0)
