"""Faults at every operation on files of results: the gate's `os` becomes one that counts, and fails at the n-th call.

A case: a verb runs in a forked process and meets one fault; then it runs again, undisturbed, until it has succeeded. What is
there in the end must equal what an undisturbed run leaves: accuracies, weights bit for bit, nothing trained twice, and of a
report each byte.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from fault_fork import Ended, run, warm
from fault_tap import Point, Tap
from small import results, trainings, write_grid

from bench.records import upkeep
from bench.records.folders import ResultsFolder

TRIES = 4  # undisturbed runs after which all must be well
GRID: dict[str, Any] = {
    "data": {"type": "digits", "train_images": 20, "test_images": 20},
    "recipe": {"name": "digits", "epochs": 2},
    "methods": ["none", "kd"],
    "pairs": [{"student": "resnet8", "teacher": "resnet14"}],
}
OPTIONS = ["--device", "cpu", "--no-cost", "--threads", "1"]
DEBUG = ["--cluster", "debug", "--no-report", "--checkpoint-s", "0"]
WRITTEN = re.compile(rb"\d\d? \w+ 20\d\d, \d\d:\d\d UTC")
COUNTED = ("lost", "doubled", "tracebacks", "escapes", "hangs")


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
        counts = ", ".join(f"{len(getattr(self, name))} {name}" for name in COUNTED)
        head = f"{sum(self.injected.values())} injected ({kinds}): {self.survived} survived, {counts}"
        return "\n".join([head, *self.bad])

    def add(self, other: Figures) -> None:
        self.injected += other.injected
        self.survived += other.survived
        for name in COUNTED:
            getattr(self, name).extend(getattr(other, name))


class Scenario:
    """A verb on a folder; `cases` are the faults that it may meet."""

    def __init__(self, name: str, folder: Path, verb: list[str], before: Path | None = None, in_worker: bool = False) -> None:
        """
        Args:
            verb: its words; RESULTS stands for the results folder.
            before: what lies there before; None: nothing.
            in_worker: the faults are met by the process that trains.
        """
        self.name, self.folder, self.verb, self.before = name, folder, verb, before
        self.in_worker = in_worker
        self.figures = Figures()
        folder.mkdir(parents=True)
        self.undisturbed = folder / "undisturbed"
        self._prepare(self.undisturbed)
        self.former = report_of(self.undisturbed)
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
        return {"records": results(root), "report": report_of(root)}

    def cases(self) -> list[tuple[Point, str]]:
        """Operations with all that may go wrong there: of those by one caller on files of one name the first and the last."""
        alike: dict[tuple[str, str, str], list[Point]] = defaultdict(list)
        for point in self.points:
            alike[point.key].append(point)
        chosen = {point for points in alike.values() for point in (points[0], points[-1])}
        return [(point, kind) for point in sorted(chosen) for kind in point.kinds()]

    def inject(self, point: Point, kind: str) -> None:
        """One case: the fault, then runs that are left alone."""
        where = f"{self.name}: {kind} at {point.number} ({point.call} of {point.name or 'the root'} in {point.caller})"
        root = self.folder / "results"
        shutil.rmtree(root, ignore_errors=True)
        self._prepare(root)
        bad = len(self.figures.bad)
        ended = run(self._words(root), self.folder, Tap(point.number, kind), self.in_worker)
        self._look(ended, where)
        if ended.code not in (0, 1, 2) and not kind.startswith("kill") and kind != "torn":
            self.figures.lost.append(f"{where}: it ends with {ended.code}: {ended.printed[-500:]}")
        if kind != "file broken from there on":  # else it is of what could be read, and names what could not
            self._look_at_report(root, where)
        for _ in range(TRIES):
            ended = run(self._words(root), self.folder)
            self._look(ended, f"{where}, run again")
            if ended.code == 0:
                break
        self._compare(root, ended, where)
        self.figures.injected[kind] += 1
        self.figures.survived += len(self.figures.bad) == bad

    def _look(self, ended: Ended, where: str) -> None:
        if "Traceback" in ended.printed:
            self.figures.tracebacks.append(f"{where}: {ended.printed[-3000:]}")
        if ended.code == 999:
            self.figures.hangs.append(where)

    def _look_at_report(self, root: Path, where: str) -> None:
        """Each file of a report is the former or the new one, and where the page is new all are."""
        found, new = report_of(root), self.expected["report"]
        whole = {name for name, content in found.items() if content in (self.former.get(name), new.get(name))}
        page = "report.html"
        if torn := found.keys() - whole:
            self.figures.lost.append(f"{where}: neither the former nor the new {sorted(torn)}")
        if missing := self.former.keys() & new.keys() - found.keys():
            self.figures.lost.append(f"{where}: gone: {sorted(missing)}")
        is_new = found.get(page) == new.get(page) != self.former.get(page)
        if is_new and (behind := [name for name in new if found.get(name) != new[name]]):
            self.figures.lost.append(f"{where}: the page is new, and these are not: {behind}")

    def _compare(self, root: Path, ended: Ended, where: str) -> None:
        if ended.code:
            self.figures.lost.append(f"{where}: it ends with {ended.code}: {ended.printed[-500:]}")
            return
        try:
            found = self._state(root)
        except AssertionError as error:
            self.figures.lost.append(f"{where}: {str(error)[:500]}")
            return
        for part, content in self.expected.items():
            if found[part] != content:
                different = [key for key in content.keys() | found[part].keys() if content.get(key) != found[part].get(key)]
                self.figures.lost.append(f"{where}: other {part}: {sorted(different)}")
        self.figures.doubled += [f"{where}: {cell}" for cell, count in trainings(root).items() if count > 1]
        problems = upkeep.verify(ResultsFolder(root).grid("small"))
        self.figures.lost += [f"{where}: {each}" for each in problems if "was set aside" not in each.reason]


def report_of(root: Path) -> dict[str, bytes]:
    """The files of a report, without the minute at which it was written; no hidden ones."""
    place = root / "small/report"
    files = [path for path in place.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(place)): WRITTEN.sub(b"", path.read_bytes()) for path in files}


def grid_file(folder: Path) -> str:
    return write_grid(folder, **GRID)


def reported(folder: Path) -> Path:
    """A results folder with the finished grid and its report; made in this process, which is warm then."""
    root = folder / "reported"
    if not root.exists():
        run_it = ["run", grid_file(folder), "--results", str(root), *OPTIONS, *DEBUG]
        warm(folder, [run_it, ["report", "small", "--results", str(root)]])
        assert run(["report", "small", "--results", str(root)], folder).code == 0  # as every case has it: drawn quickly
    return root


def outdated(folder: Path) -> Path:
    """Likewise, and its report lacks a method that has been trained since, and has a file that goes."""
    root = folder / "outdated"
    if not root.exists():
        shutil.copytree(reported(folder), root)
        [kd] = (root / "small").glob("*-kd-s0-*")
        kd.rename(folder / "kd")
        assert run(["report", "small", "--results", str(root)], folder).code == 0
        (folder / "kd").rename(kd)
    return root


def scenario(name: str, folder: Path) -> Scenario:
    """One of: run, together, worker, dispatcher, report, merge, clean, status, verify.

    "worker" and "dispatcher" meet the faults of the engine `local`, "run" and "together" those of `debug`.
    """
    done = reported(folder)
    at = ["--results", "RESULTS"]
    training = ["run", grid_file(folder), *at, *OPTIONS, "--no-report", "--checkpoint-s", "0"]
    verbs = {
        "run": [*training, "--cluster", "debug"],
        "together": [*training, "--cluster", "debug", "--together"],
        "worker": [*training, "--jobs", "1"],
        "dispatcher": [*training, "--jobs", "1"],
        "merge": ["merge", str(done), *at],
    }
    if name in verbs:
        return Scenario(name, folder / name, verbs[name], in_worker=name == "worker")
    return Scenario(name, folder / name, [name, "small", *at], outdated(folder) if name == "report" else done)
