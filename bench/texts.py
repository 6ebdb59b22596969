"""How text and values of users are shown: what a terminal would obey is spelled out, and no value is printed at any length."""

from __future__ import annotations

import io
import json
import os
import re
import reprlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

OBEYED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # not tab, new line
LONGEST = 4_000  # characters of an error


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 100, 100

    def repr_int(self, value: int, level: int) -> str:
        return repr(value) if value.bit_length() < 200 else f"a number of {value.bit_length()} bits"


_BRIEF = _Brief()


def brief(value: object) -> str:
    """The `repr` of a value, cut in its middle where it is long; what lies deep within is left out."""
    return _BRIEF.repr(value)


def misfit(message: str, value: object) -> str:
    """What a value should be and what it is, with a word on the cause where it is plain.

    Of what a check of ours has found the message says all, and values stand in it.
    """
    if (found := message.removeprefix("Value error, ")) != message:
        return found
    message = re.sub(r"^Input should be a valid dictionary( or instance of \w+)?", "a mapping", message)
    comma = isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d*,\d+\s*", value)
    return f"{message}, not {brief(value)}{'; decimals take a point, not a comma' if comma else ''}"


def first(error: ValidationError) -> str:
    """'accuracies.last.top1: Input should be less than or equal to 100'."""
    detail = error.errors()[0]
    return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"


def encodable(value: Any) -> Any:
    """The JSON value with '?' for each half of a letter (a lone surrogate), which can be neither printed nor written."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


def visible(text: str) -> str:
    r"""The text with control characters, and those that turn its direction, as in '\x1b'."""
    return OBEYED.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def one_line(text: str) -> str:
    r"""Visible text with '\n' for each new line, which a name may hold: what follows it is no line of ours."""
    return visible(text).replace("\n", r"\n").replace("\t", r"\t")


def bounded(text: str) -> str:
    """One line that fits a screen."""
    cut = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return one_line(cut)


def write_what_can_be_written() -> None:
    """Let a terminal or a file that lacks a character have '?' in its place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who has started us
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
