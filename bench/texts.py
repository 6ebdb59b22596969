"""How text and values of users are shown: what a terminal would obey is spelled out, and no value is printed at any length."""

from __future__ import annotations

import io
import json
import os
import re
import reprlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

OBEYED = re.compile(  # not tab, new line
    "[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"  # control characters, halves of letters
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # the text's direction and lines
    "\xad\u200b\u2060-\u2064\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"  # nothing is seen of them
)
KINDS = {  # pydantic's kinds of errors: what is allowed
    "int_type int_parsing int_parsing_size int_from_float": "a whole number",
    "float_type float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type bool_parsing": "true or false",
    "string_type": "a text",
    "list_type tuple_type": "a list",
    "dict_type mapping_type model_type model_attributes_type dataclass_type": "a mapping",
    "none_required": "nothing",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of {ge} or more",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error enum": "{expected}",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "{form}",
    "extra_forbidden": "no such key is known",
}
FORMS = {  # of texts, by their patterns
    "^#[0-9a-f]{6}$": "a color such as #1f77b4",
    r"^[^\s'\"\\]+$": "a word without quotes and backslashes",
    "^[a-z0-9_+.-]{1,120}$": "at most 120 of a-z 0-9 _ + . -",
}
TRUTH = " (YAML reads yes, no, on and off as true and false)"
LONGEST = 4_000  # characters of an error
LONG = 260  # characters of a word or a value that an error shows in part; a file's name has at most 255


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


def allowed(detail: ErrorDetails) -> str:
    """What a value should have been, by pydantic's kind of error: 'a number of 1 or more'."""
    form = str(detail.get("ctx", {}).get("pattern"))
    given = {"form": FORMS.get(form, f"a text of the pattern {form}")} | {
        name: _plain(value) for name, value in detail.get("ctx", {}).items()
    }
    for kinds, words in KINDS.items():
        if detail["type"] in kinds.split():
            found = words.format_map(given)
            return found.removesuffix("s") if re.search(r"\b1 (item|character)s$", found) else found
    message = re.sub("^Input should be ", "", detail["msg"])
    return message[:1].lower() + message[1:]


def misfit(detail: ErrorDetails, words: str = "") -> str:
    """What a value should be and what it is, from an error of pydantic, with a word on the cause where it is plain.

    Of what a check of ours has found the message says all, and values stand in it.

    Args:
        words: what it should be, in place of pydantic's opinion.
    """
    value, kind = detail["input"], detail["type"]
    if not words and kind in ("value_error", "assertion_error"):
        return re.sub("^(Value error|Assertion failed), ", "", detail["msg"])
    if not words and kind == "missing":
        return "the key is missing" if isinstance(detail["loc"][-1], str) else "a value is missing"
    truth = TRUTH if isinstance(value, bool) else ""
    number = "number" in (words or allowed(detail))
    comma = number and isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d*,\d+\s*", value)
    return f"{words or allowed(detail)}, not {brief(value)}{'; decimals take a point, not a comma' if comma else ''}{truth}"


def _plain(value: object) -> str:
    """A limit as users write it: '1,000,000', '0'."""
    if isinstance(value, float) and not value.is_integer():
        return f"{value:g}"
    return f"{int(value):,}" if isinstance(value, int | float) else str(value)


def first(error: ValidationError) -> str:
    """'accuracies.last.top1: a number of at most 100, not 101': of a file of JSON."""
    detail = error.errors()[0]
    return f"{'.'.join(map(str, detail['loc']))}: {misfit(detail).removesuffix(TRUTH)}"


def encodable(value: Any) -> Any:
    """The JSON value with '?' for each half of a letter (a lone surrogate), which can be neither printed nor written."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


def visible(text: str) -> str:
    r"""The text with control characters, and those that turn its direction, as in '\x1b'."""
    return OBEYED.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def one_line(text: str) -> str:
    r"""Visible text with '\n' for each new line, which a name may hold: what follows it is no line of ours."""
    return visible(text).replace("\n", r"\n").replace("\t", r"\t")


def shortened(text: str, given: Iterable[str] = ()) -> str:
    """The text with what is too long cut in its middle: what the user gave where it stands in it, and words."""
    for value in given:
        text = text.replace(value, _cut(value))
    return re.sub(rf"\S{{{LONG},}}", lambda found: _cut(found[0]), text)


def _cut(value: str) -> str:
    return value if len(value) < LONG else f"{value[:50]}...{value[-50:]}"


def bounded(text: str, given: Iterable[str] = ()) -> str:
    """One line that fits a screen; see `shortened`."""
    text = shortened(text, given)
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
