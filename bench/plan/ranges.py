"""The ranges of arguments, as their docstrings state them: 'above 0', 'at least 0', '1 or more', 'in [0, 1)'. No torch."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

NUMBER = r"-?\d*\.?\d+(?:e-?\d+)?"
STATED = re.compile(
    rf"(?:^|[,;(] ?|: )(?:above (?P<above>{NUMBER})|at least (?P<least>{NUMBER})|(?P<more>{NUMBER}) or more"
    rf"|in (?P<open>[\[(])(?P<low>{NUMBER}), (?P<high>{NUMBER})(?P<close>[\])]))(?=$|[,;.)]| \()"
)


class Range(NamedTuple):
    """What a number may be. The words are those of the docstring."""

    words: str
    low: float
    high: float = math.inf
    with_low: bool = True
    with_high: bool = True

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        above = value >= self.low if self.with_low else value > self.low
        return above and (value <= self.high if self.with_high else value < self.high)


@cache
def ranges(builder: Callable[..., Any]) -> dict[str, Range]:
    """By argument of a class or a function: its range, where one is stated."""
    found: dict[str, Range] = {}
    for each in getattr(builder, "__mro__", [builder]):
        for name, text in _entries(inspect.cleandoc(each.__doc__ or "")).items():
            if name not in found and (stated := STATED.search(text)):
                found[name] = _range(stated)
    return found


def range_of(builder: Callable[..., Any], name: str) -> Range | None:
    """An argument's range: the stated one, else that of its kind; factors and numbers of epochs are not negative."""
    if name == "temperature":
        return ranges(builder).get(name, Range("above 0", 0, with_low=False))
    if re.search(r"(^|_)(weight|epochs)$", name):
        return ranges(builder).get(name, Range("0 or more", 0))
    return ranges(builder).get(name)


def _range(stated: re.Match[str]) -> Range:
    words = stated[0].lstrip(",;(: ")
    if stated["low"]:
        return Range(words, float(stated["low"]), float(stated["high"]), stated["open"] == "[", stated["close"] == "]")
    low = stated["above"] or stated["least"] or stated["more"]
    return Range(words, float(low), with_low=not stated["above"])


def _entries(doc: str) -> dict[str, str]:
    """By name: what a docstring's section "Args:" states of it, on one line."""
    section = re.search(r"^Args:\n((?:(?: .*)?\n?)*)", doc, re.MULTILINE)
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].splitlines() if section else []:
        if entry := re.match(r" {4}(\w+(?:, \w+)*): (.*)", line):
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.startswith(" " * 5):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
