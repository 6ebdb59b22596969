"""The terminal: nothing that a user wrote is taken for markup, and no control character reaches it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import rich.table
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.text import Text

from bench.texts import OBEYED, one_line, visible


def environment() -> dict[str, str]:
    """The environment without a width or height that is none, such as COLUMNS=0."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "LINES") or (value.isdecimal() and int(value) > 0)
    }


class Screen(Console):
    """A console without markup, emoji codes and highlighting. Styles are given beside texts, never within them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, _environ=environment(), **settings)

    def print(self, *objects: Any, crop: bool = False, **settings: Any) -> None:
        """Print; a string is one line, whatever names stand in it. A text of several lines is a `Text`.

        Args:
            crop: cut what is too long for the terminal; otherwise it goes on in the next line.
        """
        parts = (one_line(each) if isinstance(each, str) else each for each in objects)
        super().print(*parts, crop=crop, **settings)

    def on_broken_pipe(self) -> None:
        """End as other programs do whose output nobody reads any more, as in `report | head`.

        Raises:
            BrokenPipeError: always.
        """
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise BrokenPipeError from None

    def render_str(self, text: str, **settings: Any) -> Text:
        """A string, made visible before its width is counted."""
        return super().render_str(visible(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed, piece by piece."""
        for segment in super().render(renderable, options):
            shown = segment.control is not None or not OBEYED.search(segment.text)
            yield segment if shown else Segment(visible(segment.text), segment.style)


WORD = 24  # characters of a word that stand on one line


class Table(rich.table.Table):
    """A table that cuts nothing. Cells of `no_wrap` columns stand on one line, others wrap between words.

    Where it is too wide, columns are left out. What is left may be wider than the terminal.
    """

    def __init__(self, *headers: str, last_needed: Sequence[int] = (), **settings: Any) -> None:
        """
        Args:
            last_needed: indices of columns that may be left out, the first ones first.
            settings: of rich's table.
        """
        super().__init__(**{"box": None, "pad_edge": False, "title_justify": "left"} | settings)
        self.last_needed = last_needed
        for header in headers:
            self.add_column(header, overflow="fold")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        most = options.max_width
        for dropped in range(len(self.last_needed) + 1):
            widths = {
                index: _width(column, console, options)
                for index, column in enumerate(self.columns)
                if index not in self.last_needed[:dropped]
            }
            table = self._of(_shared(widths, 0))
            least = Measurement.get(console, options.update(max_width=10**6), table).maximum
            if least <= most:
                break
        table = self._of(_shared(widths, max(0, most - least)))
        table.width = None if least <= most else least
        yield from super(Table, table).__rich_console__(console, options)

    def _of(self, widths: dict[int, int]) -> Table:
        """These columns alone, by index, each of its width."""
        table = copy.copy(self)
        table.columns = [
            replace(self.columns[index], width=width, _index=place) for place, (index, width) in enumerate(widths.items())
        ]
        return table


def _width(column: rich.table.Column, console: Console, options: ConsoleOptions) -> Measurement:
    """The least and the most characters that a column takes."""
    if column.width is not None:
        return Measurement(column.width, column.width)
    wide = options.update(max_width=10**6)
    found = [Measurement.get(console, wide, cell) for cell in (column.header, *column.cells)]
    full = max([column.min_width or 0, *(each.maximum for each in found)])
    word = max([column.min_width or 0, *(min(WORD, each.minimum) for each in found)])
    return Measurement(full if column.no_wrap else word, full)


def _shared(widths: dict[int, Measurement], spare: int) -> dict[int, int]:
    """Widths of columns: the least, and of what is to spare as much as each can use, shared evenly."""
    found = {index: each.minimum for index, each in widths.items()}
    order = sorted(widths, key=lambda index: widths[index].span)
    for place, index in enumerate(order):
        more = min(widths[index].span, spare // (len(order) - place))
        found[index] += more
        spare -= more
    return found
