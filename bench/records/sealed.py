"""Sealed JSON as it is read, with bounds on its numbers. No torch here."""

from __future__ import annotations

import json
from typing import Any

from bench.records.problems import DamagedError
from bench.records.record import unseal
from bench.texts import encodable

DIGITS = 100  # of a number; with more of them arithmetic overflows, and nothing is as large


def unsealed(raw: bytes) -> dict[str, Any]:
    """The body of sealed JSON.

    Raises:
        DamagedError: it is not JSON, or its digest is wrong.
    """
    try:
        sealed = json.loads(raw, parse_int=_whole, parse_float=_fraction, parse_constant=_fraction)
    except DamagedError:
        raise
    except (ValueError, RecursionError):
        raise DamagedError("it is not JSON: cut short, or damaged") from None
    if not isinstance(sealed, dict):
        raise DamagedError("it is not a JSON object")
    try:
        body = unseal(sealed)
        return encodable(body) if b"\\ud" in raw.lower() or b"\xed" in raw else body
    except (ValueError, RecursionError) as error:
        raise DamagedError(str(error)) from None


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise DamagedError(f"it holds a number of {len(text)} digits")
    return int(text)


def _fraction(text: str) -> float:
    value = float(text)
    if not abs(value) < 10.0**DIGITS:
        raise DamagedError(f"it holds the number {text[:40]}")
    return value
