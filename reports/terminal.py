"""A report for the terminal: the summary, one table a pair, in 80 columns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd
import rich.box
from rich.text import Text

from bench.records.folders import GridFolder
from bench.screen import Screen
from bench.screen import Table as ScreenTable
from bench.stats import CostWord
from reports import page
from reports.tables.accuracy import SUMMARY
from reports.tables.marks import SIGNS
from reports.tables.table import Column, Table

LEGEND = "Gain over none, p corrected: ▲ gain shown, ▼ loss shown, △ ▽ only suggested, = equivalent, ○ open; of costs as well."


def _narrow(column: Column) -> Column:
    if column.key in ("claim", "cost_word"):
        return replace(column, title="", write=lambda verdict: SIGNS.get(verdict, ""))
    return replace(column, low_high=None)


NAME_WIDTH = 24  # characters of a method's name that stand on one line
# Where a terminal is narrow, these are left out, the first ones first.
LAST_NEEDED = ("with_teacher_s", "train_s", "n", "cost_word", "ratio", "p_adjusted", "claim")
COLUMNS = tuple(map(_narrow, SUMMARY[2:-1]))  # what fits in 80 characters


def report(
    folder: GridFolder,
    console: Screen,
    compare: str | Path | None = None,
    style: str | Path | None = None,
    grams_per_kwh: float | None = None,
) -> Path:
    """Write the report of a grid and print its summary and where it lies; returns the page.

    Args:
        compare, style, grams_per_kwh: see `page.write`.

    Raises:
        UserError: a grid has no manifest, or the style file cannot be used.
    """
    written = page.write(folder, compare=compare, style=style, grams_per_kwh=grams_per_kwh)
    show(written.summary, console)
    for note in written.notes:
        console.print(note)
    console.print(f"report: {written.page}", soft_wrap=True)
    return written.page


def show(summary: pd.DataFrame, console: Screen) -> None:
    """Print a summary, one table a pair."""
    if summary.empty:
        console.print("No student has been trained yet.")
        return
    for (setting, pair), part in summary.groupby(["setting", "pair"], sort=False):
        console.print(_table(f"{pair}, {setting}", part))


def _table(title: str, part: pd.DataFrame) -> ScreenTable:
    """The methods of one pair. Names are folded where they are longer than NAME_WIDTH."""
    keys = [column.key for column in COLUMNS]
    table = ScreenTable(title=Text(title), box=rich.box.SIMPLE_HEAD, last_needed=[keys.index(key) for key in LAST_NEEDED])
    table.padding = (0, 1, 0, 0)
    table.caption = LEGEND
    if (part["cost_word"] == CostWord.APART).any():
        table.caption += " ~ not timed in turn."
    table.caption_justify = "left"
    longest = min(NAME_WIDTH, int(part["label"].map(len).max()))
    for column in COLUMNS:
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        is_name = column.key == "label"
        width = longest if is_name else None
        table.add_column(Text(column.title), justify=justify, no_wrap=not is_name, overflow="fold", min_width=width)
    for row in Table("summary", "Summary", COLUMNS, part).rows():
        table.add_row(*map(Text, row))
    return table
