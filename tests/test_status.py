"""What a user sees of a run: `run` live and `status`, on screens of two sizes and in a pipe; labels of the user's own."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic
from screen import Screen
from tiny_grid import expanded

from bench.errors import UserError
from bench.records import progress
from bench.records.board import Board, Glance, places
from bench.records.folders import GridFolder, ResultsFolder
from bench.screen import Screen as Console
from reports.report import Report
from run_bench import main

METHODS: list[Any] = ["none", {"kd": {"temperature": [2, 4]}, "label": "kd (T={temperature})"}, "fitnets", "at", "sp", "tfd"]
PAIRS = [{"student": "resnet8", "teacher": "resnet8x4"}, {"student": "resnet20", "teacher": "resnet8x4"}]
SIZES = pytest.mark.parametrize(("columns", "lines"), [(80, 24), (120, 40)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GridFolder]:
    """A grid in the middle of its run: of each five cells one runs, one has failed, one is missing, and two are done."""
    grid = expanded(methods=METHODS, pairs=PAIRS, seeds=[0, 1, 2, 3, 4])
    found = ResultsFolder(tmp_path_factory.mktemp("status") / "results").grid("tiny")
    found.write_manifest(grid.manifest())
    with contextlib.ExitStack() as running:
        for number, cell in enumerate(grid.cells):
            place = found.cell(cell.id)
            if number % 5 < 2:
                place.write_record(synthetic.record(cell, 60 + number / 10, "curve"))
                place.write_curves("curve")
            elif number % 5 == 2:
                place.write_failure("RuntimeError: " + "the size of tensor a must match that of tensor b " * 4)
            elif number % 5 == 3:
                running.enter_context(place.lock())
                hint = {"epoch": 12, "epochs": 240, "share": 0.05, "top1": 41.5, "images_per_s": 5200.0}
                place.write_progress(hint | {"clocks": {"train_s": 30.0}})
        yield found


def terminal(columns: int, lines: int) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, force_terminal=True, width=columns, height=lines, color_system="standard"), output


@SIZES
def test_a_live_run_fits_on_the_screen(folder: GridFolder, columns: int, lines: int) -> None:
    console, output = terminal(columns, lines)
    cells = [cell["id"] for cell in folder.manifest()["cells"]]
    screen = Screen(columns, lines)
    with progress.Progress(folder, cells, console) as shown:
        for _ in range(3):
            shown.update()
            assert shown.live
            shown.live.refresh()
    drawn, _, _ = output.getvalue().rpartition("\r\x1b[2K")  # before the end takes the table away
    screen.feed(drawn.rpartition("\x1b[?25h")[0] or drawn)
    text = screen.text()
    assert screen.wrapped == []
    assert screen.scrolled == []  # else the table could not be drawn anew in its place
    first, second, *rest = screen.lines
    assert "29 of 71 done, 14 running, 14 failed, 14 missing; 72,800 images/s; " in first
    assert " left" in first
    assert set(second.strip()) <= set("█░")  # the bar has a line of its own
    assert any(line.startswith("resnet8 taught by resnet8x4") and "s0" in line and "mean" in line for line in rest)
    assert any(line.startswith("kd (T=2)") for line in rest)
    assert "5 %" in text
    assert "epoch 12 of 240, 41.50 %, 5,200 images/s, 0:09:30 left" in text
    if lines == 24:
        assert "more methods; `status` shows all" in text


@SIZES
def test_status_fits_on_the_screen(folder: GridFolder, columns: int, lines: int) -> None:
    console, output = terminal(columns, lines)
    progress.status(folder, {}).show(console)
    screen = Screen(columns, lines)
    screen.feed(output.getvalue())
    assert screen.wrapped == []
    every = [*screen.scrolled, *screen.lines]
    assert next(line for line in every if line.startswith("kd (T=2) ")).split()[:3] == ["kd", "(T=2)", "60.60"]
    assert sum(line.startswith("resnet8 taught by resnet8x4") for line in every) == 1
    failed = next(cell for cell, state in progress.status(folder, {}).states.items() if state == "failed")
    assert any(line.startswith(f"        logs {failed[-12:]} shows more of {failed[:20]}") for line in every)
    assert "the same `run` with --retry trains failed cells again" in every[-2]
    assert sum(line.startswith("failed ") for line in every) == 1  # equal reasons together
    assert any("and 13 more: RuntimeError" in line for line in every)


def test_many_seeds_become_a_sign_each(folder: GridFolder) -> None:
    entries = [{"id": f"digits-resnet8-kd-s{seed}-{seed:012x}", "label": "kd", "family": "kd"} for seed in range(40)]
    board = Board(folder, places(entries))
    board.glances = {cell_id: Glance("done", 60.0, 1.0) for cell_id in board.cells}
    console, output = terminal(80, 24)
    console.print(board.view(80))
    screen = Screen(80, 24)
    screen.feed(output.getvalue())
    assert screen.lines[0].split() == ["digits-resnet8", "mean", "done", "seeds", "0", "to", "39"]
    assert screen.lines[1].split() == ["kd", "60.00", "40/40", "●" * 40]


def test_tables_in_a_pipe_do_not_wrap(folder: GridFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["status", "tiny", "--results", str(folder.results.root)])
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("failed ") for line in printed) == 1
    assert any("the size of tensor a must match that of tensor b " * 4 in f"{line} " for line in printed)
    main(["list", "methods"])
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.startswith("reviewkd ")]) == 1
    assert all(line.split()[0].isidentifier() for line in printed if line.strip())  # no line goes on in the next


def test_a_watched_status_ends_with_the_run(folder: GridFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(["running", "running", "done"])
    monkeypatch.setattr(progress.time, "sleep", lambda _: None)

    def look(former: progress.Status | None) -> progress.Status:
        found = progress.status(folder, {})
        state = next(states)
        found.board.glances = {cell_id: Glance(state, 60.0, 0.5) for cell_id in found.board.glances}
        return found

    output = io.StringIO()
    last = progress.watch(look, Console(file=output, width=200))
    assert last.counts["done"] == 71
    assert [line.partition(";")[0] for line in output.getvalue().splitlines()] == [
        "tiny: 0 of 71 done, 71 running",
        "tiny: 71 of 71 done",
    ]
    states = iter(["running", "done"])
    console, drawn = terminal(80, 24)
    progress.watch(look, console)
    screen = Screen(80, 24)
    screen.feed(drawn.getvalue())
    assert (screen.wrapped, screen.scrolled) == ([], [])


def test_a_watched_status_says_when_nobody_trains(folder: GridFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(["missing", "running", "missing", "done"])
    monkeypatch.setattr(progress.time, "sleep", lambda _: None)
    monkeypatch.setattr(progress, "IDLE_S", -1.0)

    def look(former: progress.Status | None) -> progress.Status:
        found, state = progress.status(folder, {}), next(states)
        found.board.glances = dict.fromkeys(found.board.glances, Glance(state))
        return found

    output = io.StringIO()
    progress.watch(look, Console(file=output, width=200))
    first, running, idle, done = output.getvalue().splitlines()
    assert re.search(r"71 missing; nobody has trained since \d\d:\d\d:\d\d: `run` goes on", first)
    assert "nobody" not in running + done
    assert "nobody has trained since" in idle


# Labels of the user's own


def test_a_label_is_shown_everywhere_and_changes_no_id(tmp_path: Path) -> None:
    labeled, plain = (expanded(methods=methods) for methods in (METHODS[:2], ["none", {"kd": {"temperature": [2, 4]}}]))
    assert {cell.id for cell in labeled.cells} == {cell.id for cell in plain.cells}
    records = [synthetic.record(cell, 60 + number, synthetic.curves(2, 60)) for number, cell in enumerate(plain.cells)]
    folder = synthetic.filled(tmp_path, "tiny", records)
    assert set(Report.of_grid(folder).summary["label"]) == {"none", "kd(temperature=2.0)", "kd"}
    folder.request(labeled.manifest())
    assert set(Report.of_grid(folder).summary["label"]) == {"none", "kd (T=2)", "kd (T=4)"}
    console = Console(file=(output := io.StringIO()), width=80)
    progress.status(folder, {}).show(console)
    assert "kd (T=4)" in output.getvalue()
    folder.request(plain.manifest())
    assert set(Report.of_grid(folder).summary["label"]) == {"none", "kd(temperature=2.0)", "kd"}


def test_values_of_a_sum_stand_in_its_label() -> None:
    grid = expanded(methods=[{"tfd+kd": {"tfd": {"weight": [0.1, 0.2]}}, "label": "both, {tfd.weight}"}])
    assert {cell.label for cell in grid.cells} == {"none", "both, 0.1", "both, 0.2"}


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([{"kd": {"temperature": [2, 4]}, "label": "soft"}], "two methods would be called soft"),
        ([{"kd": {"temperature": 2}, "label": "at"}, "at"], "two methods would be called at"),
        ([{"kd": {"temperature": 2}, "label": "T={temprature}"}], "did you mean 'temperature'"),
        ([{"kd": None, "label": ""}], "a line of at most 40 characters, not ''"),
        ([{"kd": None, "label": 4}], "not 4"),
    ],
)
def test_labels_that_cannot_be_are_refused(methods: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        expanded(methods=methods)


def test_what_is_done_is_not_looked_at_again(folder: GridFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = progress.status(folder, {})
    looked: list[str] = []
    monkeypatch.setattr("bench.records.board.glance", lambda cell: looked.append(cell.id) or Glance("missing"))
    second = progress.status(folder, {}, former=first)
    others = [cell for cell, state in first.states.items() if state != "done"]
    assert looked == others
    assert len(others) < len(first.states) == len(second.states)


@pytest.mark.parametrize("state", ["failed", "unreadable"])
def test_what_is_tried_or_read_again_is_shown(state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = expanded()
    folder = ResultsFolder(tmp_path).grid("tiny")
    folder.write_manifest(grid.manifest())
    cell, output = folder.cell(grid.cells[0].id), io.StringIO()
    following = progress.Progress(folder, [cell.id], Console(file=output, width=200))
    with monkeypatch.context() as stale:
        stale.setattr("bench.records.cell_folder.CellFolder.state", lambda _: state)
        following.board.look()
        shown = progress.status(folder, {})
    assert shown.states == {cell.id: state}
    with cell.lock():
        assert progress.status(folder, {}, former=shown).states == {cell.id: "running"}
        assert following.board.look() == []
        assert following.board.of_state("running") == [cell.id]
    cell.write_failure("no luck")
    with following:
        pass
    assert output.getvalue() == "failed  none, seed 0: no luck\n"  # once


@pytest.mark.parametrize("first", [KeyError("a first error"), None])
def test_the_terminal_is_given_back_whatever_a_last_look_finds(
    first: Exception | None, folder: GridFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, output = terminal(80, 24)
    following = progress.Progress(folder, {}, console)

    def look() -> list[str]:
        raise OSError("the results are out of reach")

    monkeypatch.setattr(following.board, "look", look)

    def follow() -> None:
        with following:
            if first:
                raise first

    with pytest.raises(KeyError if first else OSError):
        follow()
    assert not following.live.is_started
    assert "\x1b[?25h" in output.getvalue()  # the cursor is shown again


@pytest.mark.parametrize(("cells", "looks"), [(40, 120), (20_000, 2)])
def test_looks_at_many_cells_take_a_hundredth_of_the_time(
    folder: GridFolder, monkeypatch: pytest.MonkeyPatch, cells: int, looks: int
) -> None:
    """A minute of a run, which asks for a look twice a second, and in which a look at a cell takes 20 microseconds."""
    now, counted = [1000.0], []
    monkeypatch.setattr("bench.records.pacing.time.monotonic", lambda: now[0])
    following = progress.Progress(folder, {}, Console(file=io.StringIO()))

    def look() -> list[str]:
        counted.append(now[0])
        now[0] += 20e-6 * cells
        return []

    monkeypatch.setattr(following.board, "look", look)
    while now[0] < 1060:
        following.update()
        now[0] += 0.5
    assert looks - 2 <= len(counted) <= looks
    assert len(counted) * 20e-6 * cells <= 0.01 * 60 + 20e-6 * cells  # the first look is free
