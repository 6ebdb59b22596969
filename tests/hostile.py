"""Folders of results that a stranger made: in the place of each file a link, a device, a flood. Every verb must stay inside.

A case: one thing is planted in a copy of sound results, then one verb runs in a forked process, with little memory and time.
Nothing outside may change, nothing of it may come into what the verb prints or writes, and what goes wrong is a line.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from fault_points import LIMIT_S, Figures, run

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
    "verify": ["verify", "small"],
    "clean": ["clean", "small", "--weights"],
    "logs": ["logs", "CELL"],
    "show": ["show", "CELL"],
    "export": ["export", "CELL", "--to", "OURS/exported.safetensors"],
    "merge from": ["merge", "RESULTS", "--results", "OURS"],
    "merge into": ["merge", "SOUND"],
    "report": ["report", "small"],
    "run": ["run", "GRID", "--device", "cpu", "--cluster", "debug", "--threads", "1", "--no-cost", "--no-report"],
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
    "bomb": lambda path, outside: path.write_text("[" * 200_000),
    "noise": lambda path, outside: path.write_bytes(bytes(range(256)) * 64),
    "empty": lambda path, outside: path.touch(),
}


def cases() -> Iterator[tuple[str, str, str]]:
    """Every (verb, kind, name)."""
    for verb in VERBS:
        for name in NAMES:
            for kind in KINDS:
                yield verb, kind, name


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

    def attack(self, verb: str, kind: str, name: str) -> None:
        """One case."""
        where = f"{verb}: {kind} in the place of {name}"
        for part in ("results", "ours", "outside"):
            shutil.rmtree(self.folder / part, ignore_errors=True)
        outside, root = self.folder / "outside", self.folder / "results"
        (outside / "folder").mkdir(parents=True)
        (outside / "secret").write_text(CANARY)
        (outside / "folder/report.html").write_text(CANARY)
        (outside / "folder/record.json").write_text(CANARY)
        shutil.copytree(self.sound, root)
        cell = sorted((root / "small").glob("*-none-s0-*"))[0].name
        self._plant(root / "small" / name.replace("CELL", cell), kind, outside)
        before = tree(outside)
        words = {"RESULTS": str(root), "OURS": str(self.folder / "ours"), "SOUND": str(self.sound), "GRID": self.grid}
        arguments = [word.replace("CELL", cell) for word in VERBS[verb]]
        for key, value in words.items():
            arguments = [word.replace(key, value) for word in arguments]
        if "--results" not in arguments:
            arguments += ["--results", str(root)]
        (self.folder / "ours").mkdir()
        self.figures.injected[kind] += 1
        bad = len(self.figures.bad)
        ended = run(arguments, self.folder, memory=True)
        if "Traceback" in ended.printed:
            self.figures.tracebacks.append(f"{where}: {ended.printed[-1500:]}")
        if ended.code == 999:
            self.figures.hangs.append(f"{where}: not done after {LIMIT_S:.0f} s")
        elif ended.code not in (0, 1, 2):
            self.figures.lost.append(f"{where}: it ends with {ended.code}: {ended.printed[-300:]}")
        if tree(outside) != before:
            self.figures.escapes.append(f"{where}: what lies outside has changed")
        if kind != "hard link" and (CANARY in ended.printed or self._canary_in(root) or self._canary_in(self.folder / "ours")):
            self.figures.escapes.append(f"{where}: what lies outside was read")
        self.figures.survived += len(self.figures.bad) == bad

    def _plant(self, place: Path, kind: str, outside: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        KINDS[kind](place, outside)

    def _canary_in(self, root: Path) -> bool:
        """Whether a regular file holds it, as it is or in Base64."""
        from base64 import b64encode

        needles = [CANARY.encode(), *(b64encode(b" " * pad + CANARY.encode())[4:24] for pad in range(3))]
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**25:
                raw = path.read_bytes()
                if any(needle in raw for needle in needles):
                    return True
        return False


def tree(folder: Path) -> dict[str, str]:
    """Digests of the files below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    found = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return found | {str(path): "a folder" for path in folder.rglob("*") if path.is_dir()}
