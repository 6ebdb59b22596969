"""Letters that matplotlib's own font lacks, such as Chinese ones in the name of a data set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from matplotlib import font_manager
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter

from bench.texts import visible

STAND_IN = "?"


def make_visible(figure: Figure) -> None:
    """Spell out what is no letter in a figure's texts, see `bench.texts.visible`."""
    _rewrite(figure, visible)


def _rewrite(figure: Figure, change: Callable[[str], str]) -> None:
    for axis in figure.findobj(Axis):
        labels = [label.get_text() for label in axis.get_ticklabels()]
        if (changed := list(map(change, labels))) != labels:  # each drawing sets them anew
            axis.set_major_formatter(FixedFormatter(changed))
    for text in figure.findobj(Text):
        if (shown := change(text.get_text())) != text.get_text():
            text.set_text(shown)


@contextmanager
def unwarned() -> Iterator[None]:
    """Layout and SVG may meet such letters: an SVG holds them as text, which a browser has fonts for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from", category=UserWarning)
        yield


def lacking(figure: Figure) -> set[str]:
    """Letters in a figure that has been laid out, which its fonts lack."""
    return {letter for text in figure.findobj(Text) for letter in _lacking(text)}


def find_font(figure: Figure, wanted: set[str]) -> set[str]:
    """Let texts use an installed font that has these letters; returns those that stay without one: none or all."""
    found = _font_with(frozenset(wanted)) if wanted else None
    if found is None:
        return wanted
    for text in figure.findobj(Text):
        if _lacking(text):
            text.set_fontfamily([*text.get_fontfamily(), found])
    return set()


def replace(figure: Figure, letters: set[str]) -> None:
    """Set a plain question mark in the place of each of these letters."""
    if not letters:
        return
    table = str.maketrans(dict.fromkeys(letters, STAND_IN))
    _rewrite(figure, lambda text: text.translate(table))


def _lacking(text: Text) -> set[str]:
    letters = {letter for letter in text.get_text() if not letter.isascii()}
    for family in text.get_fontfamily() if letters else ():
        letters -= _letters_of(font_manager.findfont(font_manager.FontProperties(family=[family]), fallback_to_default=True))
    return letters


@cache
def _letters_of(file: str) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(file).get_charmap()))


@cache
def _font_with(letters: frozenset[str]) -> str | None:
    """The first installed font, by name, that has all of these letters."""
    fonts = font_manager.fontManager.ttflist
    plain_first = sorted(fonts, key=lambda font: (font.style != "normal", font.weight != 400, font.name))
    for font in plain_first:
        try:
            if "last resort" not in font.name.lower() and letters <= _letters_of(font.fname):  # which draws boxes for all
                return str(font.name)
        except (OSError, RuntimeError):  # a font file that is gone or damaged
            continue
    return None
