"""Errors that a user can mend: shown without a traceback, exit code 2."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something that the user gave is wrong; the message says where, what, what is allowed, and what was likely meant."""


def unknown(what: str, name: object, known: Iterable[str], where: str = "") -> UserError:
    """'quick.yaml, methods: unknown method 'kdd'; did you mean 'kd'? Known: at, kd, ...'."""
    known = sorted(known)
    close = get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    return UserError(f"{where + ': ' if where else ''}unknown {what} '{name}'{hint} Known: {', '.join(known) or 'none'}")


class OtherCodeError(UserError):
    """A user's file differs from the one that the run was planned with."""
