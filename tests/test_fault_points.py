"""A short run of faults at operations on files, and of hostile folders: `make faults` makes the long one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fault_points
import hostile
import pytest
from fault_points import Point, Tap

HERE = Path(__file__).resolve().parent
NONE_BAD = "0 lost, 0 doubled, 0 tracebacks, 0 escapes, 0 hangs"


@pytest.mark.parametrize(("parts", "most"), [(["merge", "clean", "status", "verify", "hostile"], 8), (["run", "together"], 2)])
def test_faults_are_survived(parts: list[str], most: int) -> None:
    command = [sys.executable, HERE / "fault_figures.py", "--parts", *parts, "--most", str(most)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    total = re.search(r"^all: (\d+) injected \(.*\): (\d+) survived, " + NONE_BAD + "$", done.stdout, re.MULTILINE)
    assert total
    assert int(total[1]) == int(total[2]) == most * len(parts)


def test_each_kind_of_operation_has_its_faults() -> None:
    assert Point(0, "read", "f").kinds() == ("kill", "EIO", "ESTALE")
    assert "torn" in Point(0, "write", "f").kinds()
    assert "ENOSPC" in Point(0, "create", "f").kinds()


def test_the_tap_counts_and_fails_where_it_should(tmp_path: Path) -> None:
    tap = Tap(at=1, kind="ENOSPC")
    tapped = tap.over(os)
    handle = tapped.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="No space"):
        tapped.write(handle, b"x")
    tapped.write(handle, b"y")
    os.close(handle)
    assert [(point.number, point.call) for point in tap.points] == [(0, "create"), (1, "write"), (2, "write")]
    assert (tmp_path / "file").read_bytes() == b"y"


@pytest.mark.parametrize("harm", ["read", "write"])
def test_an_escape_would_be_seen(harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb that reads or writes through a link is one."""
    (tmp_path / "sound/small/digits-resnet8-none-s0-0123456789ab").mkdir(parents=True)
    attack = hostile.Hostile(tmp_path / "hostile", tmp_path / "sound", "grid.yaml")

    def careless(arguments: list[str], folder: Path, memory: bool) -> fault_points.Ended:
        path = next((folder / "results/small").glob("*/log.txt"))
        if harm == "write":
            path.write_text("mine")
        return fault_points.Ended(0, path.read_text(), [])

    monkeypatch.setattr(hostile, "run", careless)
    attack.attack("logs", "link", "CELL/log.txt")
    assert len(attack.figures.escapes) == 1
    assert attack.figures.survived == 0
    assert attack.figures.injected == Counter(link=1)
