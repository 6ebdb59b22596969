"""A table: a frame and how to show it, as Markdown, CSV, LaTeX and rows of text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from bench.texts import visible
from reports.style import Style
from reports.tables import latex
from reports.tables.marks import SIGNS

NOTHING = "–"
ABOUT = ("label", "rival", "method", "family")  # columns that name methods


# How values are written


def number(digits: int) -> Callable[[Any], str]:
    """With so many digits; what they round to 0 has no sign."""

    def write(value: Any) -> str:
        if _missing(value):
            return NOTHING
        shown = f"{value:,.{digits}f}"
        return shown.replace("-", "−") if shown.strip("-0.") else shown.lstrip("-")

    return write


def points(value: Any) -> str:
    return NOTHING if _missing(value) else f"{value:+.2f}".replace("-", "−")


def p_value(value: Any) -> str:
    """'.062'; more digits where '.050' would hide on which side of .05 it lies."""
    if _missing(value):
        return NOTHING
    if value < 0.001 or value >= 1:
        return "< .001" if value < 0.001 else "1"
    digits = next((digits for digits in range(3, 9) if round(value, digits) != 0.05), 0)
    if not digits:
        return "< .05" if value < 0.05 else ".050"
    return f"{value:.{digits}f}".lstrip("0")


def seconds(value: Any) -> str:
    """'24 s', '12.0 min', '3.5 h', '2.1 d': the largest unit of which there are two."""
    if _missing(value):
        return NOTHING
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if abs(value) >= 2 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.{2 if value < 2 else 1 if value < 10 else 0}f} s"


def count(value: Any) -> str:
    """'278 324' up to a million, then '1.2 M', 'G', 'T', 'P', 'E'."""
    if _missing(value):
        return NOTHING
    for power, unit in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if abs(value) >= 10**6 and float(f"{abs(value):.3g}") >= 10**power:  # 999.9 G is 1 T
            return f"{value / 10**power:.3g} {unit}"
    return f"{value:,.0f}"


def times(value: Any) -> str:
    return NOTHING if _missing(value) else f"{value:.2f}×" if value < 10 else f"{value:.1f}×"


def students(value: Any) -> str:
    return NOTHING if _missing(value) else "never" if math.isinf(value) else f"{value:,.0f}"


def text(value: Any) -> str:
    return NOTHING if _missing(value) or value == "" else str(value)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


@dataclass(frozen=True)
class Column:
    key: str  # in the frame, and the heading of the CSV
    title: str
    write: Callable[[Any], str] = text
    help: str = ""
    plus_minus: str = ""  # column of the half interval to write behind the value
    low_high: tuple[str, str] | None = None  # columns of the interval to write behind the value
    mark: str = ""  # column of the claim whose sign to write before the value

    def cell(self, row: Mapping[str, Any]) -> str:
        value = self.write(row[self.key])
        if self.plus_minus and not _missing(row[self.plus_minus]):
            value += f" ± {row[self.plus_minus]:.2f}"
        if self.low_high and not _missing(row[self.low_high[0]]):
            value += " [{}, {}]".format(*(self.write(row[key]) for key in self.low_high))
        sign = SIGNS.get(row[self.mark], "") if self.mark else ""
        return f"{sign} {value}" if sign else value

    @property
    def numeric(self) -> bool:
        return self.write is not text


def as_csv(frame: pd.DataFrame) -> str:
    """The frame as CSV. A text that a spreadsheet would take for a formula begins with an apostrophe."""
    words = frame.select_dtypes(exclude=["number", "bool"]).columns
    shown = frame.assign(**{name: [_no_formula(value) for value in frame[name]] for name in words})
    return shown.rename(columns=_no_formula).to_csv(index=False, lineterminator="\n")


FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # signs with which a formula begins; the wide ones in some languages


def _no_formula(value: object) -> object:
    if not isinstance(value, str):
        return value
    return visible(f"'{value}" if value.startswith(FORMULA) else value)


@dataclass(frozen=True)
class Table:
    """A frame and how to show it. CSV holds the frame itself, unrounded; the other formats the columns."""

    name: str  # of its files
    title: str
    columns: tuple[Column, ...]
    frame: pd.DataFrame
    note: str = ""
    narrow: bool = False  # whether its LaTeX fills a column of a paper

    def __bool__(self) -> bool:
        return len(self.frame) > 0

    def styled(self, style: Style) -> Table:
        """The rows that are to be shown, in their order, see `Style.shown`; published methods go by the names of ours."""
        frame = style.shown(self.frame)
        if style.names and "method" in frame:
            frame = frame.assign(method=frame["method"].map(style.named))
        return replace(self, frame=frame)

    @cached_property
    def about(self) -> list[list[str]]:
        """The methods that each row is about; empty lists where rows are about something else."""
        keys = [column.key for column in self.columns if column.key in ABOUT]
        return [list(map(str, names)) for names in zip(*(self.frame[key] for key in keys), strict=True)] or [[]] * len(
            self.frame
        )

    @property
    def name_column(self) -> int:
        """The column that names what a row is about; it stays in sight when the table scrolls."""
        return next((index for index, column in enumerate(self.columns) if column.key in ABOUT), 0)

    def rows(self) -> list[list[str]]:
        return [[shown for shown, _ in row] for row in self.sortable]

    @cached_property
    def sortable(self) -> list[list[tuple[str, str]]]:
        """Each cell as shown, and the text that it is sorted by."""
        keys = {key for c in self.columns for key in (c.key, c.plus_minus, *(c.low_high or ()), c.mark) if key}
        columns = [self.frame[key].tolist() for key in keys] if len(self.frame) else []
        records = [dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True)]
        return [[(c.cell(row), "" if _missing(row[c.key]) else str(row[c.key])) for c in self.columns] for row in records]

    def csv(self) -> str:
        return as_csv(self.frame)

    def markdown(self) -> str:
        note = ["", markdown_text(self.note)] if self.note else []
        return "\n".join([f"### {markdown_text(self.title)}", "", *self.markdown_lines(), *note, ""])

    def markdown_lines(self) -> list[str]:
        """The table alone."""
        head = [column.title for column in self.columns]
        rule = ["---:" if column.numeric else "---" for column in self.columns]
        lines = ["| " + " | ".join(map(markdown_text, row)) + " |" for row in [head, *self.rows()]]
        return [lines[0], "| " + " | ".join(rule) + " |", *lines[1:]]

    def latex(self) -> str:
        """A booktabs table, ready for a paper; what columns mean stands in the caption."""
        helps = [f"{column.title}: {column.help}" for column in self.columns if column.help]
        caption = ". ".join(part.rstrip(".") for part in (self.title, self.note, *([] if self.narrow else helps)) if part) + "."
        columns = [column.title for column in self.columns], [column.numeric for column in self.columns]
        return latex.table(self.name, caption, *columns, self.rows(), self.narrow)


def markdown_text(value: str) -> str:
    """Any text as one line of Markdown that shows it and does nothing else."""
    value = visible(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", " ".join(value.split()))
