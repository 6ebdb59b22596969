"""A short run of faults at operations on files, and of hostile folders: `make faults` makes the long one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fault_figures
import fault_tap
import hostile
import numpy as np
import pytest
import synthetic
from fault_fork import Ended
from fault_points import Scenario
from fault_tap import Point, Tap

from bench.records import files

HERE = Path(__file__).resolve().parent
COMMAND = [sys.executable, HERE / "fault_figures.py", "--parts"]
CHEAP = ("merge", "clean", "status", "verify", "hostile")
DEAR = ("report", "run", "together", "worker", "dispatcher")  # each of their cases takes a second or more


@pytest.mark.parametrize(("parts", "most"), [(CHEAP, 10), (DEAR, 2)])
def test_faults_are_survived(parts: tuple[str, ...], most: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*COMMAND, *parts, "--most", str(most)], capture_output=True, text=True, timeout=900, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for part in parts:
        assert re.search(rf"^{part} +{most} +{most}( +0){{5}} +[\d.]+$", done.stdout, re.MULTILINE), done.stdout


def test_a_part_that_is_stopped_shows_what_it_has_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    part = fault_figures.Part("status")

    def case() -> None:
        if part.ended == 2:
            fault_figures.stop(signal.SIGTERM, None)
        part.figures.injected["kill"] += 1

    monkeypatch.setattr(part, "_cases", lambda *_: [case] * 9)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    part.run(tmp_path, 2, 0, minutes=0)
    assert str(part).startswith("status: STOPPED after 0 of 2 (its 0 minutes were over)")
    with pytest.raises(fault_figures.StoppedError):
        part.run(tmp_path, 5, 0, minutes=None)
    assert re.match(r"status: STOPPED after 2 of 5 \(from outside\) .*: 2 injected", str(part))
    assert fault_figures.table([part]).endswith("stopped after 2 of 5")


def test_each_kind_of_operation_has_its_faults() -> None:
    assert Point(0, "read", "f").kinds()[:3] == ("kill", "EIO", "ESTALE")
    assert "torn" in Point(0, "write", "f").kinds()
    assert {"ENOSPC", "disk full from there on"} <= set(Point(0, "create", "f").kinds())


def test_files_of_a_loop_have_one_name() -> None:
    names = ["/a/tables/01-kd-cost.md", ".02-kd.md.0123abcd", "digits-resnet8-kd-s0-0221d063f5af", ".record.json.0123abcd"]
    assert [fault_tap.plain(name) for name in names] == ["*.md", "new *.md", "CELL", "new record.json"]


@pytest.fixture
def tapped() -> Iterator[Tap]:
    tap = Tap()
    tap.install()
    yield tap
    tap.remove()


def test_the_tap_counts_and_fails_where_it_should(tmp_path: Path, tapped: Tap) -> None:
    folder = files.Folder(tmp_path)
    folder.write("file", "x")
    written = [(point.call, point.name) for point in tapped.points]
    assert written[2:] == [
        *(("create", "new file"), ("write", "new file"), ("fsync", "new file")),
        *(("rename", "new file"), ("fsync", tmp_path.name)),
    ]
    for kind, failing in (("ENOSPC", 1), ("disk full from there on", 9), ("disk dead from there on", 9)):
        tapped.points, tapped.at, tapped.kind = [], 3, kind
        for attempt in range(2):
            if attempt < failing:
                with pytest.raises(OSError, match="file"):
                    folder.write("file", "y")
            else:
                folder.write("file", "y")
        tapped.at = -1
    assert folder.read("file") == b"y"


def in_place(folder: files.Folder, name: str, content: bytes | str, durable: bool = True) -> str:
    """A write as it should not be."""
    with folder.opened(name, create=True) as handle:
        file = files.os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=handle)
        files.os.write(file, content.encode() if isinstance(content, str) else content)
        os.close(file)
    return ""


@pytest.mark.parametrize("sound", [True, False])
def test_a_write_that_is_not_atomic_would_be_seen(sound: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = synthetic.draw({"none": 0.0, "kd": 1.0}, 1, np.random.default_rng(0), epochs=2)
    theirs = synthetic.filled(tmp_path / "theirs", "small", records)
    if not sound:
        monkeypatch.setattr(files.Folder, "write", in_place)
    scenario = Scenario("merge", tmp_path / "merge", ["merge", str(theirs.results.root), "--results", "RESULTS"])
    torn = [(point, "torn") for point in scenario.points if point.call == "write" and "record.json" in point.name]
    scenario.inject(*torn[0])
    assert len(scenario.figures.lost) == (0 if sound else 1)
    assert scenario.figures.survived == (1 if sound else 0)


@pytest.mark.parametrize("harm", ["read", "write", "escape", "change"])
def test_an_escape_would_be_seen(harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb that reads or writes through a link, prints what a stranger wrote, or changes what it should only look at."""
    records = synthetic.draw({"none": 0.0}, 1, np.random.default_rng(0), epochs=2)
    sound = synthetic.filled(tmp_path / "sound", "small", records).results.root
    monkeypatch.setattr(hostile.fields, "files_of", lambda sound: {})
    attack = hostile.Hostile(tmp_path / "hostile", sound, "grid.yaml")

    def careless(arguments: list[str], folder: Path, memory: bool) -> Ended:
        path = next((folder / "results/small").glob("*/log.txt"))
        if harm == "change":
            path.with_name("new").touch()
        if harm == "write":
            path.write_text("mine")
        return Ended(0, path.read_text() if harm == "read" else "\x1b" * (harm == "escape"), [])

    monkeypatch.setattr(hostile, "run", careless)
    attack.attack(hostile.Case("logs", "link", "CELL/log.txt"))
    assert (len(attack.figures.escapes), len(attack.figures.lost)) == ((0, 1) if harm == "change" else (1, 0))
    assert attack.figures.survived == 0
    assert attack.figures.injected == Counter(link=1)
