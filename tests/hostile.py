"""Folders of results that a stranger made: in the place of each file a link, a device, a flood; in each field of each sealed
file a value of a wrong kind; odd names. Every verb must stay inside.

A case: one thing is planted in a copy of sound results, then one verb runs in a forked process, with little memory and time.
Nothing outside may change, nothing of it may come into what the verb prints or writes, and what goes wrong is a line. Verbs
that only look leave the folder as it is. No text of a stranger is more than text: no escape is printed, no page holds its
script, no table its formula.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import socket
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hostile_fields as fields
from fault_fork import LIMIT_S, Ended, run
from fault_points import Figures

CPU_S = 10.0  # of one verb, which takes a second at most
CANARY = "c4n4ry-of-a-file-outside"
CELL = (
    *("record.json", "curves.csv", "correct.bin", "weights.safetensors", "checkpoint", "progress.json", "failure.json"),
    *("attempts.json", "eager.json", "log.txt", "lock", "visual"),
)
GRID = (
    *("manifest.json", ".lock", "checks.json", "check.lock", ".writable", "cost", "launches", "superseded", "report", "CELL"),
    *("report/report.html", "report/report.md", "report/records.csv", "report/.lock", "report/.files.json"),
    *("report/tables", "report/figures", "report/maps", "report/maps/x.png", "cost/x.json", "launches/x.json"),
)
NAMES = (*GRID, *(f"CELL/{name}" for name in CELL))
VERBS: dict[str, list[str]] = {
    "status": ["status", "small"],
    "status as JSON": ["status", "small", "--json"],
    "verify": ["verify", "small"],
    "verify all": ["verify", "--all"],
    "clean": ["clean", "small", "--weights"],
    "logs": ["logs", "CELL"],
    "show": ["show", "CELL"],
    "export": ["export", "CELL", "--to", "OURS/exported.safetensors"],
    "maps": ["maps", "CELL", "--images", "0"],
    "merge from": ["merge", "RESULTS", "--results", "OURS"],
    "merge into": ["merge", "SOUND"],
    "report": ["report", "small"],
    "report beside": ["report", "small", "--compare", "RESULTS", "--results", "SOUND2"],
    "site": ["report", "--site", "OURS/site"],
    "plan": ["plan", "GRID", "--device", "cpu"],
    "run": ["run", "GRID", "--device", "cpu", "--cluster", "debug", "--threads", "1", "--no-cost", "--no-report"],
    "cancel": ["cancel", "small"],
}


def _link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / ("folder" if path.suffix == "" and "." not in path.name else "secret"))


def _other_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / ("secret" if path.suffix == "" and "." not in path.name else "folder"))


def _socket(path: Path, outside: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as found:
            found.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path, outside: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


KINDS: dict[str, Callable[[Path, Path], object]] = {
    "link": _link,
    "link to the other kind": _other_link,
    "link to nothing": lambda path, outside: path.symlink_to(outside / "nothing"),
    "link to a new file outside": lambda path, outside: path.symlink_to(outside / "folder" / "new"),
    "loop": lambda path, outside: path.symlink_to(path.name),
    "endless device": lambda path, outside: path.symlink_to("/dev/zero"),
    "hard link": lambda path, outside: os.link(outside / "secret", path),
    "pipe": lambda path, outside: os.mkfifo(path),
    "socket": _socket,
    "folder": lambda path, outside: path.mkdir(),
    "flood": _sparse,
    "deep folders": lambda path, outside: path.joinpath(*["d" * 200] * 15).mkdir(parents=True),
    "bomb": lambda path, outside: path.write_text("[" * 200_000),
    "noise": lambda path, outside: path.write_bytes(bytes(range(256)) * 64),
    "empty": lambda path, outside: path.touch(),
}


class Case(NamedTuple):
    """A verb, what is planted, and where: a file, a field of one, or a name of our own."""

    verb: str
    kind: str
    place: str
    field: tuple[Any, ...] = ()

    def __str__(self) -> str:
        field = "".join(f"[{step!r}]" for step in self.field)
        return f"{self.verb}: {self.kind} in the place of {self.place or 'a grid'}{field}"


def cases(sound: Path, seed: int | None = None) -> list[Case]:
    """Every verb with all that may be planted.

    Args:
        sound: see `Hostile`.
        seed: chooses one verb for each value in each field, of texts one that shows them; None: every verb.
    """
    found = [Case(verb, kind, name) for verb in VERBS for name in NAMES for kind in KINDS]
    found += [Case(verb, kind, name) for verb in VERBS for name in fields.PLACES for kind in fields.NAMES]
    chance = random.Random(seed)
    for place, body in fields.files_of(sound).items():
        for way, kind in itertools.product(fields.leaves(body), fields.VALUES):
            some = fields.SHOWING if kind in fields.TEXTS else tuple(VERBS)
            verbs = VERBS if seed is None else [chance.choice(some)]
            found += [Case(verb, kind, place, way) for verb in verbs]
    return found


class Hostile:
    """Sound results, and what becomes of them."""

    def __init__(self, folder: Path, sound: Path, grid: str) -> None:
        """
        Args:
            sound: a results folder with the finished grid "small".
            grid: its file.
        """
        self.folder, self.sound, self.grid = folder, sound, grid
        self.figures = Figures()
        folder.mkdir()
        self.bodies = fields.files_of(sound)

    def attack(self, case: Case) -> None:
        """One case."""
        for part in ("results", "ours", "outside", "sound"):
            shutil.rmtree(self.folder / part, ignore_errors=True)
        outside, root, ours = (self.folder / name for name in ("outside", "results", "ours"))
        (outside / "folder").mkdir(parents=True)
        (outside / "secret").write_text(CANARY)
        (outside / "folder/report.html").write_text(CANARY)
        (outside / "folder/record.json").write_text(CANARY)
        shutil.copytree(self.sound, root)
        ours.mkdir()
        if case.verb == "report beside":
            shutil.copytree(self.sound, self.folder / "sound")
        cell = sorted((root / "small").glob("*-none-s0-*"))[-1].name
        self._plant(case, root, cell, outside)
        before, inside = tree(outside), tree(root)
        bad = len(self.figures.bad)
        ended = run(self._words(case, cell), self.folder, memory=True)
        self._look(case, ended)
        if tree(outside) != before:
            self.figures.escapes.append(f"{case}: what lies outside has changed")
        if case.kind != "hard link" and (CANARY in ended.printed or any(self._canary_in(each) for each in (root, ours))):
            self.figures.escapes.append(f"{case}: what lies outside was read")
        self.figures.escapes += [
            f"{case}: {what}" for what in fields.unsafe(ended.printed, [root, ours, self.folder / "sound"])
        ]
        if case.verb in fields.READ_ONLY and (changed := set(tree(root).items()) ^ set(inside.items())):
            self.figures.lost.append(f"{case}: it only looks, and has changed {sorted(path for path, _ in changed)[:3]}")
        self.figures.injected[case.kind] += 1
        self.figures.survived += len(self.figures.bad) == bad

    def _words(self, case: Case, cell: str) -> list[str]:
        places = {"RESULTS": self.folder / "results", "OURS": self.folder / "ours", "SOUND2": self.folder / "sound"}
        places |= {"SOUND": self.sound, "GRID": Path(self.grid)}
        words = [word.replace("CELL", cell) for word in VERBS[case.verb]]
        for key, place in places.items():
            words = [word.replace(key, str(place)) for word in words]
        return words if "--results" in words else [*words, "--results", str(self.folder / "results")]

    def _look(self, case: Case, ended: Ended) -> None:
        if "Traceback" in ended.printed:
            self.figures.tracebacks.append(f"{case}: {ended.printed[-3000:]}")
        if ended.code == 999 or ended.cpu_s > CPU_S:
            self.figures.hangs.append(f"{case}: not done after {LIMIT_S:.0f} s, or {CPU_S:.0f} s of a core")
        elif ended.code not in (0, 1, 2):
            self.figures.lost.append(f"{case}: it ends with {ended.code}: {ended.printed[-300:]}")

    def _plant(self, case: Case, root: Path, cell: str, outside: Path) -> None:
        if case.kind in fields.VALUES:
            fields.plant(root, cell, case.place, case.field, fields.VALUES[case.kind], self.bodies[case.place])
            return
        if case.kind in fields.NAMES:
            fields.plant_name(root, cell, case.place, fields.NAMES[case.kind])
            return
        place = root / "small" / case.place.replace("CELL", cell)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        KINDS[case.kind](place, outside)

    def _canary_in(self, root: Path) -> bool:
        """Whether a regular file holds it, as it is or in Base64."""
        needles = [CANARY.encode(), *(b64encode(b" " * pad + CANARY.encode())[4:24] for pad in range(3))]
        return any(needle in raw for _, raw in fields.regular(root) for needle in needles)


def tree(folder: Path) -> dict[str, str]:
    """Digests of the files below a folder; of all else only that it is there."""
    found = {str(path): "there" for path in folder.rglob("*")}
    return found | {str(path): hashlib.sha256(raw).hexdigest() for path, raw in fields.regular(folder) if path.name != ".lock"}
