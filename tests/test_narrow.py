"""Terminals of every width: no digit and no name is cut, and columns go before lines become too long."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import synthetic

from bench import command_line
from bench.plan import catalogue
from bench.records import board
from bench.records.folders import ResultsFolder
from bench.screen import Screen, Table
from reports import terminal
from reports.report import Report

WIDTHS = range(24, 101)
NAMES = {
    "short": ["none", "kd", "ls", "at"],
    "long": ["none", "kd", "tfd(ramp_epochs=1,x=2)+kd", "tfd(ramp_epochs=1, reduction=sum)"],
}
WORDS = [["name", "what"], ["resnet110", "a text of some words that may wrap"], ["n" * 24, "1,234,567"]]


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    records = synthetic.draw({"none": 0.0, "kd": 1.0, "ls": 0.0, "tfd": 0.3}, 3, np.random.default_rng(0), epochs=2)
    return Report.of_grid(synthetic.filled(tmp_path_factory.mktemp("narrow"), "g", records)).summary.head(4)


def printed(width, *parts):
    console = Screen(file=(output := io.StringIO()), width=width)
    for part in parts:
        console.print(part)
    return output.getvalue().splitlines()


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("half", [0.31, 50.82])
def test_a_report_cuts_no_name_and_no_digit(summary, names, half):
    part = summary.assign(label=NAMES[names], half=half, gain=[float("nan"), -2.0, 4.23, -21.58])
    for width in WIDTHS:
        console = Screen(file=(output := io.StringIO()), width=width)
        terminal.show(part, console)
        lines = output.getvalue().splitlines()
        head = next(line for line in lines if "Top-1 %" in line)
        assert head.split()[0] == "Method"
        assert max(map(len, lines)) <= width or head.split() == ["Method", "Top-1", "%", "Gain"], width
        named = "".join(line.strip().split("  ")[0].replace(" ", "") for line in lines)  # folded names are joined again
        for row, gain in zip(part.itertuples(), ["–", "−2.00", "+4.23", "−21.58"], strict=True):
            [line] = [line for line in lines if f"{row.top1:.2f} ± {half:.2f} " in line and f" {gain} " in f"{line} "]
            assert row.label.replace(" ", "") in named
            assert len(row.label) > terminal.NAME_WIDTH or f" {row.label} " in line


def test_a_table_wraps_between_words_and_leaves_out_what_is_needed_least():
    for width in WIDTHS:
        table = Table(*WORDS[0], "more", last_needed=[2])
        for row in WORDS[1:]:
            table.add_row(*row, "0.95 (0.90 to 1.00)")
        lines = printed(width, table)
        text = " ".join(" ".join(lines).split())
        assert max(map(len, lines)) <= max(width, 24 + 2 + 9)
        assert ("resnet110" in text, "1,234,567" in text) == (True, True)
        assert ("(0.90" in text) == (lines[0].split()[-1] == "more") == (width >= 24 + 2 + 9 + 2 + 5)
    assert lines[1].split("  ")[0] == "resnet110"


@pytest.mark.parametrize("width", [24, 40, 60, 80])
def test_lists_show_every_name(tmp_path, width):
    card = catalogue.card("kd", ResultsFolder(tmp_path))
    methods = printed(width, catalogue.table("methods"))
    assert set(catalogue.methods()) <= {line.split(" ")[0] for line in methods}
    assert any(line.split() == ["temperature", "4.0", "float"] for line in printed(width, card))


@pytest.mark.parametrize("width", [24, 40, 60, 80])
def test_status_shows_whole_accuracies(tmp_path, width):
    records = synthetic.draw({"none": 0.0, "kd": 1.0}, 3, np.random.default_rng(0), epochs=2)
    folder = synthetic.filled(tmp_path, "g", records)
    entries = [{"id": r.id, "label": r.cell.label, "family": r.cell.label} for r in records]
    found = board.Board(folder, board.places(entries))
    found.glances = {cell_id: board.Glance("done", 60.25, 1.0) for cell_id in found.cells}
    lines = printed(width, found.view(width))
    assert max(map(len, lines)) <= width
    assert any(line.split()[:2] == ["kd", "60.25"] for line in lines)


def test_a_width_of_zero_is_unknown(monkeypatch):
    for columns, width in (("0", 10_000), ("many", 10_000), ("", 10_000), ("60", 60)):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        assert command_line.console().width == width
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "0")
    assert command_line.console().width > 0
