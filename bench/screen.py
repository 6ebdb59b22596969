"""The terminal: nothing that a user wrote is taken for markup, and no control character reaches it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
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

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print; a string is one line, whatever names stand in it. A text of several lines is a `Text`."""
        super().print(*(one_line(each) if isinstance(each, str) else each for each in objects), **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """A string, made visible before its width is counted."""
        return super().render_str(visible(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed, piece by piece."""
        for segment in super().render(renderable, options):
            shown = segment.control is not None or not OBEYED.search(segment.text)
            yield segment if shown else Segment(visible(segment.text), segment.style)
