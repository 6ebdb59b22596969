"""What a terminal of so many columns and lines shows after the output it got: enough of one for rich's live tables."""

from __future__ import annotations

import re
import unicodedata

SEQUENCE = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])")


class Screen:
    """A terminal's lines; what runs off the top is kept in `scrolled`.

    Attributes:
        wrapped: lines that were longer than the screen is wide.
    """

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.height = columns, lines
        self.lines: list[str] = [""]
        self.scrolled: list[str] = []
        self.wrapped: list[str] = []
        self._row = self._column = 0

    def feed(self, output: str) -> None:
        """Take output as a terminal would.

        Raises:
            ValueError: it holds a control sequence that is not known here.
        """
        place = 0
        while place < len(output):
            if found := SEQUENCE.match(output, place):
                self._control(found[1], found[2])
                place = found.end()
                continue
            self._character(output[place])
            place += 1

    def _control(self, values: str, name: str) -> None:
        count = int(values) if values.isdigit() else 1
        if name == "A":
            self._row = max(0, self._row - count)
        elif name == "K" and values == "2":
            self.lines[self._row] = ""
        elif name not in "mhl":  # colors, and whether the cursor shows
            raise ValueError(f"ESC[{values}{name}")

    def _character(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._column = 0
            self._down()
        else:
            assert unicodedata.east_asian_width(character) not in "WF"
            if self._column == self.columns:
                self.wrapped.append(self.lines[self._row])
                self._column = 0
                self._down()
            line = self.lines[self._row].ljust(self._column)
            self.lines[self._row] = line[: self._column] + character + line[self._column + 1 :]
            self._column += 1

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.lines):
            self.lines.append("")
        if len(self.lines) > self.height:
            self.scrolled.append(self.lines.pop(0))
            self._row -= 1

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines)
